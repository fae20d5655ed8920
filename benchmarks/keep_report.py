"""Keeps of an evaluation's report what may be committed: figures and rows, no faces.

    python benchmarks/keep_report.py REPORT [-o benchmarks/evaluation]

Writes summary.json and rows.parquet to a folder named after the protocol.
"""

import argparse
import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "evaluation")
    args = parser.parse_args()
    name = json.loads((args.report / "summary.json").read_text())["protocol"]["name"]
    folder = args.output / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("summary.json", "rows.parquet"):
        shutil.copyfile(args.report / file, folder / file)
    print(folder)


if __name__ == "__main__":
    main()
