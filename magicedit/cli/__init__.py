"""The command line: thin, and quick to say what is wrong.

Exit codes: 0 done; 1 `doctor` found something essential broken; 2 the user's input cannot be used, and one
line says why. Results go to stdout, all else to stderr. Heavy imports happen in the command that needs them.
"""

import argparse
import contextlib
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

from magicedit import __version__
from magicedit.cli import app, editing, evaluation, expressions, training
from magicedit.cli.common import add_json_option, print_json, say
from magicedit.errors import MagicEditError

USER_ERROR = 2

DESCRIPTION = """\
Edits facial expressions in photographs, by FACS action units (AU12: lip corners up, AU4: brows down).

  magicedit edit photo.jpg -o smile.png --au AU12=+3
  magicedit measure photo.jpg
  magicedit transfer --from smile.jpg --to photo.jpg -o copy.png
  magicedit doctor
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
            return training.run_train(passed_on)
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

    for module in (editing, expressions, app, training, evaluation):
        module.add_commands(add_command)

    doctor = add_command("doctor", "print versions, devices and models, and whether they work", run_doctor)
    add_json_option(doctor)
    return parser


# --- The commands -------------------------------------------------------------------------------------------


def run_doctor(args: argparse.Namespace) -> int:
    from magicedit.doctor import examine

    report = examine()
    if args.json:
        print_json(report.to_json())
    else:
        print(report)
    return 0 if report.healthy else 1
