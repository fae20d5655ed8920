"""`magicedit prepare`, `shards`, `train` and `convert`."""

import argparse
import dataclasses
import re
from collections.abc import Callable
from typing import Any

from magicedit.cli import common
from magicedit.errors import ModelError
from magicedit.files import counted

PREPARE_EXAMPLES = """\
examples:
  magicedit prepare photos/ -o dataset/                      photos/ has one sub-folder per person
  magicedit prepare photos/ -o dataset/ --validation 0.1     one person in ten for validation
  magicedit prepare photos/ -o dataset/ --augment muscles    pairs even of people with one photograph
  magicedit prepare photos/ -o dataset/ --labels openface.csv --validation anna,ben
  magicedit prepare videos/ -o dataset/ --frames 24          frames that differ in expression
  magicedit prepare found/ -o dataset/ --identities cluster  who is who by the faces
  magicedit prepare AffectNet/ -o dataset/ --format affectnet
  magicedit prepare CelebA/ -o dataset/ --format celeba --size 128
"""

SHARDS_EXAMPLES = """\
example:
  magicedit shards dataset/ -o stream/ && magicedit train --train_data_dir stream/ ...
"""

CONVERT_EXAMPLES = """\
examples:
  magicedit convert MagicFace/ --base stable-diffusion-v1-5/ -o magicface-pipeline/
  magicedit convert my-lora/ -o my-model/                            adapters and their base as one pipeline
  magicedit convert my-lora/ --base stable-diffusion-v1-5/ -o my-model/   where the base is elsewhere now
"""


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    what = "turn a folder of photographs and videos into a training dataset"
    prepare = add_command("prepare", what, run_prepare, PREPARE_EXAMPLES)
    prepare.add_argument(
        "folder",
        type=common.path_of,
        metavar="FOLDER",
        help="photographs and videos, one sub-folder per person",
    )
    common.add_output_option(prepare, "DATASET", "folder to write")
    prepare.add_argument(
        "--format",
        choices=["affectnet", "celeba"],
        help="the folder is this dataset as released, with its emotions or attributes (default: one "
        "sub-folder per person)",
    )
    kept = prepare.add_argument_group("what is kept")
    kept.add_argument("--size", type=int, default=512, metavar="PX", help="side of the aligned crops (512)")
    kept.add_argument(
        "--frames",
        type=int,
        default=16,
        metavar="N",
        help="frames of each person of a video at most, spread over expressions (16)",
    )
    kept.add_argument(
        "--identities",
        default="folders",
        metavar="HOW",
        help="who is who: folders (default), a CSV file with columns file and identity, or cluster: by the "
        "faces (needs the extra evaluation)",
    )
    common.add_labels_options(
        prepare.add_argument_group("labels"), "AU labels by OpenFace, py-feat or LibreFace"
    )
    kept.add_argument(
        "--validation",
        metavar="IDS",
        help="people kept for validation: names joined by commas, @FILE with one per line, a share like 0.1",
    )
    warped = prepare.add_argument_group("warped variants")
    warped.add_argument(
        "--augment",
        choices=["muscles"],
        help="beside each training photograph, variants of it warped by a model of the face's muscles",
    )
    warped.add_argument("--variants", type=int, metavar="N", help="variants per photograph (4)")
    work = prepare.add_argument_group("work and output")
    work.add_argument(
        "--jobs", type=int, metavar="N", help="photographs measured at a time (1; with Ray one per core)"
    )
    common.add_engine_options(work)
    common.add_backend_option(work)
    work.add_argument("--force", action="store_true", help="measure and write again even if nothing changed")
    common.add_json_option(work)

    what = "write a dataset as WebDataset shards, which training streams"
    shards = add_command("shards", what, run_shards, SHARDS_EXAMPLES)
    shards.add_argument(
        "dataset", type=common.path_of, metavar="DATASET", help="what `magicedit prepare` wrote"
    )
    common.add_output_option(shards, "STREAM", "folder to write")
    shards.add_argument(
        "--shard-mb",
        type=int,
        default=64,
        metavar="MB",
        help="megabytes per shard; people are never split (64)",
    )
    common.add_json_option(shards)

    add_command("train", "train a model; flags as in `magicedit train --help`")  # parsed by `train/config.py`

    what = "turn the published MagicFace checkpoint, or LoRA adapters, into a whole pipeline folder"
    convert = add_command("convert", what, run_convert, CONVERT_EXAMPLES)
    convert.add_argument(
        "checkpoint",
        type=common.path_of,
        metavar="FOLDER",
        help="folder of a MagicFace checkpoint (denoising_unet/, ID_enc/) or of LoRA adapters from training",
    )
    convert.add_argument(
        "--base",
        metavar="SD_FOLDER",
        help="for MagicFace: Stable Diffusion 1.5 (VAE, text encoder, scheduler); for adapters: their base, "
        "where it is not the recorded folder",
    )
    convert.add_argument("--variant", metavar="NAME", help="files of the base's weights, such as fp16")
    common.add_output_option(convert, "PIPELINE_FOLDER", "folder to write")


