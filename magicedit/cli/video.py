"""`magicedit video` and `reenact`."""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from magicedit.cli import common
from magicedit.files import counted

if TYPE_CHECKING:
    from magicedit.video import Progress, VideoResult

VIDEO_EXAMPLES = """\
examples:
  magicedit video clip.mp4 -o smile.mp4 --au AU12=+2
  magicedit video clip.mp4 -o calm.mp4 --neutral --face all
  magicedit video clip.mp4 -o glad.mp4 --emotion happiness:0.5 --face 2
  magicedit video clip.mp4 -o grows.mp4 --key 0:AU12=0 --key 1.5:AU12=+3
  magicedit video clip.mp4 -o curve.mp4 --curve curve.csv

A curve is a CSV file with a column `time` (seconds) and one for each action unit; its rows are keyframes.
The same command resumes an interrupted run. The quality is `fast` unless you choose another.
"""

REENACT_EXAMPLES = """\
examples:
  magicedit reenact --source photo.jpg --driving clip.mp4 -o alive.mp4
  magicedit reenact --source photo.jpg --driving clip.mp4 -o alive.mp4 --strength 0.7 --neutral-at 0.4
  magicedit reenact --source photo.jpg --driving clip.mp4 -o alive.mp4 --head 0    the head stays

The photograph follows the face in the video, relative to that face at rest: expression, blinks, gaze and half
of the head's movement.
"""

OUTPUT, LARGEST = "where to write: .mp4, .mov or .mkv", "the largest by area and time"


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    video = add_command("video", "change the expression of faces in a video", run_video, VIDEO_EXAMPLES)
    video.add_argument("video", type=common.path_of, metavar="VIDEO")
    common.add_output_option(video, "OUT", OUTPUT)
    common.add_request_options(video, "target intensities in every frame, 0 to 5")
    curves = video.add_mutually_exclusive_group()
    curves.add_argument(
        "--curve",
        type=common.path_of,
        metavar="FILE.csv",
        help="variations over time: columns time (s), AU12, AU4 ...",
    )
    curves.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="SECONDS:AU12=+3",
        help="one keyframe of such a curve; repeatable",
    )
    common.add_expression_options(video)
    common.add_face_option(video, "largest", several=True, largest=LARGEST)
    _add_work_options(video)

    reenact = add_command(
        "reenact", "make a photograph follow the face in a video", run_reenact, REENACT_EXAMPLES
    )
    reenact.add_argument(
        "--source", type=common.path_of, required=True, metavar="PHOTO", help="the photograph to edit"
    )
    reenact.add_argument(
        "--driving", type=common.path_of, required=True, metavar="VIDEO", help="the video to follow"
    )
    common.add_output_option(reenact, "OUT", OUTPUT)
    common.add_strength_option(reenact, "the expressions")
    reenact.add_argument(
        "--neutral-at",
        type=float,
        metavar="SECONDS",
        help="when the face in the video is at rest (default: the 10th percentile of each unit)",
    )
    reenact.add_argument(
        "--head",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="0 to 1, share of the head's movement to apply (default: 0.5)",
    )
    common.add_face_option(reenact, "largest", "which face of PHOTO")
    common.add_face_option(reenact, "largest", "which face of VIDEO", flag="--driving-face", largest=LARGEST)
    reenact.add_argument(
        "--longest", type=int, metavar="PX", help="reduce a larger photograph to this longer side"
    )
    _add_work_options(reenact)


def _add_work_options(parser: argparse.ArgumentParser) -> None:
    common.add_model_options(parser, otherwise="the quality's")
    parser.set_defaults(quality="fast")
    common.add_teeth_options(parser)
    parser.add_argument(
        "--crf", type=float, default=17.0, metavar="N", help="encoding quality, 0 (lossless) to 51 (17)"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="x264's speed of encoding, ultrafast to veryslow; slower ones make smaller files (veryfast for "
        "the qualities fast and live, else fast)",
    )
    parser.add_argument(
        "--damaged", action="store_true", help="edit what can be decoded of a damaged or incomplete video"
    )
    common.add_overwrite_option(parser)
    common.add_mark_options(parser)
    common.add_json_option(parser)


