"""Joins the shards of weights that the GPU kit brought back into a pipeline folder, and loads it.

    python dev/gpu/assemble.py RESULTS FOLDER

Raises an error that names the shard where one is missing or damaged.
"""

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path

from magicedit.models import load_pipeline


def join(results: Path, folder: Path) -> dict:
    """Writes the files into a new `folder`; returns what the index tells."""
    index = json.loads((results / "weights.json").read_text())
    parts = []
    for shard in index["shards"]:
        path = results / shard["name"]
        part = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(part).hexdigest() != shard["sha256"]:
            raise SystemExit(f"{path} is {'damaged' if part else 'missing'}; fetch it again")
        parts.append(part)
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
        archive.extractall(folder, filter="data")
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.folder.exists():
        raise SystemExit(f"{args.folder} is there already; name another folder")
    index = join(args.results, args.folder)
    load_pipeline(args.folder, device="cpu")
    print(f"{args.folder}: step {index['step']}, {index['last']}")


if __name__ == "__main__":
    main()
