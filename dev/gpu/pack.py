"""Gathers what the GPU kit needs into dev/gpu/packed, and refuses where it is too much with the checkout.

    dev/gpu/pack [DATASET] [--start FOLDER] [--earlier RESULTS]

DATASET: what `magicedit prepare` wrote, of photographs whose licence allows training; for `mini` with
`--size 176`, which its augmentation needs. FOLDER: weights to train further, such as `assemble.py` wrote; by
default those of `mini`. RESULTS: what an earlier run brought back, whose rows are not measured again.

Wheels are those of the versions installed here, for Python 3.12 on 64-bit Linux. Not among them are the large
ones: training needs OpenCV, SciPy and PyArrow, which the machine must have; speed does not.
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKED = HERE / "packed"

LIMIT = 64 * 2**20  # bytes that may travel: tracked files, those not ignored, and the packed
PACKAGES = ("diffusers", "peft", "importlib_metadata", "zipp", "requests", "urllib3", "charset_normalizer",
            "idna", "certifi")  # fmt: skip
# Parts of diffusers, most of its size, that are imported only when they are asked for
UNUSED = ("diffusers/pipelines/", "diffusers/modular_pipelines/", "diffusers/models/transformers/")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def fetch_wheels(folder: Path) -> None:
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.12", "--implementation", "cp", *platforms, "--dest", str(folder)]
    subprocess.run([*command, *wanted], check=True)
    (diffusers,) = folder.glob("diffusers-*.whl")
    trim(diffusers)


def trim(wheel: Path) -> None:
    """Leaves the subfolders of UNUSED out of a wheel that is only unpacked."""
    beside = wheel.with_suffix(".new")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as kept:
        for entry in whole.infolist():
            prefix = next((prefix for prefix in UNUSED if entry.filename.startswith(prefix)), None)
            if prefix is None or "/" not in entry.filename.removeprefix(prefix):
                kept.writestr(entry, whole.read(entry))
    beside.replace(wheel)


def travelling() -> int:
    """Bytes of the checkout's files that git tracks or does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = (ROOT / name for name in set(listed.split("\0")) if name)
    return sum(path.lstat().st_size for path in paths if path.is_file())


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--start", type=Path)
    parser.add_argument("--earlier", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=PACKED)
    args = parser.parse_args()
    if args.output.exists() and not (args.output / "wheels").is_dir():
        parser.error(f"{args.output} is there already, and not by this command; name another -o")
    folders = (("dataset", args.dataset), ("start", args.start), ("earlier", args.earlier))
    for name, folder in folders:
        if folder is not None and not folder.is_dir():
            parser.error(f"there is no folder {folder} to pack as {name}")
        if folder is not None and args.output.resolve() in (folder.resolve(), *folder.resolve().parents):
            parser.error(f"{folder} is in {args.output}, which is replaced; move it out")
    shutil.rmtree(args.output, ignore_errors=True)
    (args.output / "wheels").mkdir(parents=True)
    fetch_wheels(args.output / "wheels")
    hidden = shutil.ignore_patterns(".*")
    for name, folder in folders:
        if folder is not None:
            shutil.copytree(folder, args.output / name, ignore=hidden)
    sizes = {folder.name: size(folder) for folder in sorted(args.output.iterdir())}
    sizes["checkout"] = travelling()
    for name, number in sizes.items():
        print(f"{name:10}{number / 2**20:8.2f} MiB")
    total = sum(sizes.values())
    print(f"{'together':10}{total / 2**20:8.2f} MiB of {LIMIT / 2**20:.0f}")
    if total > LIMIT:
        print("too large: pack fewer photographs, or smaller ones", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