def run_video(args: argparse.Namespace) -> int:
    from magicedit.action_units import FACS
    from magicedit.models.folder import ModelFolder
    from magicedit.request import EditRequest
    from magicedit.video import Curve, Video, check_request, check_video_output, edit_video

    # Validate before loading the model
    curve = None
    if args.curve is not None:
        curve = Curve.from_csv(args.curve)
    elif args.key:
        curve = Curve.from_keys(args.key)
    asked = {"add": args.au, "set": args.set, "emotion": args.emotion, **common.expression_arguments(args)}
    # A hub model's units are unknown before it is loaded
    names = ModelFolder.find(args.model).editable or FACS
    request = EditRequest(names=names, **asked)
    check_request(names, request, curve)
    work = _work_arguments(args)
    Video(args.video)
    check_video_output(args.output, args.video, exist_ok=args.overwrite)
    if request.is_empty and curve is None:
        options = "--au, --set, --emotion, --expression, --neutral, --curve, --key"
        common.warn(f"warning: nothing is requested ({options}): no frame changes")
    with _resumable(args.output):
        editor = common.load_editor(args)
        asked |= {"face": args.face, "curve": curve, **work}
        result = edit_video(editor, args.video, args.output, **asked)
    return _report(args, result)


def run_reenact(args: argparse.Namespace) -> int:
    from magicedit.imaging import open_photo
    from magicedit.video import Video, check_video_output, reenact

    work, photo = _work_arguments(args), open_photo(args.source)
    Video(args.driving)
    check_video_output(args.output, args.driving, args.source, exist_ok=args.overwrite)
    with _resumable(args.output):
        editor = common.load_editor(args, (photo, args.face))
        asked = common.options(args, "strength", "face", "driving_face", "neutral_at", "head", "longest")
        result = reenact(editor, photo, args.driving, args.output, **asked, **work)
    return _report(args, result)


def _work_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments shared by `edit_video` and `reenact`."""
    from magicedit.video import Encoding, VideoSettings

    return {
        **common.sampling_arguments(args),
        "settings": VideoSettings(encoding=Encoding(crf=args.crf, preset=args.preset)),
        "damaged": args.damaged,
        "progress": None if args.quiet else ProgressLine(sys.stderr),
    }


@contextlib.contextmanager
def _resumable(output: Path) -> Iterator[None]:
    """Tells the user on interruption that finished work is kept, if there is any."""
    try:
        yield
    except KeyboardInterrupt:
        kept = output.resolve().with_name(f".{output.resolve().name}.partial")
        if kept.is_dir():
            common.warn(f"\nstopped; the same command resumes. Finished work is kept in {kept.name}")
        raise


class ProgressLine:
    """Shows progress: on a terminal in one line that is overwritten, else in a line every _EVERY seconds."""

    _NAMES: ClassVar = {"faces": "looking for faces", "frames": "editing", "joining": "writing"}
    _EVERY = 10.0  # seconds

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._over = stream.isatty()
        self._stage, self._said = "", 0.0

    def __call__(self, progress: "Progress") -> None:
        now = time.monotonic()
        fresh = progress.stage != self._stage
        if not fresh and now - self._said < (0.2 if self._over else self._EVERY):
            return
        if self._over and fresh and self._stage:
            self._stream.write("\n")
        self._stage, self._said = progress.stage, now
        line = self._NAMES[progress.stage]
        if progress.stage != "joining":  # which has no frames
            if progress.done:
                total = "" if progress.total is None else f" of {progress.total}"
                line += f": frame {progress.done}{total}"
            elif progress.total is not None:
                line += f": {counted(progress.total, 'frame')}"
            if progress.seconds_left is not None:
                line += f", {clock(progress.seconds_left)} left"
        self._stream.write(f"\r{line:<60}" if self._over else f"{line}\n")
        self._stream.flush()


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _report(args: argparse.Namespace, result: "VideoResult") -> int:
    """Prints the result; returns the exit code."""
    if common.shows_bars(args):
        common.say("")
    for warning in result.warnings:
        common.warn(f"warning: {warning}")
    if args.json:
        common.print_json(result.to_json())
        return 0
    for face in result.faces:
        start, end = face.seconds
        print(
            f"face {face.number + 1}: in {face.seen} of {result.frames} frames, {start:.2f} s to {end:.2f} s"
        )
    flicker = result.flicker
    if flicker is not None and flicker.ratio is not None:
        print(
            f"flicker: {flicker.ratio:.2f} of the input's "
            f"({flicker.output:.2f} levels from frame to frame in the face, {flicker.input:.2f} before)"
        )
    resumed = f", {result.resumed} of them before" if result.resumed else ""
    print(
        f"{result.path}  ({result.frames} frames{resumed}, {result.seconds:.1f} s, "
        f"{result.frames_per_second:.1f} frames/s)"
    )
    return 0
