"""`magicedit transfer` and `interpolate`: expressions from one photograph to another."""

import argparse
from collections.abc import Callable

from magicedit.cli import common
from magicedit.errors import ActionUnitError, OutputError
from magicedit.files import shown

TRANSFER_EXAMPLES = """\
examples:
  magicedit transfer --from smile.jpg --to photo.jpg -o copy.png
  magicedit transfer --from smile.jpg --to photo.jpg -o half.png --strength 0.5
  magicedit transfer --from smile.jpg --to photo.jpg -o near.png --target-tolerance 0.3
  magicedit transfer --from smile.jpg --to photo.jpg -o eyes.png --only eyes,brows,gaze

The face of --to gets the measured intensities of the units that the model can edit. To save an expression and
use it again: `magicedit measure smile.jpg --save smile.yaml`, `magicedit edit --expression`.
"""

INTERPOLATE_EXAMPLES = """\
examples:
  magicedit interpolate calm.jpg smile.jpg --pictures 9 -o strip.png
  magicedit interpolate calm.jpg smile.jpg --pictures 24 -o between.gif --seconds 2
  magicedit interpolate calm.jpg smile.jpg --pictures 24 -o between.mp4
  magicedit interpolate calm.jpg smile.jpg --both --model FLOW -o strip.png   pixels of both photographs

All pictures are edits of the first photograph, which approaches the expression of the second step by step.
With --both they are made of both photographs, as aligned crops; see docs/flow-autoencoder.md.
"""


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    what = "copy the expression of one photograph to another"
    transfer = add_command("transfer", what, run_transfer, TRANSFER_EXAMPLES)
    transfer.add_argument(
        "--from",
        dest="source",
        type=common.path_of,
        required=True,
        metavar="A",
        help="the photograph with the expression",
    )
    transfer.add_argument(
        "--to", dest="photo", type=common.path_of, required=True, metavar="B", help="the photograph to edit"
    )
    common.add_output_option(transfer, "OUT", "where to write the result")
    asked = transfer.add_argument_group("what to ask for")
    common.add_strength_option(asked, "the expression")
    common.add_only_option(asked)
    asked.add_argument("--mirror", action="store_true", help="swap left and right")
    common.add_face_option(asked, "largest", "which face of A", flag="--from-face")
    common.add_face_option(asked, "all", "which faces of B")
    common.add_loop_options(transfer.add_argument_group("closed loop"))
    common.add_model_options(transfer.add_argument_group("the model"))
    common.add_output_group(transfer, what="replace OUT, which may be B")

    what = "draw the steps between the expressions of two photographs of a person"
    interpolate = add_command("interpolate", what, run_interpolate, INTERPOLATE_EXAMPLES)
    interpolate.add_argument("photo", type=common.path_of, metavar="A", help="the photograph to edit")
    interpolate.add_argument(
        "other", type=common.path_of, metavar="B", help="the photograph with the target expression"
    )
    common.add_output_option(interpolate, "OUT", "a picture (strip), .gif or .mp4")
    asked = interpolate.add_argument_group("what to ask for")
    common.add_pictures_option(asked)
    asked.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="length of a .gif or .mp4, both ways (2)"
    )
    common.add_only_option(asked)
    common.add_face_option(asked, "largest", "which face of A")
    asked.add_argument(
        "--both", action="store_true", help="move and blend both photographs, by a flow autoencoder"
    )
    asked.add_argument(
        "--match-colours", action="store_true", help="with --both: bring the photographs' colours together"
    )
    common.add_model_options(interpolate.add_argument_group("the model"))
    common.add_output_group(interpolate)


def check_regions(only: str | None) -> None:
    """Raises ActionUnitError for unknown regions, before anything is loaded."""
    if only is not None:
        from magicedit.action_units import parse_regions

        parse_regions(only)


def run_transfer(args: argparse.Namespace) -> int:
    from magicedit.imaging import check_output, open_photo

    check_regions(args.only)
    source, photo = open_photo(args.source), open_photo(args.photo)
    common.check_photo_output(args, photo)
    check_output(args.output, forbid=args.source)
    editor = common.load_editor(args, (source, args.from_face), (photo, args.face))
    expression = editor.expression(source, args.from_face, args.only)
    if args.mirror:
        expression = expression.mirrored()
    common.say(f"{args.source}: {expression.limited_to(editor.action_units)}")
    result = editor.edit(
        photo,
        expression=expression,
        strength=args.strength,
        face=args.face,
        **common.sampling_arguments(args),
        **common.loop_arguments(args),
    )
    content = {"expression": expression.to_dict()} | common.write_edit(args, result, photo)
    return common.report_edits(args, args.output, [result], content)


def run_interpolate(args: argparse.Namespace) -> int:
    from magicedit.imaging import (
        WRITTEN_SUFFIXES,
        check_output,
        check_pace,
        open_photo,
        save_animation,
        save_image,
        strip,
        writable,
    )
    from magicedit.provenance import Mark

    check_regions(args.only)
    if args.both and args.only is not None:
        raise ActionUnitError("--both moves whole photographs; leave out --only")
    if args.match_colours and not args.both:
        raise ActionUnitError("--match-colours is of --both")
    photo, other = open_photo(args.photo), open_photo(args.other)
    suffix = args.output.suffix.lower()
    if suffix not in (".gif", ".mp4", *WRITTEN_SUFFIXES):
        raise OutputError(
            f"cannot tell a format from the suffix of {shown(args.output)}; use .gif, .mp4 or, for a strip, "
            f"one of {', '.join(sorted(WRITTEN_SUFFIXES))}"
        )
    for path in (args.photo, args.other):
        if suffix in (".gif", ".mp4"):
            writable(args.output, forbid=path, exist_ok=args.overwrite)
        else:
            check_output(args.output, forbid=path, exist_ok=args.overwrite)
    if not args.seconds > 0:
        raise OutputError(f"--seconds must be above 0, got {args.seconds:g}")
    steps = common.pictures_of(args)
    seconds = args.seconds / (2 * steps - 2)  # of a picture, there and back
    if suffix in (".gif", ".mp4"):
        check_pace(args.output, seconds)
    editor = common.load_editor(args, (photo, args.face), (other, "largest"))
    if args.both:
        from magicedit.editor.between import interpolate_photographs

        results = []
        pictures = interpolate_photographs(
            editor, photo, other, steps, face=args.face, match_colours=args.match_colours
        )
    else:
        from magicedit.editor import face_pictures

        results = editor.interpolate(
            photo, other, steps, args.face, only=args.only, **common.strip_arguments(args)
        )
        pictures = face_pictures(results)
    if suffix in (".gif", ".mp4"):
        if photo.alpha is not None and photo.alpha.min() < 255:
            common.warn(f"warning: {args.photo} is transparent; {suffix} is not, and shows what it hides")
        pictures += pictures[-2:0:-1]  # and back, so that it can repeat
        if suffix == ".mp4":
            from magicedit.video import save_film

            output = save_film(pictures, args.output, seconds)
        else:
            output = save_animation(pictures, args.output, seconds)
    else:
        shares = [f"{100 * index / (steps - 1):.0f} %" for index in range(steps)]
        output = save_image(strip(pictures, shares), args.output)
    marked = Mark.of_pictures(pictures) is not None
    content = {"edits": list(map(common.faces_json, results)), "marked": marked}
    return common.report_edits(args, output, results, content, shown=results[-1:])
