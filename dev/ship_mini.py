"""Puts the result of a training run into the package as the embedded model, with its card.

    python dev/ship_mini.py RUN DATASET [--earlier FILE[:REMARK] ...] [--earlier-card CARD] [--steps N]

RUN: output folder of train/train.py, or of dev/calibrate_units.py with the run's train_config.json beside it;
DATASET: what it was trained on; FILE: train_config.json of the runs that it was started from, in their order,
where it was; CARD: the card of the weights that it was started from, whose commands come first. Measure the
weights after the first run of this script (benchmarks/mini_quality.py) and run it again: the card carries the
figures of that file.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

from magicedit.data.pairs import PairDataset
from magicedit.hub.cards import TrainingData, model_card
from magicedit.models import write_graphs
from magicedit.train.config import TrainConfig
from magicedit.train.publish import command_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from mini_quality import checks_table_of, table_of  # noqa: E402

MINI = ROOT / "magicedit" / "pretrained" / "mini"
RESULTS = ROOT / "benchmarks" / "mini_quality.json"

SOURCES = (  # name, how its identities are told apart, licence, citation
    (
        "Face Research Lab London Set",
        str.isdigit,
        "CC BY 4.0",
        "DeBruine, L., & Jones, B. (2017). Face Research Lab London Set. figshare. "
        "doi:10.6084/m9.figshare.5047666.v5",
    ),
    ("Four photographs of Lisa DeBruine", "lisa".__eq__, "CC0", "Lisa DeBruine"),
    (
        "Synthetic Faces High Quality - Text 2 Image (SFHQ-T2I): portraits of nobody",
        lambda identity: identity.startswith("syn-"),
        "MIT",
        "Copyright (c) 2024 David Beniaguev. Beniaguev, D. (2024). Synthetic Faces High Quality - Text 2 "
        "Image (SFHQ-T2I) Dataset. doi:10.34740/kaggle/dsv/9548853",
    ),
    (
        "Young Adult White Faces with Manipulated Versions (unmanipulated photographs)",
        lambda identity: True,
        "CC BY 4.0",
        "DeBruine, L., & Jones, B. (2017). Young Adult White Faces with Manipulated Versions. figshare. "
        "doi:10.6084/m9.figshare.4220517.v1",
    ),
)


def training_data(pairs: PairDataset) -> tuple[list[TrainingData], dict[str, list[str]]]:
    """Sources with their counts, and the identities of each."""
    photographs = dict.fromkeys((name for name, *_ in SOURCES), 0)
    identities: dict[str, set[str]] = {name: set() for name in photographs}
    for record in pairs.records:
        name = next(name for name, belongs, *_ in SOURCES if belongs(record.identity))
        photographs[name] += 1
        identities[name].add(record.identity)
    data = [
        TrainingData(name, photographs[name], len(identities[name]), licence, citation)
        for name, _, licence, citation in SOURCES
    ]
    return data, {name: sorted(found) for name, found in identities.items()}


def configured(settings: dict) -> dict:
    """Arguments of TrainConfig from a train_config.json, with neutral names in place of folders, which say
    nothing to others; settings that have gone since are left out."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {name: value for name, value in settings.items() if name in known}
    settings["block_out_channels"] = tuple(settings["block_out_channels"])
    settings["resume_from_checkpoint"] = None
    if settings["pretrained_model_name_or_path"] is not None:
        settings["pretrained_model_name_or_path"] = "EARLIER_RUN"
        settings["refine"] = True
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--earlier", nargs="*", default=[], metavar="FILE[:REMARK]")
    parser.add_argument("--earlier-card", type=Path, metavar="CARD")
    parser.add_argument("--remark", help="on the last command, where settings changed on the way")
    parser.add_argument("--guidance", type=float, help="default guidance of the embedded model")
    parser.add_argument("--steps", type=int, help="default inference steps of the embedded model")
    args = parser.parse_args()

    MINI.mkdir(parents=True, exist_ok=True)
    for name in ("unet", "reference_unet", "scheduler"):
        shutil.copytree(args.run / name, MINI / name, dirs_exist_ok=True)
    index = json.loads((args.run / "model_index.json").read_text())
    index |= {"default_guidance_scale": args.guidance} if args.guidance is not None else {}
    index |= {"default_steps": args.steps} if args.steps is not None else {}
    (MINI / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    write_graphs(MINI)

    settings = configured(json.loads((args.run / "train_config.json").read_text()))
    pairs = PairDataset(args.dataset, resolution=settings["resolution"], warped=1.0)
    data, identities = training_data(pairs)
    held_out = PairDataset(args.dataset, split="validation", resolution=settings["resolution"], warped=1.0)
    note = (
        "The photographs of people are frontal, in studio light; the synthetic portraits show all adult "
        "ages and skin tones, beards, glasses, hats, and light from anywhere. Identities seen: "
    )
    note += "; ".join(
        f"{name}: {', '.join(found)}" for name, found in identities.items() if "synthetic" not in name.lower()
    )
    note += ". Held out for validation: " + ", ".join(sorted({r.identity for r in held_out.records})) + "."
    measured = json.loads(RESULTS.read_text()) if RESULTS.is_file() else None
    how = "Not measured yet."
    if measured:
        how = (
            f"On the held-out identities, {measured['date']}, by `{measured['command']}`: changes on the "
            "0 to 5 scale by MediaPipe's blendshapes (which labelled the real pairs) and by the movement of "
            "landmarks (which did not), L2 distance of dlib's face descriptors. Blind: that scorer does not "
            f"respond to this unit on any face.\n\n{table_of(measured['summary'])}\n\n"
            f"Against what was wanted:\n\n{checks_table_of(measured['checks'])}"
        )
    commands = []
    if args.earlier_card is not None:
        training = args.earlier_card.read_text().split("## Training\n")[1]
        commands.append(training.split("```sh\n")[1].split("\n```")[0])
    for earlier in args.earlier:
        path, _, remark = earlier.partition(":")
        commands += [f"# {remark}"] if remark else []
        commands.append(command_of(TrainConfig(**configured(json.loads(Path(path).read_text())))))
    commands += [f"# {args.remark}"] if args.remark else []
    commands.append(command_of(TrainConfig(**settings)))
    card = model_card(
        "mini",
        license="apache-2.0",
        description="`mini` is the small model inside the package: two UNets of 7 million parameters each on "
        f"4 x 4 patches of a {settings['resolution']} px crop, that answer with a flow, a mask and paint. "
        "It was trained from nothing. A zero vector means keep. What an opened mouth shows is not its own: "
        "the package composes it of real mouths (eight of them embedded, insides alone, from the Face "
        "Research Lab London Set); the pipeline alone shows a dark one.",
        data=data,
        data_note=note,
        command="\n".join(commands),
        results_note=how,
        resolution=settings["resolution"],
    )
    (MINI / "README.md").write_text(card)
    size = sum(file.stat().st_size for file in MINI.rglob("*") if file.is_file())
    print(f"{MINI.relative_to(ROOT)}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
