"""Shared by several commands: options, names of people, loading an editor, and printing."""

import argparse
import contextlib
import gc
import json
import logging
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicedit import files
from magicedit.errors import DatasetError, ImageError, MagicEditError, OutputError, needs_whole

if TYPE_CHECKING:
    from magicedit.editor import EditResult, ExpressionEditor
    from magicedit.imaging import Photo
    from magicedit.request import EditRequest


LARGEST_LIST = 100_000_000  # bytes of a file of names
PICTURES, MOST_PICTURES = 9, 1000  # of a strip or an animation
MAX_EDITS = 4  # of a closed loop
PIPE = Path("-")  # stdin or stdout in place of a file, see `file_or_pipe`

logger = logging.getLogger(__name__)


def say(message: str) -> None:
    """Tells people on stderr what happens, unless --quiet; stdout is for results."""
    logger.info(message)


def warn(message: str) -> None:
    """Tells people on stderr what they must know of the result, also with --quiet."""
    logger.warning(message)


class _Stderr(logging.Handler):
    """Prints to the stderr of the moment, which tests and `redirect_stderr` exchange."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


@contextlib.contextmanager
def telling(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Prints messages for people in the block: by --quiet only warnings, by --verbose also what the package
    logs, with the seconds since the start."""
    package, handler = logging.getLogger("magicedit"), _Stderr()
    if verbose:
        handler.setFormatter(logging.Formatter("{relativeCreated:8.0f} ms  {message}", style="{"))
    before = package.level, logger.level, package.propagate
    package.setLevel(logging.DEBUG if verbose else logging.WARNING)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    package.propagate = False
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before[0])
        logger.setLevel(before[1])
        package.propagate = before[2]


def shows_bars(args: argparse.Namespace) -> bool:
    """Whether to show progress bars: on a terminal, unless --quiet."""
    return sys.stderr.isatty() and not args.quiet


def print_json(content: dict[str, Any]) -> None:
    """Prints an object; what the terminal's encoding lacks is escaped."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(content, indent=2, allow_nan=False)
    print(text)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_labels_options(parser: argparse._ActionsContainer, what: str) -> None:
    parser.add_argument("--labels", type=path_of, metavar="CSV", help=what)
    scale = "number for full intensity, if the file does not state it: 1 or 5"
    parser.add_argument("--labels-scale", type=float, metavar="MAX", help=scale)


def add_backend_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend",
        choices=("mediapipe", "insightface"),
        default="mediapipe",
        help="face detector: mediapipe (default) or insightface",
    )


def add_engine_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: this machine; ray: Ray Data, on its cores or on a cluster (default: local)",
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="with --engine ray: a running cluster, whose nodes see the folders under the same paths; auto: "
        "that of this machine",
    )


def path_of(text: str) -> Path:
    """Returns the path of an option; ArgumentTypeError for an empty text, which pathlib takes for "."."""
    if not text:
        raise argparse.ArgumentTypeError("expected a file or folder, got an empty text; is a variable unset?")
    return Path(text)


def file_or_pipe(text: str) -> Path:
    """Returns a path; only a bare "-" is PIPE, and "./-" a file, although pathlib holds them to be equal."""
    return path_of(text) if text == "-" or Path(text) != PIPE else Path.cwd() / text


def add_output_option(parser: argparse.ArgumentParser, metavar: str, what: str) -> None:
    parser.add_argument("-o", "--output", type=file_or_pipe, required=True, metavar=metavar, help=what)


def add_face_option(
    parser: argparse._ActionsContainer,
    default: str,
    what: str = "which faces",
    *,
    flag: str = "--face",
    several: bool = False,
    largest: str = "the largest",
) -> None:
    """Adds the choice of one face, whose value is as in `EditRequest`.

    several: also allow "all". largest: meaning of face 1, for the help.
    """
    several = several or default == "all"
    words, expected = (("all", "largest"), "") if several else (("largest",), "one face, ")
    parser.add_argument(
        flag,
        type=lambda text: face_choice(text, *words, expected=expected),
        default=default,
        metavar="all|largest|N" if several else "largest|N",
        help=f"{what}; N counts from 1, {largest} (default: {default})",
    )


def add_request_options(parser: argparse._ActionsContainer, what_set: str) -> None:
    """Adds the requested units and emotion; `what_set` is the help of --set."""
    parser.add_argument("--au", metavar="AU12=+3,AU4=-1", help="variations in intensity steps, -10 to 10")
    parser.add_argument("--set", metavar="AU12=0", help=what_set)
    parser.add_argument(
        "--emotion", metavar="NAME[:STRENGTH]", help="one of the six basic emotions; adds to --au"
    )


def add_expression_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expression",
        metavar="FILE",
        help="apply a saved expression: FILE.yaml of `measure --save`, or a row of a table, FILE.csv:ROW",
    )
    add_strength_option(parser, "--expression")
    parser.add_argument(
        "--neutral",
        action="store_true",
        help="remove the measured expression, units of 0.5 and more; --au starts from there",
    )


def add_strength_option(parser: argparse._ActionsContainer, of: str) -> None:
    what = f"share of {of} to apply (default: 1)"
    parser.add_argument("--strength", type=float, default=1.0, metavar="S", help=what)


def add_only_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--only",
        metavar="REGIONS",
        help="such as eyes,brows: brow, eye, cheek, nose, lip, jaw, mouth (lip and jaw), gaze, head "
        "(default: all but gaze and head)",
    )


def add_output_group(
    parser: argparse.ArgumentParser, *flags: str, what: str = "replace OUT if it exists"
) -> None:
    """flags, what: further names of --overwrite, and its help."""
    out = parser.add_argument_group("output")
    add_overwrite_option(out, *flags, what=what)
    add_mark_options(out)
    add_json_option(out)


def add_overwrite_option(
    parser: argparse._ActionsContainer, *flags: str, what: str = "replace OUT if it exists"
) -> None:
    parser.add_argument("--overwrite", *flags, action="store_true", help=what)


def add_mark_options(parser: argparse._ActionsContainer) -> None:
    """Adds what an output says of itself, see `magicedit.provenance`."""
    what = "do not mark the result as edited, see `magicedit verify`"
    parser.add_argument("--no-mark", dest="mark", action="store_false", help=what)
    what = "leave out where the photograph was taken, serial numbers and the owner's name"
    parser.add_argument("--strip-private", action="store_true", help=what)


def expression_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of `add_expression_options` as arguments of `ExpressionEditor.edit`."""
    from magicedit.expression import Expression

    expression = None if args.expression is None else Expression.read(args.expression)
    return {"expression": expression, "strength": args.strength, "neutral": args.neutral}


