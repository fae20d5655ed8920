"""`magicedit edit` and `sweep`."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from magicedit.cli import common
from magicedit.cli.batch import add_folder_options, refuse_folder_options, run_edit_folder
from magicedit.cli.measuring import add_measure
from magicedit.errors import ImageError, MagicEditError
from magicedit.files import shown

EDIT_EXAMPLES = """\
examples:
  magicedit edit photo.jpg -o smile.png --au AU12=+3            three steps more smile, on every face
  magicedit edit photo.jpg -o calm.png --set AU12=0,AU4=0       down to nothing, whatever it is now
  magicedit edit photo.jpg -o brow.png --au AU2L=+4             the subject's left brow alone; AU2R: right
  magicedit edit photo.jpg -o wink.png --au AU43L=5,gaze_yaw=10,head_roll=8   wink, look aside, tilt the head
  magicedit edit photo.jpg -o glad.jpg --emotion happiness:0.8 --face largest
  magicedit edit photo.jpg -o laugh.png --emotion happiness --reference smile.jpg   with their own teeth
  magicedit edit photo.jpg -o rest.png --neutral                whatever it shows taken back
  magicedit edit photo.jpg -o copy.png --expression smile.yaml --strength 0.7
  magicedit edit photo.jpg -o a.png --set AU12=2 --target-tolerance 0.3   measured, corrected, edited again
  magicedit edit photo.jpg -o a.png --au AU1=2 --model owner/name --steps 30 --json

  magicedit edit a.jpg b.jpg -o edited --au AU12=+3             several photographs into a folder
  magicedit edit - -o - --au AU12=+3 < a.jpg > b.png            from stdin to stdout, by --format (png)
  magicedit edit photos -o edited --neutral                     every photograph in photos/ and below
  magicedit edit photos -o edited --manifest edits.csv          a row an edit: photo,au,set,emotion,...

Variations (--au) go from -10 to 10, targets (--set) from 0 to 5. Pixels outside the faces stay as they are.
An expression is a file that `magicedit measure --save` wrote, or a row of a CSV file: FILE.csv:ROW.
Run the command for a folder again to resume: finished edits, listed in OUT/edits.jsonl, are skipped.

emotions:
  happiness, sadness, surprise, fear, anger, disgust

the mouth in speech, also by --emotion:
  aaa, eee, ooo, fff, mmm

in degrees, gaze up to 30 and head up to 20 each way:
  gaze_yaw    gaze to the subject's left
  gaze_pitch  gaze up
  head_yaw    head turned to the subject's left
  head_pitch  head up
  head_roll   head tilted clockwise

action units, by their names in FACS:
  AU1   inner brow raiser       AU12  lip corner puller       AU23  lip tightener
  AU2   outer brow raiser       AU14  dimpler                 AU24  lip pressor
  AU4   brow lowerer            AU15  lip corner depressor    AU25  lips part
  AU5   upper lid raiser        AU16  lower lip depressor     AU26  jaw drop
  AU6   cheek raiser            AU17  chin raiser             AU27  mouth stretch
  AU7   lid tightener           AU18  lip pucker              AU28  lip suck
  AU9   nose wrinkler           AU20  lip stretcher           AU43  eyes closed
  AU10  upper lip raiser        AU22  lip funneler
"""

SWEEP_EXAMPLES = """\
example:
  magicedit sweep photo.jpg --au AU12 --from -3 --to 5 --pictures 9 -o strip.png
