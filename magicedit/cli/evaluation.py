"""`magicedit evaluate` and `magicedit compare`."""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicedit.cli import common
from magicedit.errors import MagicEditError
from magicedit.files import read_text, shown

if TYPE_CHECKING:
    from magicedit.evaluation.editors import Editor, Entrant, PictureFolder
    from magicedit.evaluation.protocol import Protocol, Variant
    from magicedit.models.folder import ModelFolder

EVALUATE_EXAMPLES = """\
examples:
  magicedit evaluate --editor mini --protocol table1-small --data PEOPLE -o REPORT/
  magicedit evaluate --editor mini --editor warp --editor copy --protocol control --data PEOPLE -o REPORT/
  magicedit evaluate --editor theirs=pictures:made/manifest.csv --protocol table1 --data PEOPLE -o REPORT/
  magicedit evaluate --editor mymodule:my_editor --protocol table1-small --data PEOPLE -o REPORT/
  magicedit evaluate --runs RUNS/ --protocol table3 --data PEOPLE -o REPORT/
  magicedit evaluate --runs RUNS/ --editor mini --editor warp --protocol families --data PEOPLE -o REPORT/
  magicedit evaluate --editor mini --protocol table1-small --data PEOPLE -o REPORT/ --labels openface.csv

PEOPLE has one folder of photographs per person, or is a dataset of `magicedit prepare`. REPORT/report.html is
one file to open. Interrupted runs resume; editors can be added later.
An editor is mini, a pipeline folder, a hub id, copy (returns the photograph), warp (moves landmarks, learned
nothing), pictures:MANIFEST.csv (columns identity, request, picture), or module:name, a Python callable
(photo, au_delta, seed) -> pixels. NAME=EDITOR gives it a name of its own.
"""

COMPARE_EXAMPLES = """\
examples:
  magicedit compare BEFORE/ AFTER/ -o DIFFERENCE/
  magicedit compare REPORT/ REPORT/ --editor-a warp --editor-b mini -o DIFFERENCE/
"""


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    summary = "measure editors by a protocol and write a report"
    evaluate = add_command("evaluate", summary, run_evaluate, EVALUATE_EXAMPLES)
    common.add_output_option(evaluate, "REPORT", "folder to write")
    what = evaluate.add_argument_group("what to evaluate")
    what.add_argument(
        "--editor", action="append", default=[], metavar="EDITOR", help="what to evaluate; several: again"
    )
    what.add_argument(
        "--runs",
        type=common.path_of,
        metavar="RUNS",
        help="folder of trained pipelines, for protocols that compare variants (table2 to table4, families)",
    )
    names = "table1, table1-small, table2, table3, table4, families, control, beyond, or a YAML file"
    what.add_argument("--protocol", required=True, metavar="NAME", help=names)
    whom = evaluate.add_argument_group("on whom")
    whom.add_argument(
        "--data",
        type=common.path_of,
        required=True,
        metavar="PEOPLE",
        help="photographs of the people to edit",
    )
    whom.add_argument("--identities", metavar="A,B", help="only these people, or @FILE with one per line")
    whom.add_argument(
        "--attributes",
        type=common.path_of,
        metavar="CSV",
        help="table with the column identity and groups such as gender (default: attributes.csv in PEOPLE)",
    )
    of_pictures = "AU labels of REPORT/pictures by OpenFace, py-feat or LibreFace"
    common.add_labels_options(evaluate.add_argument_group("a further scorer"), of_pictures)
    models = evaluate.add_argument_group("the models")
    models.add_argument("--guidance", type=float, metavar="S", help="guidance scale of the models")
    models.add_argument("--steps", type=int, metavar="N", help="denoising steps of the models")
    models.add_argument(
        "--device",
        metavar="D",
        help="device of the models: cpu, cuda, mps (default: the CPU for embedded ones, else the best)",
    )
    work = evaluate.add_argument_group("work and output")
    work.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    work.add_argument("--retry-failed", action="store_true", help="repeat edits that failed")
    common.add_json_option(work)

    compare = add_command(
        "compare", "put two reports side by side, edit by edit", run_compare, COMPARE_EXAMPLES
    )
    compare.add_argument("a", type=common.path_of, metavar="A", help="a report's folder")
    compare.add_argument("b", type=common.path_of, metavar="B", help="another report's folder, or the same")
    common.add_output_option(compare, "OUT", "folder to write")
    common.add_overwrite_option(compare, what="replace a comparison that is in OUT")
    compare.add_argument("--editor-a", metavar="NAME", help="which editor of A, if it has several")
    compare.add_argument("--editor-b", metavar="NAME", help="which editor of B, if it has several")
    common.add_json_option(compare)


