"""`magicedit measure`: what the faces of a photograph show, and tables of photographs and videos."""

import argparse
import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from magicedit.cli import common
from magicedit.errors import ImageError, MagicEditError, OutputError
from magicedit.files import shown

if TYPE_CHECKING:
    from magicedit.faces import Face

MEASURE_EXAMPLES = """\
examples:
  magicedit measure photo.jpg
  magicedit measure - --json < photo.jpg                        from stdin
  magicedit measure photo.jpg --save smile.yaml                 to keep it: see `edit --expression`
  magicedit measure group.jpg --face 2 --save her.yaml
  magicedit measure photo.jpg --neutral base.jpg                relative to the same person at rest
  magicedit measure clip.mp4 --arkit curves.csv                 a row for each frame
  magicedit measure clip.mp4 --openface units.csv               the same as OpenFace writes it

With --neutral, intensities are differences; ± is the standard deviation of both photographs together, each
measured again as JPEG, moved, reduced, noisy and darker. --arkit writes 51 of ARKit's 52 blendshapes, 0 to 1:
MediaPipe does not measure tongueOut. --openface writes OpenFace's columns of gaze, pose and action units;
those of AU23 and of the head's place are empty, and a unit counts as present from intensity 1 on.
"""


def add_measure(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    what = "print the faces of a photograph with their action units"
    measure = add_command("measure", what, run_measure, MEASURE_EXAMPLES)
    measure.add_argument(
        "photo",
        type=common.file_or_pipe,
        metavar="PHOTO",
        help="a photograph, - is stdin; with --arkit or --openface also a video",
    )
    measure.add_argument(
        "--save", type=common.path_of, metavar="FILE.yaml", help="keep the expression of one face in a file"
    )
    measure.add_argument(
        "--neutral",
        type=common.path_of,
        metavar="BASE",
        help="print and save one face relative to the largest of this photograph, which shows the same "
        "person at rest",
    )
    measure.add_argument(
        "--arkit",
        type=common.path_of,
        metavar="FILE.csv",
        help="write the blendshapes of one face in ARKit's names",
    )
    measure.add_argument(
        "--openface",
        type=common.path_of,
        metavar="FILE.csv",
        help="write the action units of one face as OpenFace does",
    )
    common.add_face_option(measure, "largest", "whose expression is saved, compared or written")
    common.add_backend_option(measure)
    common.add_overwrite_option(
        measure, what="replace the files of --save, --arkit and --openface if they exist"
    )
    common.add_json_option(measure)


def run_measure(args: argparse.Namespace) -> int:
    from magicedit.imaging import VIDEO_SUFFIXES

    if args.photo.suffix.lower() in VIDEO_SUFFIXES:
        return _run_video(args)
    with common.loading(args):
        from magicedit.editor import face_to_json, measured_expression, select_faces
        from magicedit.expression import Expression
        from magicedit.faces import levels_relative_to, load_backend, search
        from magicedit.imaging import open_photo
        from magicedit.vocabulary import whole_name

        photo = common.open_input(args.photo)
        base = None if args.neutral is None else open_photo(args.neutral)
        _check_outputs(args)
        backend = load_backend(args.backend)
    found = search(backend, photo.pixels)
    faces = select_faces(found.faces, "all", photo)
    common.tell_left_alone(found.left_alone)
    (chosen,) = select_faces(faces, args.face, photo)
    relative: dict[str, float] = {}
    spread: dict[str, float] = {}
    if base is not None:
        (rest,) = select_faces(search(backend, base.pixels).faces, "largest", base)
        relative, spread = levels_relative_to(backend, (photo.pixels, chosen), (base.pixels, rest))
    if args.arkit is not None:
        scores = _scores(chosen, args.backend)
        _write_csv(args.arkit, scores, [map(_decimal, scores.values())])
        common.say(f"saved {args.arkit}")
    if args.openface is not None:
        _write_openface(args.openface, [0.0], [chosen])
        common.say(f"saved {args.openface}")
    if args.save is not None:
        source = f"{photo.source.name}, face {faces.index(chosen) + 1}"
        expression = measured_expression(chosen, args.backend, source=source)
        if base is not None:
            wholes = {whole_name(name) for name in expression.values} - {"AU45"}  # AU43 says the same
            kept = {name: value for name, value in relative.items() if name in wholes}
            source += f", relative to {base.source.name}"
            expression = Expression.measured(kept, relative, source, relative=True)
        common.say(f"saved {expression.save(args.save)}: {expression}")
    if args.json:
        content = {"photo": str(args.photo), "width": photo.size[0], "height": photo.size[1]}
        entries = [face_to_json(face, index) for index, face in enumerate(faces)]
        if base is not None:
            compared = entries[faces.index(chosen)]
            compared["relative"], compared["spread"] = (
                {name: round(value, 3) for name, value in values.items()} for values in (relative, spread)
            )
        common.print_json(content | {"faces": entries, "left_alone": found.left_alone})
        return 0
    for index, face in enumerate(faces):
        print(common.describe_face(index, face.box, face.pose))
        if base is not None and face is chosen:
            _print_relative(face, relative, spread)
        else:
            _print_levels(face)
    _tell_hardly_seen(chosen)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises OutputError where a file to write exists, is an input, has another's name or a wrong suffix."""
    from magicedit.imaging import writable

    taken: dict[Path, str] = {}
    for option, suffixes in (("save", (".yaml", ".yml")), ("arkit", (".csv",)), ("openface", (".csv",))):
        if (output := getattr(args, option)) is not None:
            for given in filter(None, (args.photo, args.neutral)):
                target = writable(output, forbid=given, exist_ok=args.overwrite)
            if output.suffix.lower() not in suffixes:
                format, suffix = suffixes[0][1:].upper(), suffixes[0]
                raise OutputError(
                    f"--{option} writes {format}; end the name in {suffix}, got {shown(output)}"
                )
            if (other := taken.setdefault(target, option)) != option:
                raise OutputError(
                    f"--{other} and --{option} name one file, {shown(output)}; give each its own"
                )


def _print_levels(face: "Face") -> None:
    if face.gaze is not None:
        print(f"  gaze  {round(face.gaze.yaw):+}°, {round(face.gaze.pitch):+}°")
    for name, value in face.action_units.items():
        print(f"  {name:<5} {value:4.1f}  {'#' * round(4 * value)}".rstrip())


def _tell_hardly_seen(face: "Face") -> None:
    """Tells which of the printed scores say little of their muscles."""
    from magicedit.action_units import UNRELIABLE
    from magicedit.faces.measure import SEEN_BY_LANDMARKS

    blind = [name for name in face.action_units if name in SEEN_BY_LANDMARKS]
    shaped = [name for name in face.action_units if name in UNRELIABLE]
    if blind and shaped:
        common.say(
            f"the scores of {', '.join(blind)} hardly respond: 0.0 may be more; those of "
            f"{', '.join(shaped)} depend more on the shape of lids and mouth"
        )


def _print_relative(face: "Face", relative: Mapping[str, float], spread: Mapping[str, float]) -> None:
    for what, axes in (("gaze", ("yaw", "pitch")), ("head", ("yaw", "pitch", "roll"))):
        names = [name for axis in axes if (name := f"{what}_{axis}") in relative]
        angles = (f"{round(relative[name]):+}° ± {math.ceil(spread[name])}°" for name in names)
        if names:
            print(f"  {what}  {', '.join(angles)}")
    for name in face.action_units:
        if name in relative:
            print(f"  {name:<5} {relative[name]:+z.1f} ± {spread[name]:.1f}")


def _run_video(args: argparse.Namespace) -> int:
    """Writes tables of a video's frames."""
    import sys

    outputs = [output for output in (args.arkit, args.openface) if output is not None]
    if not outputs:
        raise ImageError(
            f"{args.photo} is a video by its name; `measure` reads videos only with --arkit FILE.csv or "
            "--openface FILE.csv"
        )
    if args.save is not None or args.neutral is not None:
        raise MagicEditError(
            "--save and --neutral measure photographs; of a video, --arkit writes blendshapes and --openface "
            "action units"
        )
    from magicedit.arkit import MEASURED
    from magicedit.cli.video import ProgressLine
    from magicedit.faces import load_backend
    from magicedit.video import Video, blendshapes_of, measure_frames

    _check_outputs(args)
    video = Video(args.photo)
    backend = load_backend(args.backend)
    frames = measure_frames(
        video, backend, args.face, progress=None if args.quiet else ProgressLine(sys.stderr)
    )
    if args.arkit is not None:
        curves = blendshapes_of(frames)
        rows = (
            map(_decimal, (time, *scores)) for time, scores in zip(curves.times, curves.scores, strict=True)
        )
        _write_csv(args.arkit, ("time", *MEASURED), rows)
    if args.openface is not None:
        _write_openface(args.openface, frames.times, frames.faces)
    seen = sum(face is not None for face in frames.faces)
    if args.json:
        content = {"output": str(outputs[0]), "frames": len(frames.times), "seen": seen}
        common.print_json(content | ({"outputs": [*map(str, outputs)]} if len(outputs) > 1 else {}))
    else:
        print(f"{', '.join(map(str, outputs))}  ({len(frames.times)} frames, {seen} with the face)")
    return 0


def _scores(face: "Face", backend: str) -> dict[str, float]:
    """Returns a face's blendshapes in ARKit's order; MagicEditError where its backend measures none."""
    from magicedit.arkit import MEASURED

    if not face.blendshapes:
        raise MagicEditError(f"the face backend {backend} measures no blendshapes; use mediapipe")
    return {name: face.blendshapes[name] for name in MEASURED}


def _write_openface(path: Path, times: Iterable[float], faces: "Iterable[Face | None]") -> None:
    from magicedit.faces.openface import COLUMNS, openface_row

    frames = enumerate(zip(times, faces, strict=True), start=1)
    _write_csv(path, COLUMNS, (openface_row(face, frame, time) for frame, (time, face) in frames))


def _decimal(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """OutputError where that fails."""
    from magicedit.files import write_text

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