"""


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    what = "change the expression of the faces in a photograph, or in a folder of them"
    edit = add_command("edit", what, run_edit, EDIT_EXAMPLES)
    what = "photographs, or a folder of them; - is stdin"
    edit.add_argument("photos", type=common.file_or_pipe, nargs="+", metavar="PHOTO", help=what)
    what = "where to write the result; a folder for several photographs or a folder; - is stdout"
    common.add_output_option(edit, "OUT", what)
    asked = edit.add_argument_group("what to ask for")
    common.add_request_options(asked, "target intensities, 0 to 5; units measured within 0.5 of them stay")
    common.add_expression_options(asked)
    common.add_face_option(asked, "all")
    loop = edit.add_argument_group("closed loop")
    common.add_loop_options(loop)
    loop.add_argument("--no-measure", dest="measure", action="store_false", help="do not measure the result")
    common.add_model_options(edit.add_argument_group("the model"))
    common.add_teeth_options(edit.add_argument_group("what an opened mouth shows"))
    add_folder_options(edit.add_argument_group("folders, and several photographs"))
    what = "also write OUT.layers.exr: movement as STMap, mask, paint and mouth (needs the extra exr)"
    edit.add_argument("--layers", choices=("exr",), help=what)
    what = "replace OUT, which may be PHOTO; in a folder repeat finished edits, and replace other files"
    common.add_output_group(edit, "--force", what=what)

    add_measure(add_command)

    what = "draw a strip of one action unit at several variations"
    sweep = add_command("sweep", what, run_sweep, SWEEP_EXAMPLES)
    sweep.add_argument("photo", type=common.path_of, metavar="PHOTO", help="a photograph")
    common.add_output_option(sweep, "STRIP", "where to write the strip")
    asked = sweep.add_argument_group("what to ask for")
    asked.add_argument("--au", required=True, metavar="AU12", help="the action unit to vary")
    asked.add_argument(
        "--from", dest="start", type=float, default=-3.0, metavar="X", help="first variation (-3)"
    )
    asked.add_argument("--to", dest="stop", type=float, default=5.0, metavar="X", help="last variation (5)")
    common.add_pictures_option(asked)
    common.add_face_option(asked, "largest", "which face")
    common.add_model_options(sweep.add_argument_group("the model"))
    common.add_teeth_options(sweep.add_argument_group("what an opened mouth shows"))
    common.add_output_group(sweep, what="replace STRIP if it exists")


def run_edit(args: argparse.Namespace) -> int:
    from magicedit.imaging import VIDEO_SUFFIXES, WRITTEN_SUFFIXES

    args.photo = args.photos[0]
    several = len(args.photos) > 1 or os.path.isdir(args.photo)
    into_folder = os.path.isdir(args.output) and args.output.suffix.lower() not in WRITTEN_SUFFIXES
    if several or into_folder:
        if args.layers:
            raise MagicEditError("--layers is for one photograph; leave it out for a folder")
        return run_edit_folder(args)
    if args.photo.suffix.lower() in VIDEO_SUFFIXES:
        raise ImageError(f"{args.photo} is a video by its name; edit it with `magicedit video`")
    refuse_folder_options(args)
    if args.layers and args.output == common.PIPE:
        raise MagicEditError("--layers writes beside OUT, which is stdout; name a file with -o")
    with common.written_output(args, args.format) as name:
        return run_edit_photo(args, name)


def run_edit_photo(args: argparse.Namespace, name: Path) -> int:
    """name: of the output, for people."""
    from magicedit.imaging import writable

    # Validate before loading the model
    request = common.edit_request(args)
    photo = common.open_input(args.photo)
    common.check_photo_output(args, photo)
    layers = args.output.with_suffix(".layers.exr") if args.layers else None
    if layers is not None:
        from magicedit.editor.layers import import_openexr, layers_of, save_layers

        writable(layers, exist_ok=args.overwrite)
        import_openexr()
    editor = common.load_editor(args, (photo, args.face))
    (result,) = editor.apply([photo], request)
    content = common.write_edit(args, result, photo)
    if layers is not None:
        save_layers(layers_of(editor, photo, request, result), layers)
        common.say(f"layers: {shown(layers)}")
    common.warn_of_copies(int(request.is_empty), of=1)
    content |= {} if layers is None else {"layers": shown(layers)}
    targets = request.neutral or bool(request.arrived_at)
    return common.report_edits(args, name, [result], content, targets=targets)


def run_sweep(args: argparse.Namespace) -> int:
    from magicedit.editor import sweep_strip
    from magicedit.imaging import check_output, open_photo, save_image
    from magicedit.models.folder import ModelFolder
    from magicedit.request import EditRequest

    if "=" in args.au:
        raise MagicEditError(
            f"--au {shown(args.au)}: name the unit alone; --from and --to set its variations"
        )
    for variation in (args.start, args.stop):
        EditRequest({args.au: variation}, names=ModelFolder.find(args.model).editable)
    photo = open_photo(args.photo)
    check_output(args.output, exist_ok=args.overwrite, forbid=args.photo)
    pictures = common.pictures_of(args)
    editor = common.load_editor(args, (photo, args.face))
    sweep = (args.au, args.start, args.stop, pictures, args.face)
    results = editor.sweep(photo, *sweep, **common.strip_arguments(args))
    output = save_image(sweep_strip(results), args.output, forbid=args.photo)
    edits = [{"seconds": round(r.seconds, 3), "faces": common.faces_json(r)} for r in results]
    return common.report_edits(args, output, results, {"edits": edits}, targets=False)