def open_editor(
    spec: str, *, steps: int | None = None, guidance: float | None = None, device: str | None = None
) -> "Editor | PictureFolder":
    """Opens an editor that `--editor` names; MagicEditError subclasses where there is none."""
    from magicedit.baselines import WarpEditor, copy
    from magicedit.editor import ExpressionEditor
    from magicedit.evaluation.editors import ModelEditor, PictureFolder, entry_point

    if spec == "copy":
        return copy
    if spec == "warp":
        return WarpEditor()
    if spec.startswith("pictures:"):
        return PictureFolder(spec.removeprefix("pictures:"))
    if _is_code(spec):
        return entry_point(spec)
    editor = ExpressionEditor.from_pretrained(spec, device=device)
    return ModelEditor(editor, steps=steps, guidance=guidance)


def _is_code(spec: str) -> bool:
    """Whether an editor is `module:name`, and not a model whose folder has a colon in its name."""
    return ":" in spec and not spec.startswith("pictures:") and not os.path.isdir(spec)


def entrants(args: argparse.Namespace, protocol: "Protocol") -> list["Entrant"]:
    """Returns the editors of `--editor`, and the protocol's variants among `--runs`."""
    from magicedit.evaluation.editors import Entrant
    from magicedit.models.folder import ModelFolder

    if bool(protocol.variants) != (args.runs is not None):
        raise MagicEditError(
            f"{protocol.name} compares trained variants: name their folder with --runs RUNS"
            if protocol.variants
            else f"{protocol.name} has no variants to look for in --runs; name editors with --editor"
        )
    if not args.editor and not protocol.variants:
        raise MagicEditError("name what to evaluate: --editor mini, for example")
    if args.guidance is not None and any(variant.guidance is not None for variant in protocol.variants):
        raise MagicEditError(f"{protocol.name} sets the guidance of its variants; leave --guidance out")
    found = []
    if args.runs is not None and not any((args.runs / variant.run).is_dir() for variant in protocol.variants):
        names = ", ".join(dict.fromkeys(variant.run for variant in protocol.variants))
        raise MagicEditError(f"--runs {args.runs} has none of the folders of {protocol.name}: {names}")
    for variant in protocol.variants:
        folder = args.runs / variant.run
        settings = {"run": variant.run, "train": variant.train}
        if ModelFolder.find(folder).has_index:
            is_a = ModelFolder.find(folder).pipeline_class()
            if variant.pipeline not in (None, is_a):
                raise MagicEditError(
                    f"{folder} holds a {is_a}; expected the {variant.pipeline} of {variant.name}"
                )
            guidance = args.guidance if variant.guidance is None else variant.guidance
            about = _training(args.runs, variant) if protocol.has_emotions else {}
            found.append(_entrant(args, variant.name, str(folder), settings, guidance, about))
        else:
            found.append(Entrant(variant.name, None, settings))
    for text in args.editor:
        name, is_named, spec = text.partition("=")
        name, spec = (name, spec) if is_named and "/" not in name else (short_name(text), text)
        found.append(_entrant(args, name, spec, {"editor": short_name(spec)}, args.guidance))
    return found


