"""The command line: thin, and quick to say what is wrong.

Exit codes: 0 done; 1 `doctor` found something essential broken; 2 the user's input cannot be used, and one
line says why. Results go to stdout, all else to stderr. Heavy imports happen in the command that needs them.
"""

import argparse
import contextlib
import dataclasses
import gc
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from magicedit import __version__
from magicedit.cli import evaluation
from magicedit.cli.common import add_json_option, chosen_people, print_json, say
from magicedit.errors import MagicEditError

if TYPE_CHECKING:
    from magicedit.faces import FaceBackend
    from magicedit.imaging import Photo

USER_ERROR = 2

DESCRIPTION = """\
Edits facial expressions in photographs, by FACS action units (AU12: lip corners up, AU4: brows down).

  magicedit edit photo.jpg -o smile.png --au AU12=+3
  magicedit measure photo.jpg
  magicedit doctor
"""

EDIT_EXAMPLES = """\
examples:
  magicedit edit photo.jpg -o smile.png --au AU12=+3            three steps more smile, on every face
  magicedit edit photo.jpg -o calm.png --set AU12=0,AU4=0       down to nothing, whatever it is now
  magicedit edit photo.jpg -o brow.png --au AU2L=+4             the subject's left brow alone; AU2R: right
  magicedit edit photo.jpg -o glad.jpg --emotion happiness:0.8 --face largest
  magicedit edit photo.jpg -o a.png --au AU1=2 --model owner/name --steps 30 --json

Variations (--au) go from -10 to 10, targets (--set) from 0 to 5. Pixels outside the faces stay as they are.
"""

SWEEP_EXAMPLES = """\
example:
  magicedit sweep photo.jpg --au AU12 --from -3 --to 5 --steps 9 -o strip.png
"""

PREPARE_EXAMPLES = """\
examples:
  magicedit prepare photos/ -o dataset/                      photos/ has one sub-folder per person
  magicedit prepare photos/ -o dataset/ --validation 0.1     one person in ten for validation
  magicedit prepare photos/ -o dataset/ --augment muscles    pairs even of people with one photograph
  magicedit prepare photos/ -o dataset/ --labels openface.csv --validation anna,ben
"""

CONVERT_EXAMPLES = """\
example:
  magicedit convert MagicFace/ --base stable-diffusion-v1-5/ -o magicface-pipeline/
"""


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line, like every other error of the user."""

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"magicedit: error: {message} (see `{self.prog} --help`)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `argv` None: that of this process, which is ours alone."""
    own_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((argument for argument in argv if not argument.startswith("-")), None)
    passed_on: list[str] = []
    if command == "train":  # its own parser reads its flags
        position = argv.index("train") + 1
        argv, passed_on = argv[:position], argv[position:]
    args = build_parser().parse_args(argv)
    args.own_process = own_process
    debug = getattr(args, "debug", False) or "--debug" in passed_on
    passed_on = [argument for argument in passed_on if argument != "--debug"]
    try:
        if command == "train":
            return run_train(passed_on)
        # OpenMP threads spin while they wait. Where other programs use the cores, an edit with `mini` took
        # 20 s of spinning on two cores, and 0.8 s with sleeping threads. To be set before torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with contextlib.nullcontext() if debug else quiet_libraries():
            return args.run(args)
    except MagicEditError as error:
        if debug:
            traceback.print_exc()
        else:
            say(f"magicedit: error: {' '.join(str(error).split())}")
        return USER_ERROR
    except KeyboardInterrupt:
        say("magicedit: interrupted")
        return 130
    finally:
        if own_process:
            gc.freeze()  # else Python searches all modules for garbage once more, 1.3 s, before it ends


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps the libraries' warnings to developers off the terminal; `--debug` shows them."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- The parser ---------------------------------------------------------------------------------------------