def validation_choice(text: str | None) -> dict[str, Any]:
    """Returns `--validation` as keyword arguments of `prepare_dataset`."""
    if text is None:
        return {}
    if re.fullmatch(r"0?\.\d+", text):
        return {"validation_fraction": float(text)}
    return {"validation": common.chosen_people("--validation", text, "train on everybody")}


def run_prepare(args: argparse.Namespace) -> int:
    from magicedit.data import prepare_dataset

    report = prepare_dataset(
        args.folder,
        args.output,
        **common.options(
            args,
            *("size", "labels", "labels_scale", "backend", "augment", "variants", "jobs", "force"),
            *("identities", "frames"),
            *("engine", "address"),
        ),
        layout=args.format,
        progress=common.shows_bars(args),
        **validation_choice(args.validation),
    )
    for reject in report.rejected:
        common.warn(f"left out: {reject['source']}: {reject['reason']}")
    for entry in report.notes:
        if entry.get("kind") == "warning":
            common.warn(f"warning: {entry['source']}: {entry['note']}")
    if args.json:
        common.print_json(report.to_json())
        return 0
    for split, count in report.photographs.items():
        people = counted(report.identities[split], "person", "people")
        pairs = counted(report.pairs[split], "pair")
        print(f"{split:<10} {counted(count, 'photograph')} of {people}, {pairs}")
    if report.variants:
        print(f"{'':<10} and {counted(report.variants, 'warped variant')} of each training photograph")
    done = "unchanged" if report.unchanged else f"{report.measured} measured, {report.reused} as before"
    print(f"{report.output}  ({done}, {len(report.rejected)} left out, {report.seconds:.1f} s)")
    return 0


def run_shards(args: argparse.Namespace) -> int:
    from magicedit.data.webdataset_shards import write_shards

    size = args.shard_mb * 10**6
    report = write_shards(args.dataset, args.output, shard_bytes=size, progress=common.shows_bars(args))
    if args.json:
        common.print_json(dataclasses.asdict(report))
        return 0
    for split, count in report.shards.items():
        photographs = counted(report.photographs[split], "photograph")
        people = counted(report.identities[split], "person", "people")
        print(f"{split:<10} {counted(count, 'shard')}, {photographs} of {people}")
    print(f"{report.output}  ({'unchanged' if report.unchanged else 'written'})")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    from magicedit.models import convert, merge
    from magicedit.models.folder import ModelFolder

    found = ModelFolder.find(args.checkpoint)
    if found.is_adapters:
        merge(args.checkpoint, args.output, base=args.base, variant=args.variant)
    elif args.base is None:
        raise ModelError(f"{args.checkpoint} holds no LoRA adapters; for a MagicFace checkpoint, add --base")
    else:
        convert(args.checkpoint, base=args.base, output=args.output, variant=args.variant)
    print(args.output)
    return 0