def add_loop_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target-tolerance",
        type=float,
        metavar="T",
        help="measure, correct and repeat until all units are this close, in intensity steps, such as 0.3",
    )
    parser.add_argument(
        "--max-edits",
        type=int,
        default=MAX_EDITS,
        metavar="N",
        help=f"maximum number of edits (default: {MAX_EDITS})",
    )


def loop_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of `add_loop_options` as arguments of `ExpressionEditor.edit`."""
    return {"tolerance": args.target_tolerance, "max_edits": args.max_edits}


def add_teeth_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="PHOTO",
        help="another photograph of the person: its teeth show where the mouth opens, and lips smile as in "
        "it; repeatable",
    )
    parser.add_argument(
        "--teeth",
        type=lambda text: word_or_number(text, "none"),
        metavar="N|none",
        help="a donor's teeth, by number, or none (default: by the width of the mouth and the seed)",
    )


def sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns a command's sampling options as arguments of the editor's methods that make one picture."""
    given = vars(args) | {"references": tuple(getattr(args, "reference", ()))}
    fields = ("steps", "guidance", "quality", "noise_level", "seed", "teeth", "references")
    return {name: given[name] for name in fields if name in given}


def strip_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns them as arguments of the methods that make several pictures, whose number is their `steps`."""
    given = sampling_arguments(args)
    return {"inference_steps": given.pop("steps")} | given


def options(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Returns options as arguments of the same names."""
    return {name: getattr(args, name) for name in names}


def check_settings(args: argparse.Namespace) -> None:
    """Raises MagicEditError where an option of the model, the mouth or the closed loop is out of range, or
    lacks the option that it qualifies."""
    from magicedit.editor.settings import MouthSettings
    from magicedit.request import EditRequest

    of_rows = getattr(args, "manifest", None) is not None  # which may name tolerances and expressions
    loops = of_rows or "max_edits" not in args or args.target_tolerance is not None
    if not loops and args.max_edits != MAX_EDITS:
        raise MagicEditError("--max-edits is of --target-tolerance; add that, or leave it out")
    if "expression" in args and args.expression is None and args.strength != 1 and not of_rows:
        raise MagicEditError(
            "--strength is a share of --expression; add that, or ask for less by --au or --emotion NAME:S"
        )
    given = sampling_arguments(args) | ({"strength": args.strength} if "strength" in args else {})
    request = EditRequest(**given, **(loop_arguments(args) if "max_edits" in args else {}))
    MouthSettings(request.teeth)