def build_parser() -> Parser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,  # so that a command's default does not undo `magicedit --debug COMMAND`
        help="show tracebacks and the libraries' messages",
    )
    parser = Parser(
        prog="magicedit",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"magicedit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add_command(name: str, summary: str, run=None, examples: str | None = None) -> Parser:
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common],
            allow_abbrev=False,
        )
        command.set_defaults(run=run)
        return command

    edit = add_command("edit", "change the expression of the faces in a photograph", run_edit, EDIT_EXAMPLES)
    edit.add_argument("photo", type=Path, metavar="PHOTO")
    edit.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="where to write the result"
    )
    edit.add_argument("--au", metavar="AU12=+3,AU4=-1", help="variations in intensity steps, -10 to 10")
    edit.add_argument("--set", metavar="AU12=0", help="intensities to arrive at, 0 to 5")
    edit.add_argument(
        "--emotion", metavar="NAME[:STRENGTH]", help="one of the six basic emotions; adds to --au"
    )
    add_face_option(edit, "all")
    add_model_options(edit)
    edit.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: the model's own)")
    edit.add_argument("--no-measure", dest="measure", action="store_false", help="do not measure the result")
    edit.add_argument("--overwrite", action="store_true", help="allow OUT to be PHOTO itself")
    add_json_option(edit)

    measure = add_command("measure", "print the faces of a photograph with their action units", run_measure)
    measure.add_argument("photo", type=Path, metavar="PHOTO")
    add_backend_option(measure)
    add_json_option(measure)

    sweep = add_command(
        "sweep", "draw a strip of one action unit at several variations", run_sweep, SWEEP_EXAMPLES
    )
    sweep.add_argument("photo", type=Path, metavar="PHOTO")
    sweep.add_argument(
        "-o", "--output", type=Path, required=True, metavar="STRIP", help="where to write the strip"
    )
    sweep.add_argument("--au", required=True, metavar="AU12", help="the action unit to vary")
    sweep.add_argument(
        "--from", dest="start", type=float, default=-3.0, metavar="X", help="first variation (-3)"
    )
    sweep.add_argument("--to", dest="stop", type=float, default=5.0, metavar="X", help="last variation (5)")
    sweep.add_argument("--steps", type=int, default=9, metavar="N", help="number of pictures (9)")
    sweep.add_argument(
        "--inference-steps", type=int, metavar="N", help="denoising steps (default: the model's own)"
    )
    sweep.add_argument("--overwrite", action="store_true", help="allow STRIP to be PHOTO itself")
    add_face_option(sweep, "largest")
    add_model_options(sweep)
    add_json_option(sweep)

    prepare = add_command(
        "prepare", "turn a folder of photographs into a training dataset", run_prepare, PREPARE_EXAMPLES
    )
    prepare.add_argument("folder", type=Path, metavar="FOLDER", help="photographs, one sub-folder per person")
    prepare.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DATASET", help="folder to write"
    )
    prepare.add_argument(
        "--size", type=int, default=512, metavar="PX", help="side of the aligned crops (512)"
    )
    prepare.add_argument(
        "--labels", type=Path, metavar="CSV", help="AU labels by OpenFace, py-feat or LibreFace"
    )
    prepare.add_argument(
        "--labels-scale",
        type=float,
        metavar="MAX",
        help="number for full intensity, where the file does not tell: 1 or 5",
    )
    prepare.add_argument(
        "--validation",
        metavar="IDS",
        help="people kept for validation: names joined by commas, @FILE with one a line, a share like 0.1",
    )
    prepare.add_argument(
        "--augment",
        choices=["muscles"],
        help="beside each training photograph, variants of it warped by a model of the face's muscles",
    )
    prepare.add_argument("--variants", type=int, metavar="N", help="how many of them a photograph (4)")
    prepare.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="photographs measured at a time (1)"
    )
    add_backend_option(prepare)
    prepare.add_argument(
        "--force", action="store_true", help="measure and write again even if nothing changed"
    )
    add_json_option(prepare)

    add_command("train", "train a model; flags as in `magicedit train --help`")

    convert = add_command(
        "convert",
        "turn the published MagicFace checkpoint into a pipeline folder",
        run_convert,
        CONVERT_EXAMPLES,
    )
    convert.add_argument(
        "checkpoint", type=Path, metavar="MAGICFACE_FOLDER", help="with denoising_unet/ and ID_enc/"
    )
    convert.add_argument(
        "--base",
        required=True,
        metavar="SD_FOLDER",
        help="Stable Diffusion 1.5: VAE, text encoder, scheduler",
    )
    convert.add_argument("-o", "--output", type=Path, required=True, metavar="PIPELINE_FOLDER")

    evaluation.add_commands(add_command)

    doctor = add_command("doctor", "print versions, devices and models, and whether they work", run_doctor)
    add_json_option(doctor)
    return parser


def add_backend_option(parser: Parser) -> None:
    parser.add_argument(
        "--backend",
        choices=("mediapipe", "insightface"),
        default="mediapipe",
        help="what finds faces: mediapipe (default), insightface",
    )


def add_face_option(parser: Parser, default: str) -> None:
    parser.add_argument(
        "--face",
        type=face_choice,
        default=default,
        metavar="all|largest|N",
        help=f"which faces; N counts from 0, the largest (default: {default})",
    )


