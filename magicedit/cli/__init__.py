"""The command line.

Exit codes: 0 success; 1 part of the work failed (photographs of a folder, a check of `doctor` or `verify`); 2
invalid input, explained in one line. Results go to stdout, everything else to stderr. Each command does its
heavy imports itself.
"""

import argparse
import contextlib
import difflib
import errno
import gc
import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn

from magicedit import __version__
from magicedit.cli import (
    app,
    completion,
    editing,
    evaluation,
    expressions,
    hub,
    stimuli,
    training,
    verifying,
    video,
)
from magicedit.cli.common import add_json_option, print_json, telling
from magicedit.errors import MagicEditError, needs_whole, reason_of

USER_ERROR = 2
EVERYWHERE = {  # options of all commands, by name
    "debug": {"--debug"},
    "quiet": {"-q", "--quiet"},
    "verbose": {"-v", "--verbose"},
}

DESCRIPTION = """\
Edits facial expressions in photographs, by FACS action units (AU12: lip corners up, AU4: brows down).

  magicedit edit photo.jpg -o smile.png --au AU12=+3                three steps more smile
  magicedit edit photos -o edited --neutral                         every photograph of a folder
  magicedit measure photo.jpg                                       what the faces show
  magicedit transfer --from smile.jpg --to photo.jpg -o copy.png    the expression of another photograph
  magicedit COMMAND --help                                          options and examples of a command
"""

DOCTOR_EXAMPLES = """\
examples:
  magicedit doctor
  magicedit doctor --json               the same for a program

The exit code is 1 if something essential is broken.
"""

GROUPS = {  # of commands in `magicedit --help`
    "edit photographs": ("edit", "sweep", "transfer", "interpolate", "stimuli"),
    "look at faces": ("measure",),
    "edit videos": ("video", "reenact"),
    "what was edited": ("verify",),
    "in the browser": ("app",),
    "make a model": ("prepare", "shards", "train", "convert", "push"),
    "measure editors": ("evaluate", "compare"),
    "this installation": ("doctor", "completion"),
}


class GroupedHelp(argparse.RawDescriptionHelpFormatter):
    """Lists commands under the titles of GROUPS, those of no group at the end."""

    def _format_action(self, action: argparse.Action) -> str:
        if not isinstance(action, argparse._SubParsersAction):
            return super()._format_action(action)
        self._action_max_length += self._indent_increment
        listed = {command.dest: command for command in action._choices_actions}
        parts = []
        for title, names in GROUPS.items():
            if commands := [listed.pop(name) for name in names if name in listed]:
                parts += [f"  {title}\n", *self._indented(commands)]
        return "".join(parts + self._indented(listed.values()))

    def _indented(self, commands: Iterable[argparse.Action]) -> list[str]:
        self._indent()
        lines = [super(GroupedHelp, self)._format_action(command) for command in commands]
        self._dedent()
        return lines


class Parser(argparse.ArgumentParser):
    """Reports invalid options in one line, like all user errors, with the nearest valid word."""

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = next((word.partition("=")[0] for word in unknown if word.startswith("--")), None)
            hint = "" if option is None else _did_you_mean(option, self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed, unknown

    def _check_value(self, action: argparse.Action, value: object) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += _did_you_mean(str(value), map(str, action.choices or ()))
            raise

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"magicedit: error: {message} (see `{self.prog} --help`)\n")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. `argv`: default: this process's own."""
    own_process = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    if own_process:
        open_closed_streams()
    if own_process and isinstance(sys.stdout, io.TextIOWrapper):  # names of files that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    command = next((argument for argument in argv if not argument.startswith("-")), None)
    if command is not None and re.fullmatch(r"AU\d+[LR]?([=+-].*)?", command, re.IGNORECASE):
        return explain_unit(command, argv)
    passed_on: list[str] = []
    if command == "train":  # its own parser reads its flags
        position = argv.index("train") + 1
        argv, passed_on = argv[:position], argv[position:]
    args = build_parser().parse_args(argv)
    args.own_process = own_process
    for name, flags in EVERYWHERE.items():
        setattr(args, name, getattr(args, name, False) or not flags.isdisjoint(passed_on))
    passed_on = [argument for argument in passed_on if argument not in set().union(*EVERYWHERE.values())]
    debug = args.debug
    try:
        if command == "train":
            with needs_whole("magicedit train"), quiet_training(args.quiet):
                from magicedit.train.train import main as train

                return train(passed_on)
        # Waiting OpenMP threads spin by default: on two busy cores, an edit with `mini` took 20 s, and 0.8 s
        # with sleeping threads. Set before torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        with (
            contextlib.nullcontext() if debug else quiet_libraries(),
            needs_whole(f"magicedit {command}"),
            telling(quiet=args.quiet, verbose=args.verbose),
        ):
            code = args.run(args)
            sys.stdout.flush()  # here, where its errors are told
            return code
    except MagicEditError as error:
        if debug:
            traceback.print_exc()
        else:
            print_error(f"error: {reason_of(error, None)}")
        return USER_ERROR
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    except BrokenPipeError:  # the reader of the results has ended, as `head` does
        if not own_process:
            raise
        drop_stdout()
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC or not own_process:
            raise
        drop_stdout()
        print_error(f"error: the results could not be written ({error.strerror}); make room")
        return USER_ERROR
    finally:
        if own_process:
            gc.freeze()  # else Python's last garbage collection takes 1.3 s


