"""`magicedit stimuli`: the stimulus set of a factorial design."""

import argparse
from collections.abc import Callable

from magicedit.cli import common
from magicedit.files import shown

EXAMPLES = """\
example of a design, people.yaml:
  people: photos                      a folder, a list of files, or NAME: FILE for each person
  controls:
    AU12: [0, 2, 4]                   all levels of all controls are crossed
    AU4: [0, 3]
  interocular: 120                    px between the eyes; the canvas is 480 x 600 px
  luminance: average
  oval: 1.1

  magicedit stimuli people.yaml -o stimuli

The folder gets a PNG and a landmark template (.tem) for each stimulus, stimuli.csv with requested and
measured intensities, and methods.md. A repeated run skips finished stimuli. docs/stimuli.md has all keys.
"""
PARTLY_FAILED = 1


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    what = "make the stimulus set of a factorial design: people x levels of controls"
    parser = add_command("stimuli", what, run_stimuli, EXAMPLES)
    parser.add_argument("design", type=common.path_of, metavar="DESIGN", help="a YAML file")
    common.add_output_option(parser, "FOLDER", "where to write the set")
    common.add_overwrite_option(parser, "--force", what="make all stimuli again, and replace other files")
    model = parser.add_argument_group("the model")
    common.add_model_option(model)
    common.add_device_options(model)
    out = parser.add_argument_group("output")
    what = "do not mark stimuli as edited, see `magicedit verify`"
    out.add_argument("--no-mark", dest="mark", action="store_false", help=what)
    common.add_json_option(out)


def run_stimuli(args: argparse.Namespace) -> int:
    from magicedit.batch.designs import Design
    from magicedit.batch.stimuli import make_stimuli

    design = Design.load(args.design)
    settings = common.options(args, "model", "device", "dtype", "mark")
    common.check_model(args)
    settings |= {"force": args.overwrite, "progress": common.shows_bars(args), "say": common.say}
    report = make_stimuli(design, args.output, **settings)
    for stimulus, reason in report.failed.items():
        common.warn(f"failed: {shown(stimulus)}: {reason}")
    if args.json:
        common.print_json(report.to_json())
    else:
        print(f"made      {report.made:>6}")
        print(f"skipped   {report.kept:>6}  finished by an earlier run")
        print(f"failed    {len(report.failed):>6}")
        print(shown(report.output))
    return PARTLY_FAILED if report.failed else 0