def add_model_options(parser: Parser) -> None:
    parser.add_argument(
        "--model",
        default="mini",
        metavar="MODEL",
        help="mini (default), mini-live (in one step), a pipeline folder, a hub id",
    )
    add_backend_option(parser)
    parser.add_argument(
        "--guidance", type=float, metavar="S", help="guidance scale (default: the model's own)"
    )
    parser.add_argument(
        "--quality",
        choices=("exact", "balanced", "fast", "live"),
        help="how much time the model takes (default: its own settings); docs/speed.md tells what it costs",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the initial noise (0)")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: the best present)")
    parser.add_argument("--dtype", metavar="T", help="float32 (default), bfloat16 or float16")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="first find this machine's fastest memory format and, on a GPU, dtype and compilation",
    )


def face_choice(text: str) -> str | int:
    if text in ("all", "largest"):
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f'expected "all", "largest" or a number from 0, got {text!r}')


def validation_choice(text: str | None) -> dict[str, Any]:
    """`--validation` as keyword arguments of `prepare`."""
    if text is None:
        return {}
    if re.fullmatch(r"0?\.\d+", text):
        return {"validation_fraction": float(text)}
    return {"validation": chosen_people("--validation", text, "keep everybody for training")}


# --- The commands -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def loading(args: argparse.Namespace) -> Iterator[None]:
    """For imports and models: thousands of modules, none of them garbage, are not searched for it.

    That search took a fifth of the time. In a process of ours alone they are left out of it from then on.
    """
    collects = args.own_process and gc.isenabled()
    if collects:
        gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.freeze()
            gc.enable()


@contextlib.contextmanager
def backend_beside(args: argparse.Namespace, photo: "Photo") -> Iterator["str | FaceBackend"]:
    """The face backend, looking at the photograph in another process while this one loads the model.

    Its name alone where there is no core for that, or where `--debug` is to show whole tracebacks.
    """
    from magicedit.faces.process import BackendProcess, spare_core

    if not args.own_process or getattr(args, "debug", False) or not spare_core():
        yield args.backend
        return
    with BackendProcess(args.backend) as backend:
        backend.detect_ahead(photo.pixels)
        yield backend


def load_editor(args: argparse.Namespace, backend: "str | FaceBackend"):
    from magicedit.faces.occlusion import prepare_colours

    say(f"loading {args.model}")
    threading.Thread(target=prepare_colours).start()
    with loading(args):
        from magicedit.editor import ExpressionEditor

        editor = ExpressionEditor.from_pretrained(
            args.model, device=args.device, dtype=args.dtype, backend=backend
        )
    if args.fast:
        say(f"fastest here: {editor.optimize()}")
    editor.pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return editor


def run_edit(args: argparse.Namespace) -> int:
    from magicedit.imaging import check_output, open_photo, save_image

    # Whatever can be seen to be wrong now is said before the model loads.
    check_edit(args)
    photo = open_photo(args.photo)
    check_output(args.output, overwrite=args.overwrite, forbid=args.photo)
    with backend_beside(args, photo) as backend:
        editor = load_editor(args, backend)
        result = editor.edit(
            photo,
            add=args.au,
            set=args.set,
            emotion=args.emotion,
            face=args.face,
            steps=args.steps,
            guidance=args.guidance,
            quality=args.quality,
            seed=args.seed,
            measure=args.measure,
        )
    output = save_image(result.image, args.output, overwrite=args.overwrite, forbid=args.photo)
    if args.json:
        faces = [face.to_json() for face in result.faces]
        print_json({"output": str(output), "seconds": round(result.seconds, 3), "faces": faces})
    else:
        print_faces(result.faces)
        print(f"{output}  ({result.seconds:.1f} s)")
    return 0


def run_measure(args: argparse.Namespace) -> int:
    with loading(args):
        from magicedit.editor import face_to_json, select_faces
        from magicedit.faces import load_backend
        from magicedit.imaging import open_photo

        photo = open_photo(args.photo)
        backend = load_backend(args.backend)
    faces = select_faces(backend.detect(photo.pixels), "all", photo)
    height, width = photo.pixels.shape[:2]
    if args.json:
        print_json(
            {
                "photo": str(args.photo),
                "width": width,
                "height": height,
                "faces": [face_to_json(f) for f in faces],
            }
        )
        return 0
    for index, face in enumerate(faces):
        print(describe_face(index, face.box, face.pose))
        for name, value in face.action_units.items():
            print(f"  {name:<5} {value:4.1f}  {'#' * round(4 * value)}".rstrip())
    return 0