def open_closed_streams() -> None:
    """Opens the null device for what the caller closed: else the next file opened would be written to, and
    messages for stderr would go to stdout."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open


def drop_stdout() -> None:
    """Lets the rest of the output go nowhere: Python would try again to write it as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hides the libraries' warnings to developers, which `--debug` shows."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def quiet_training(quiet: bool) -> Iterator[None]:
    """Hides the bar and all messages of training but warnings, where it is to be `quiet`."""
    if not quiet:
        yield
        return
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        del os.environ["TQDM_DISABLE"]


def print_error(message: str) -> None:
    print(f"magicedit: {message}", file=sys.stderr, flush=True)


def explain_unit(unit: str, argv: Sequence[str]) -> int:
    """Tells what the model of --model edits, where the name of an action unit is in a command's place."""
    from magicedit.models.folder import ModelFolder

    options = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    options.add_argument("--model", default="mini")
    try:
        model = options.parse_known_args(argv)[0].model
        found = ModelFolder.find(model)
        found.check_name()
    except (argparse.ArgumentError, MagicEditError) as error:
        print_error(f"error: {error}")
        return USER_ERROR
    names = found.editable
    edits = (
        f"the units of {model} are known once it is loaded"
        if names is None
        else f"{model} edits {', '.join(names)}"
    )
    print_error(
        f"error: {unit} is no command; {edits}. For example: magicedit edit PHOTO -o OUT --au AU12=+3"
    )
    return USER_ERROR


def build_parser() -> Parser:
    common = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: so that a command's default does not undo `magicedit --debug COMMAND`
    switch = {"action": "store_true", "default": argparse.SUPPRESS}
    how_much = common.add_mutually_exclusive_group()
    how_much.add_argument("-q", "--quiet", **switch, help="print only results, warnings and errors")
    how_much.add_argument("-v", "--verbose", **switch, help="tell more, with the time")
    common.add_argument("--debug", **switch, help="show tracebacks and the libraries' messages")
    parser = Parser(
        prog="magicedit",
        description=DESCRIPTION,
        formatter_class=GroupedHelp,
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"magicedit {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

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

    for module in (editing, expressions, video, stimuli, verifying, app, training, hub, evaluation):
        module.add_commands(add_command)

    what = "print versions, devices and models, and whether they work"
    add_json_option(add_command("doctor", what, run_doctor, DOCTOR_EXAMPLES))
    completion.add_commands(add_command)
    for command in commands.choices.values():
        command.usage = short_usage(command)
    return parser


def short_usage(command: argparse.ArgumentParser) -> str:
    """Returns a usage line with the required arguments only."""
    words, optional = ["%(prog)s"], False
    for action in command._actions:
        metavar = action.metavar or "|".join(action.choices or [action.dest.upper()])
        if not action.option_strings:
            words.append(metavar)
        elif action.required:
            words.append(f"{action.option_strings[0]} {metavar}")
        else:
            optional |= action.dest not in ("help", *EVERYWHERE)
    return " ".join(words + ["[options]"] * optional)


def run_doctor(args: argparse.Namespace) -> int:
    from magicedit.doctor import examine

    report = examine()
    if args.json:
        print_json(report.to_json())
    else:
        print(report)
    return 0 if report.healthy else 1