def _training(runs: Path, variant: "Variant") -> dict[str, Any]:
    """Facts of how a variant was trained, its first part included; MagicEditError without the run's files."""
    from magicedit.evaluation.training import training_of

    try:
        found = training_of(runs / variant.run)
        if variant.first is not None:
            found["first"] = training_of(runs / variant.first["run"])
            found["minutes"] = round(found["minutes"] + found["first"]["minutes"], 1)
            found["note"] = f"with {variant.first['run']}"
    except (OSError, ValueError, KeyError) as error:
        raise MagicEditError(
            f"{runs / variant.run} is no whole run of train/train.py: {error}; train it to its end"
        ) from error
    return {"training": found}


def _entrant(
    args: argparse.Namespace,
    name: str,
    spec: str,
    settings: dict[str, Any],
    guidance: float | None,
    about: Mapping[str, Any] | None = None,
) -> "Entrant":
    from magicedit.evaluation.editors import Entrant
    from magicedit.models.folder import ModelFolder

    sampling = {"steps": args.steps, "guidance": guidance}
    if not _is_code(spec) and spec not in ("copy", "warp") and not spec.startswith("pictures:"):  # of models
        settings |= {key: value for key, value in sampling.items() if value is not None}
    if (content := fingerprint(spec)) is not None:
        settings["fingerprint"] = content
    folder = ModelFolder.find(spec)
    if folder.has_index:
        about = dict(about or {}) | {"resolution": folder.resolution, "parameters": parameters(folder)}
    opening = functools.partial(open_editor, spec, device=args.device, **sampling)
    return Entrant(name, opening, settings, about or {})


def parameters(folder: "ModelFolder") -> int:
    """Number of values in the weights of a model's folder, by the headers of its safetensors files."""
    from magicedit.models.checks import parameters_of

    return sum(parameters_of(folder.component(name)) for name in folder.components)


def fingerprint(spec: str) -> str | None:
    """Returns the digest of a manifest or a model's files; None for everything else."""
    from magicedit.models.folder import ModelFolder, digest_of_files

    kind, _, rest = spec.partition(":")
    if kind == "pictures":
        return digest_of_files([Path(rest)]) if os.path.isfile(rest) else None
    return ModelFolder.find(spec).fingerprint


def short_name(spec: str) -> str:
    """Returns the last name of a folder or file; hub ids and everything else unchanged."""
    from magicedit.embedded import model_origin

    kind, colon, rest = spec.partition(":")
    if colon and kind == "pictures":
        return f"pictures:{Path(rest).name}"
    return Path(spec).resolve().name if model_origin(spec) == "folder" else spec


def run_evaluate(args: argparse.Namespace) -> int:
    from magicedit.evaluation import evaluate, headline_table, load_protocol, plain_command

    protocol = load_protocol(args.protocol)
    identities = None
    if args.identities is not None:
        identities = common.chosen_people("--identities", args.identities, "take everybody")
    chosen = entrants(args, protocol)
    common.say(f"{protocol.name}: {', '.join(entrant.name for entrant in chosen)}")
    summary = evaluate(
        chosen,
        protocol,
        args.data,
        args.output,
        identities=identities,
        **common.options(args, "attributes", "labels", "labels_scale", "jobs", "retry_failed"),
        command=plain_command("magicedit", sys.argv[1:]),
        progress=common.shows_bars(args),
    )
    if args.json:
        common.print_json(summary)
        return 0
    print(headline_table(summary))
    failed = sum(editor.get("failed", 0) for editor in summary["editors"].values())
    if failed:
        common.warn(f"{failed} edits failed; the report says why")
    print(shown(args.output / "report.html"))
    return 0


def run_compare(args: argparse.Namespace) -> int:
    from magicedit.evaluation import compare
    from magicedit.imaging import writable

    if os.path.isdir(args.output):
        writable(args.output / "compare.html", exist_ok=args.overwrite)
    result = compare(args.a, args.b, args.output, args.editor_a, args.editor_b)
    if args.json:
        common.print_json(result)
    else:
        print(read_text(args.output / "compare.md"))
        print(shown(args.output / "compare.html"))
    return 0