def run_sweep(args: argparse.Namespace) -> int:
    from magicedit.editor import sweep_strip
    from magicedit.imaging import check_output, open_photo, save_image

    photo = open_photo(args.photo)
    check_output(args.output, overwrite=args.overwrite, forbid=args.photo)
    with backend_beside(args, photo) as backend:
        editor = load_editor(args, backend)
        results = editor.sweep(
            photo,
            args.au,
            args.start,
            args.stop,
            args.steps,
            args.face,
            inference_steps=args.inference_steps,
            guidance=args.guidance,
            quality=args.quality,
            seed=args.seed,
        )
    output = save_image(sweep_strip(results), args.output, overwrite=args.overwrite, forbid=args.photo)
    if args.json:
        edits = [
            {"seconds": round(r.seconds, 3), "faces": [face.to_json() for face in r.faces]} for r in results
        ]
        seconds = round(sum(r.seconds for r in results), 3)
        print_json({"output": str(output), "seconds": seconds, "edits": edits})
        return 0
    for result in results:
        print_faces(result.faces)
    print(f"{output}  ({sum(r.seconds for r in results):.1f} s)")
    return 0


def run_prepare(args: argparse.Namespace) -> int:
    from magicedit.data.prepare import prepare

    report = prepare(
        args.folder,
        args.output,
        size=args.size,
        labels=args.labels,
        labels_scale=args.labels_scale,
        backend=args.backend,
        augment=args.augment,
        variants=args.variants,
        jobs=args.jobs,
        force=args.force,
        progress=sys.stderr.isatty(),
        **validation_choice(args.validation),
    )
    for reject in report.rejected:
        say(f"left out: {reject['source']}: {reject['reason']}")
    if args.json:
        print_json(dataclasses.asdict(report) | {"output": str(report.output)})
        return 0
    for split, count in report.photographs.items():
        people, pairs = report.identities[split], report.pairs[split]
        print(f"{split:<10} {count} photographs of {people} people, {pairs} pairs")
    if report.variants:
        print(f"{'':<10} and {report.variants} warped variants of each training photograph")
    done = "unchanged" if report.unchanged else f"{report.measured} measured, {report.reused} as before"
    print(f"{report.output}  ({done}, {len(report.rejected)} left out, {report.seconds:.1f} s)")
    return 0


def run_train(argv: list[str]) -> int:
    from magicedit.train.train import main as train

    return train(argv) or 0


def run_convert(args: argparse.Namespace) -> int:
    from magicedit.models import convert

    print(convert(args.checkpoint, base=args.base, output=args.output))
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    from magicedit.doctor import examine

    report = examine()
    if args.json:
        print_json(report.to_json())
    else:
        print(report)
    return 0 if report.healthy else 1


def check_edit(args: argparse.Namespace) -> None:
    """Raises what `edit` would raise on requests that are malformed whatever the photograph shows."""
    from magicedit.action_units import DESCRIPTIONS, NAMES, resolve_delta, with_sides

    names = (
        NAMES if args.model == "mini" else tuple(DESCRIPTIONS)
    )  # another model's vocabulary is not known yet
    known = dict.fromkeys(with_sides(names), 0.0)
    resolve_delta(known, add=args.au, set=args.set, emotion=args.emotion, names=names)


def describe_face(index: int, box: Sequence[float], pose) -> str:
    x0, y0, x1, y1 = (round(edge) for edge in box)
    turned = (
        "" if pose is None else f", yaw {pose.yaw:+.0f}°, pitch {pose.pitch:+.0f}°, roll {pose.roll:+.0f}°"
    )
    return f"face {index}: {x1 - x0} x {y1 - y0} px at ({x0}, {y0}){turned}"


def print_faces(edits: Sequence) -> None:
    """Requested and measured AUs of each edited face."""
    for index, edit in enumerate(edits):
        print(describe_face(index, edit.box, edit.pose))
        for name, delta in edit.requested.items():
            before = edit.before.get(name)
            after = None if edit.after is None else edit.after.get(name)
            measured = "" if before is None or after is None else f"   measured {before:.1f} -> {after:.1f}"
            print(f"  {name:<5} {delta:+5.1f}{measured}")
        if edit.identity_distance is not None:
            print(f"  identity distance {edit.identity_distance:.2f}")
        for warning in edit.warnings:
            say(f"warning: face {index}: {warning}")