def edit_request(args: argparse.Namespace) -> "EditRequest":
    """Returns the request of `magicedit edit`; MagicEditError where it is invalid for every photograph."""
    from magicedit.models.folder import ModelFolder
    from magicedit.request import EditRequest

    return EditRequest(
        add=args.au,
        set=args.set,
        emotion=args.emotion,
        face=args.face,
        **expression_arguments(args),
        **loop_arguments(args),
        measure=args.measure,
        **sampling_arguments(args),
        names=ModelFolder.find(args.model).editable,
    )


def warn_of_copies(copies: int, of: int) -> None:
    """Warns about empty requests, usually a forgotten option."""
    if copies:
        which = "" if of == 1 else f" in {copies} of {of} edits"
        warn(
            f"warning: nothing is requested{which} (--au, --set, --emotion, --expression, --neutral): the "
            "result is a copy"
        )


def write_edit(args: argparse.Namespace, result: "EditResult", photo: "Photo") -> dict[str, Any]:
    """Writes an edit to --output and tells what it lacks; returns that for the JSON object.

    Raises OutputError as `EditResult.save`.
    """
    lost = result.write(args.output, overwrite=args.overwrite, forbid=args.photo)
    if lost:
        warn(f"warning: {photo.source} also holds what the result does not: {', '.join(lost)}")
    if args.face == "all":
        tell_left_alone(result.left_alone)
    return {"faces": faces_json(result), "left_alone": result.left_alone, "lost": list(lost)}


def tell_left_alone(count: int) -> None:
    """Prints how many small faces were ignored beside a large one."""
    if count:
        faces = files.counted(count, "small face")
        say(f"{faces} left alone: far smaller than the largest; crop the photograph to work on them")


def add_model_options(
    parser: argparse._ActionsContainer, *, steps: bool = True, otherwise: str = "the model's own"
) -> None:
    """steps: whether the number of denoising steps can be chosen, whose default is `otherwise`."""
    add_model_option(parser)
    add_backend_option(parser)
    parser.add_argument(
        "--guidance", type=float, metavar="S", help="guidance scale (default: the model's own)"
    )
    parser.add_argument(
        "--quality",
        choices=("exact", "balanced", "fast", "live"),
        help="trades quality for speed, see docs/speed.md (default: the model's own settings)",
    )
    parser.add_argument(
        "--noise-level",
        type=float,
        metavar="X",
        help="0 to 1, how far a model that inverts photographs to noise goes (default: the model's own)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the initial noise (default: 0)"
    )
    add_device_options(parser)
    parser.add_argument(
        "--fast",
        action="store_true",
        help="first find this machine's fastest memory format and, on a GPU, dtype and compilation",
    )
    if steps:
        what = f"denoising steps of the model (default: {otherwise})"
        parser.add_argument("--steps", type=int, metavar="N", help=what)


def add_pictures_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--pictures", type=int, metavar="N", help=f"number of pictures ({PICTURES})")
    # The name of --steps until that meant one thing in all commands
    parser.add_argument("--inference-steps", dest="steps", type=int, help=argparse.SUPPRESS)


def pictures_of(args: argparse.Namespace) -> int:
    """Returns the number of pictures of a strip, and warns who may have meant it by --steps.

    Raises MagicEditError where there are fewer than 2, or more than MOST_PICTURES.
    """
    if args.pictures is None and args.steps is not None:
        warn(f"warning: --steps is of the model; --pictures sets the number of pictures ({PICTURES})")
    if args.pictures is not None and not 2 <= args.pictures <= MOST_PICTURES:
        raise MagicEditError(f"--pictures must be from 2 to {MOST_PICTURES}, got {args.pictures}")
    return PICTURES if args.pictures is None else args.pictures


def add_model_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--model",
        default="mini",
        metavar="MODEL",
        help="mini (default), mini-live (one step), a pipeline folder, a hub id (ID@REVISION)",
    )


