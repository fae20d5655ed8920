"""Keeps of an evaluation's report what may be committed: figures and rows, no faces.

    python benchmarks/keep_report.py REPORT [-o benchmarks/evaluation]

Writes summary.json, rows.parquet and the plots that say something under that protocol to a folder named after
it. Rows are kept in float32, which halves them. A report that tells a folder of this machine is refused.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
PLOTS = {"control": ("calibration-*", "crosstalk-*", "identity"), "table4": ("guidance",)}  # by protocol


def keep_rows(source: Path, target: Path) -> None:
    """Copies a table with its floating-point columns in float32, their bytes sorted by significance."""
    table = pq.read_table(source)
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    for name in floats:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.float32()))
    others = [name for name in table.column_names if name not in floats]
    options = {"use_byte_stream_split": floats, "use_dictionary": others}
    pq.write_table(table, target, compression="zstd", compression_level=19, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "evaluation")
    args = parser.parse_args()
    name = json.loads((args.report / "summary.json").read_text())["protocol"]["name"]
    folder = args.output / name
    folder.mkdir(parents=True, exist_ok=True)
    told = (args.report / "summary.json").read_text() + (args.report / "rows.csv").read_text()
    if found := re.search(r"(?<![\w.])/(?:home|root|tmp|work|Users|mnt|data)/\S*", told):
        raise SystemExit(f"{args.report} tells a folder of this machine: {found[0]}")
    shutil.copyfile(args.report / "summary.json", folder / "summary.json")
    keep_rows(args.report / "rows.parquet", folder / "rows.parquet")
    for pattern in PLOTS.get(name, ()):
        for plot in (args.report / "plots").glob(f"{pattern}.svg"):
            shutil.copyfile(plot, folder / plot.name)
    print(folder)


if __name__ == "__main__":
    main()
