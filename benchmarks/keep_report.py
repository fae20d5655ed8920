"""Keeps of an evaluation's report what may be committed: figures and rows, no faces.

    python benchmarks/keep_report.py REPORT [-o benchmarks/evaluation]

Writes summary.json, rows.parquet and the plots that say something under that protocol to a folder named after
it. A report that tells a folder of this machine is refused.
"""

import argparse
import json
import re
import shutil
from pathlib import Path

HERE = Path(__file__).parent
PLOTS = {"control": ("calibration-*", "crosstalk-*", "identity"), "table4": ("guidance",)}  # by protocol


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
    for file in ("summary.json", "rows.parquet"):
        shutil.copyfile(args.report / file, folder / file)
    for pattern in PLOTS.get(name, ()):
        for plot in (args.report / "plots").glob(f"{pattern}.svg"):
            shutil.copyfile(plot, folder / plot.name)
    print(folder)


if __name__ == "__main__":
    main()
