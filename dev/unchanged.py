"""Proof that a redesign changed nothing: digests of edits, trained weights, a film and a report.

    python dev/unchanged.py before.json            # on the old code
    python dev/unchanged.py after.json --against before.json   # on the new code, same machine and threads

Edits: ten requests of every face given, at every quality, through `ExpressionEditor`. Losses: 50 steps of
each training objective on a tiny model, by `train/train.py`, and the weights they end in. Film and report:
the commands. Only what users call is called, so that the script outlives what it compares. Exit status 1
where a digest differs.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

ROOT = Path(__file__).resolve().parents[1]
FACES = (ROOT / "tests" / "portraits" / "closed_mouth.jpg",)
QUALITIES = ("exact", "balanced", "fast", "live")
REQUESTS: tuple[dict, ...] = (
    {"add": {"AU12": 3}},
    {"add": {"AU12": 4, "AU25": 3}},
    {"add": {"AU26": 4}, "teeth": 3},
    {"add": {"AU1": 0.5}},
    {"add": {"AU12L": 3, "AU4": -2}},
    {"add": "AU9=+3,AU6=+2"},
    {"set": {"AU12": 0, "AU25": 0}},
    {"emotion": "happiness"},
    {"emotion": ("fear", 0.7), "seed": 7, "guidance": 1.5},
    {"neutral": True, "tolerance": 0.5, "max_edits": 2},
)
STEPS = 50
MAGICEDIT = ("-c", "import sys; from magicedit.cli import main; sys.exit(main())")
TINY = (
    *("--train_batch_size=2", "--learning_rate=1e-3", "--lr_warmup_steps=0", "--warped=0.5", "--augment"),
    *("--use_ema", "--validation_steps=0", "--logging_steps=1", "--checkpointing_steps=0"),
    f"--max_train_steps={STEPS}",
)
NETWORK = ("--resolution=32", "--block_out_channels=16,32", "--attention_heads=2")


def digest(*contents: bytes) -> str:
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def run(*command: object) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, *map(str, command)], check=True, env=environment, stdout=subprocess.DEVNULL
    )


def edits(faces: Iterable[Path]) -> dict[str, str]:
    from magicedit import ExpressionEditor

    editor, found = ExpressionEditor.from_pretrained("mini"), {}
    for face in faces:
        for quality in QUALITIES:
            for number, request in enumerate(REQUESTS):
                result = editor.edit(face, quality=quality, **request)
                words = json.dumps([face.to_json() for face in result.faces], sort_keys=True)
                name = f"{face.stem} {quality} {number}"
                found[f"{name} pixels"] = digest(np.asarray(result.image).tobytes())
                found[f"{name} words"] = digest(words.encode())
    return found


def losses(folder: Path) -> dict[str, str]:
    """Of composed objectives with two people, and of a distilled student of it."""
    from safetensors.numpy import load_file

    sys.path.insert(0, str(ROOT / "tests"))
    from tiny_models import tiny_stable_diffusion

    astronaut = data.astronaut()
    for person, picture in (("ann", astronaut), ("bob", np.ascontiguousarray(astronaut[:, ::-1]))):
        (folder / "people" / person).mkdir(parents=True)
        for name, share in (("light", 1.0), ("dark", 0.7)):
            pixels = (picture * share).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "people" / person / f"{name}.png")
    pairs = folder / "pairs"
    run(*MAGICEDIT, "prepare", folder / "people", "-o", pairs, "--size", 64, "--validation", "bob")
    shards = [path for path in sorted(pairs.rglob("*")) if path.suffix in (".parquet", ".arrow", ".tar")]
    made = {f"shard {path.name}": digest(path.read_bytes()) for path in shards}
    composed, noise, distilled = (folder / name for name in ("composed", "noise", "distilled"))
    tiny_stable_diffusion(folder / "sd")
    started = (f"--pretrained_model_name_or_path={folder / 'sd'}", "--resolution=64")
    student = (
        "--objective=distill",
        "--resolution=32",
        f"--pretrained_model_name_or_path={composed}",
        "--distill_teacher_steps=4",
    )
    runs = {composed: (*TINY, *NETWORK), noise: (*TINY, *started), distilled: (*TINY, *student)}
    for output, flags in runs.items():
        name = output.name
        run(ROOT / "train" / "train.py", *flags, f"--train_data_dir={pairs}", f"--output_dir={output}")
        rows = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
        timed = ("seconds", "per_second", "memory")
        kept = [{k: v for k, v in row.items() if not any(word in k for word in timed)} for row in rows]
        made[f"{name} losses"] = digest(json.dumps(kept, sort_keys=True).encode())
        for file in sorted(output.glob("*/diffusion_pytorch_model.safetensors")):
            weights = load_file(file)
            arrays = [weights[key].tobytes() for key in sorted(weights)]
            made[f"{name} {file.parent.name}"] = digest(*arrays)
    return made


def film(folder: Path) -> dict[str, str]:
    """Thirty frames of a photograph that moves, edited by a curve."""
    import av

    source, target = folder / "film.mp4", folder / "edited.mp4"
    photo = np.asarray(Image.open(FACES[0]).convert("RGB"))
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 640, 640, "yuv420p"
        for number in range(30):
            shifted = np.roll(photo, (2 * number, number), (0, 1))
            picture = np.asarray(Image.fromarray(shifted).resize((640, 640)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    run(*MAGICEDIT, "video", source, "-o", target, "--key", "0:AU26=0", "--key", "1.5:AU26=4,AU12=2")
    with av.open(str(target)) as container:
        frames = [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]
    return {"film": digest(*frames)}


def report(folder: Path) -> dict[str, str]:
    people = folder / "people"
    (people / "one").mkdir(parents=True, exist_ok=True)
    Image.open(FACES[0]).save(people / "one" / "neutral.png")
    output = folder / "report"
    asked = ("--editor", "warp", "--editor", "mini", "--protocol", "table1-small")
    run(*MAGICEDIT, "evaluate", *asked, "--data", people, "-o", output)
    found = {}
    for file in sorted(output.rglob("*.csv")):
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [{k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(lines)]
        found[f"report {file.relative_to(output)}"] = digest(
            "\n".join(sorted(json.dumps(row, sort_keys=True) for row in rows)).encode()
        )
    return found


PARTS = {"losses": losses, "film": film, "report": report}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--faces", type=Path, help="folder of further photographs to edit")
    parser.add_argument("--against", type=Path, help="file written earlier")
    parser.add_argument("--parts", nargs="+", default=["edits", *PARTS])
    options = parser.parse_args()
    faces = (*FACES, *sorted(options.faces.glob("*.jpg") if options.faces else ())[:9])
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for part in options.parts:
            folder = Path(temporary) / part
            folder.mkdir()
            made = edits(faces) if part == "edits" else PARTS[part](folder)
            found |= made
            options.output.write_text(json.dumps(found, indent=2) + "\n")
            print(f"{part}: {len(made)} digests", flush=True)
    if not options.against:
        return 0
    before = json.loads(options.against.read_text())
    names = [name for name in before if name in found or len(options.parts) > len(PARTS)]
    different = [name for name in names if before[name] != found.get(name)]
    print(f"{len(names) - len(different)} of {len(names)} digests are equal", *different, sep="\n  ")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main())