def add_device_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--device",
        metavar="D",
        help="cpu, cuda, cuda:1, mps (default: the CPU for embedded models, else the best present)",
    )
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, help="data type of the weights (default: float32)")


def check_photo_output(args: argparse.Namespace, photo: "Photo") -> None:
    """Raises OutputError, before any work, where --output exists or cannot hold an edit of the photograph."""
    from magicedit.imaging import check_output
    from magicedit.provenance import without_place

    written = without_place(photo) if args.strip_private else photo
    check_output(
        args.output, overwrite=args.overwrite, exist_ok=args.overwrite, forbid=args.photo, photo=written
    )


def open_input(place: Path) -> "Photo":
    """Opens the photograph of a file, or of stdin for "-".

    Raises ImageError as `imaging.open_photo`, and where stdin is a terminal.
    """
    from magicedit.imaging import open_photo
    from magicedit.provenance import renamed

    if place != PIPE:
        return open_photo(place)
    if sys.stdin.isatty():
        raise ImageError("- reads a photograph from stdin, which is a terminal; pipe a file into it")
    with tempfile.TemporaryDirectory(prefix="magicedit-") as folder:
        copy = Path(folder, "stdin")  # a file, whose digest results tell
        with open(copy, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        try:
            return renamed(open_photo(copy), copy.name)
        except ImageError as error:
            raise ImageError(str(error).replace(str(copy), copy.name)) from error


@contextlib.contextmanager
def written_output(args: argparse.Namespace, format: str | None) -> Iterator[Path]:
    """Yields the name of --output for people. For "-" that is stdout: in the block --output is a file, whose
    content is written there afterwards, and what is printed goes to stderr.

    format: of that file, as a suffix without a dot; None: png.
    """
    if args.output != PIPE:
        yield args.output
        return
    if sys.stdout.isatty():
        raise OutputError("-o - writes the picture to stdout, which is a terminal; pipe it, or name a file")
    with tempfile.TemporaryDirectory(prefix="magicedit-") as folder:
        args.output = Path(folder, f"stdout.{format or 'png'}")
        with contextlib.redirect_stdout(sys.stderr):
            yield Path("stdout")
        with open(args.output, "rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.flush()


def word_or_number(text: str, *words: str, expected: str = "", first: int = 0) -> str | int:
    """Returns one of the words, or a number from `first`; ArgumentTypeError for anything else."""
    if text in words:
        return text
    if text.isdecimal() and len(text) < 10 and int(text) >= first:
        return int(text)
    known = ", ".join(f'"{word}"' for word in words)
    got = repr(files.shown(text))
    raise argparse.ArgumentTypeError(f"expected {expected}{known} or a number from {first}, got {got}")


def face_choice(text: str, *words: str, expected: str = "") -> str | int:
    """Returns one of the words, or the index from 0 of a face, whose number counts from 1.

    Raises ArgumentTypeError for anything else.
    """
    if text == "0":
        raise argparse.ArgumentTypeError("faces are counted from 1, the largest, got '0'")
    face = word_or_number(text, *words, expected=expected, first=1)
    return face if isinstance(face, str) else face - 1


def chosen_people(option: str, text: str, otherwise: str) -> list[str]:
    """Returns names joined by commas, or those of @FILE, one a line.

    option, otherwise: for messages: such as "--identities", and the effect of leaving it out.
    Raises DatasetError where the file cannot be read, or nobody is named.
    """
    if text.startswith("@"):
        try:
            names = files.read_text(text[1:], DatasetError, limit=LARGEST_LIST).split("\n")
        except DatasetError as error:
            name = files.shown(text[1:])
            raise DatasetError(f"cannot read the names of {option} in {name}: {error}") from error
    else:
        names = text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise DatasetError(f"{option} {files.shown(text)} names nobody; leave it out to {otherwise}")
    return names


@contextlib.contextmanager
def loading(args: argparse.Namespace) -> Iterator[None]:
    """Suspends garbage collection, a fifth of the time of imports, and exempts what was loaded, if the
    process is ours alone."""
    collects = args.own_process and gc.isenabled()
    if collects:
        gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.enable()


def check_model(args: argparse.Namespace) -> None:
    """Raises MagicEditError where the model or the device cannot be used, as far as that is known before
    anything is loaded or fetched."""
    from magicedit.models.face_model import runs_as_graphs, usable_device
    from magicedit.models.folder import ModelFolder

    found = ModelFolder.find(args.model)
    found.check_name()
    if found.origin == "folder" and found.components:  # models of other families may have none
        found.check()
    if args.device is not None and not runs_as_graphs(found, args.device, args.dtype):
        say(f"looking for the device {args.device}")  # by torch, which takes seconds
        with needs_whole(f"the device {args.device}"):
            usable_device(args.device)


def load_editor(args: argparse.Namespace, *chosen: "tuple[Photo, str | int]") -> "ExpressionEditor":
    """Returns the editor of a command's options.

    chosen: photographs and the faces of them that will be asked for, which are looked for before the model is
        loaded.

    Raises MagicEditError as `check_settings`, `check_model`, `ExpressionEditor.from_pretrained` and
    `FaceFinder.choose`.
    """
    from magicedit.faces.occlusion import prepare_colours

    check_settings(args)
    check_model(args)
    if chosen:
        say(f"looking for faces in {files.shown(chosen[0][0].source.name)}")
    threading.Thread(target=prepare_colours).start()
    with loading(args):
        from magicedit.editor import ExpressionEditor
        from magicedit.editor.finding import FaceFinder
        from magicedit.faces import load_backend

        finder = FaceFinder(load_backend(args.backend))
        for photo, face in chosen:
            found = finder.choose(photo, face)
            logger.debug("found faces %s", ", ".join(f"{index + 1}" for index in found.indices))
        for reference in getattr(args, "reference", ()):
            finder.one(reference)
        say(f"loading {args.model}")
        editor = ExpressionEditor.from_pretrained(
            args.model,
            device=args.device,
            dtype=args.dtype,
            backend=finder,
            mark=getattr(args, "mark", True),
            strip_private=getattr(args, "strip_private", False),
        )
    model = editor.changer.model
    logger.debug("loaded a %s of %d px", type(model).__name__, model.resolution)
    if args.fast:
        say(f"fastest here: {editor.optimize()}")
    editor.changer.model.show_progress(shows_bars(args))
    return editor


def describe_face(index: int, box: Sequence[float], pose) -> str:
    x0, y0, x1, y1 = (round(edge) for edge in box)
    angles = [] if pose is None else [(axis, getattr(pose, axis)) for axis in ("yaw", "pitch", "roll")]
    turned = "".join(f", {axis} {round(angle):+}°" for axis, angle in angles)
    return f"face {index + 1}: {x1 - x0} x {y1 - y0} px at ({x0}, {y0}){turned}"


def print_faces(edits: Sequence, *, targets: bool = True) -> None:
    """Prints requested and measured AUs of each edited face, without variations that round to 0.0.

    targets: whether intensities may be requested, so that no variation means that a face has them already.
    """
    from magicedit.action_units import DEAD_ZONE  # imports NumPy, which --help does not need

    for edit in edits:
        print(describe_face(edit.index, edit.box, edit.pose))
        shown = {name: delta for name, delta in edit.requested.items() if round(delta, 1)}
        if targets and edit.requested and not shown:
            units = files.counted(len(edit.requested), "unit")
            within = f"within {DEAD_ZONE:g} of the measured intensity"
            print(f"  nothing to change: the request ({units}) is {within}")
        for name, delta in shown.items():
            print(f"  {name:<5} {delta:+5.1f}   {edit.measurement_of(name)}".rstrip())
        if edit.identity_distance is not None:
            print(f"  identity distance {edit.identity_distance:.2f}")
        for warning in edit.warnings:
            warn(f"warning: face {edit.index + 1}: {warning}")


def report_edits(
    args: argparse.Namespace,
    output: Path,
    results: "Sequence[EditResult]",
    content: dict[str, Any],
    shown: "Sequence[EditResult] | None" = None,
    *,
    targets: bool = True,
) -> int:
    """Prints the results of edits of one photograph; returns the exit code.

    content: of the JSON object, beside `output` and `seconds`. shown: results to print; default: all.
    targets: see `print_faces`.
    """
    seconds = sum(result.seconds for result in results)
    if args.json:
        marked = any(result.marked for result in results)
        print_json({"output": files.shown(output), "seconds": round(seconds, 3), "marked": marked} | content)
        return 0
    for result in results if shown is None else shown:
        print_faces(result.faces, targets=targets)
    print(f"{files.shown(output)}  ({seconds:.1f} s)")
    return 0


def faces_json(result: "EditResult") -> list[dict[str, Any]]:
    return [face.to_json() for face in result.faces]
