"""Trains the variants that the protocols table2, table3, table4 and families compare.

    python benchmarks/train_tables.py --data DATASET --runs RUNS [--protocols table3] [--jobs 2] [FLAG...]

Each variant is a recipe, train/configs/tables-cpu.yaml if the protocol's file names no other, with its own
settings from that file; what is trained already is left alone, and what was interrupted goes on. Further
flags of train/train.py are passed on to every variant. Then:

    magicedit evaluate --protocol table3 --runs RUNS --data PEOPLE -o REPORT/
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from magicedit.evaluation import load_protocol
from magicedit.evaluation.protocol import Variant

RECIPE = "tables-cpu"
TRAIN = Path(__file__).resolve().parent.parent / "train" / "train.py"


def variants(protocols: list[str]) -> dict[str, Variant]:
    """Run name -> variant, of those that a recipe can train."""
    found = {}
    for protocol in protocols:
        for variant in load_protocol(protocol).variants:
            if found.setdefault(variant.run, variant).train != variant.train:
                raise SystemExit(f"{protocol} trains {variant.run} otherwise than another protocol")
    return {run: variant for run, variant in found.items() if variant.train is not None}


def train_variant(runs: Path, variant: Variant, data: Path, flags: list[str]) -> int:
    """A variant, after what has to be trained before it."""
    settings = dict(variant.train)
    if variant.first is not None:
        before = runs / variant.first["run"]
        if code := train(before, variant.first["train"], data, flags):
            return code
        settings[variant.first["given_as"]] = before
    return train(runs / variant.run, settings, data, flags)


def train(run: Path, settings: dict, data: Path, flags: list[str]) -> int:
    """One run, on one thread; its messages go to RUN.log beside it."""
    if any((run / file).is_file() for file in ("model_index.json", "training.json")):  # written at the end
        print(f"{run.name}: trained", flush=True)
        return 0
    own = [f"--{name}={value}" for name, value in ({"config": RECIPE} | settings).items()]
    command = [
        *(sys.executable, str(TRAIN), "--train_data_dir", str(data)),
        *("--output_dir", str(run), "--resume_from_checkpoint", "latest", *own, *flags),
    ]
    run.parent.mkdir(parents=True, exist_ok=True)
    log_file = run.with_suffix(".log")
    with log_file.open("ab") as log:
        code = subprocess.run(
            command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        ).returncode
    print(f"{run.name}: {'trained' if code == 0 else f'failed, see {log_file}'}", flush=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="dataset of `magicedit prepare`")
    parser.add_argument("--runs", type=Path, required=True, help="folder to train into")
    parser.add_argument("--protocols", nargs="+", default=["table3", "table4", "table2"])
    parser.add_argument("--jobs", type=int, default=2, help="variants at a time, one core each")
    args, flags = parser.parse_known_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        codes = pool.map(
            lambda variant: train_variant(args.runs, variant, args.data, flags),
            variants(args.protocols).values(),
        )
        return max(codes, default=0)


if __name__ == "__main__":
    sys.exit(main())
