"""`magicedit completion`: a script that completes commands, options and file names in a shell."""

import argparse
import os
import re
import sys
from collections.abc import Callable

from magicedit.cli.common import file_or_pipe, path_of

SHELLS = ("bash", "zsh", "fish", "tcsh")

USAGE = {  # of each script; its header says the same
    "bash": "source <(magicedit completion bash)",
    "zsh": "magicedit completion zsh > ~/.zfunc/_magicedit   in a folder of $fpath, before compinit",
    "fish": "magicedit completion fish > ~/.config/fish/completions/magicedit.fish",
    "tcsh": "magicedit completion tcsh > ~/.magicedit.csh     then in ~/.tcshrc: source ~/.magicedit.csh",
}
COMPLETION_EXAMPLES = f"""\
examples:
  {USAGE["bash"]}              in this shell; in ~/.bashrc for every one
  {USAGE["zsh"]}
  {USAGE["fish"]}
  {USAGE["tcsh"]}
"""


def add_commands(add_command: Callable[..., argparse.ArgumentParser]) -> None:
    what = "print a script that completes this command in a shell"
    completion = add_command("completion", what, run_completion, COMPLETION_EXAMPLES)
    completion.add_argument("shell", choices=SHELLS, help="the shell")


def run_completion(args: argparse.Namespace) -> int:
    try:
        print(script(args.shell), flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest as it ends
    return 0


def script(shell: str) -> str:
    """Returns the completion script of all commands; the flags of `train` come from its own parser."""
    import shtab

    from magicedit.cli import build_parser
    from magicedit.train.config import build_parser as build_train_parser

    parser = build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    commands.choices["train"] = build_train_parser()
    for command in commands.choices.values():
        for action in command._actions:
            if action.type in (path_of, file_or_pipe) and not action.choices:
                action.complete = shtab.FILE
    text = shtab.complete(parser, shell)
    usage = r"# Usage:\n# 1\).*\n# 2\).*\n#(?:    | See also).*"
    return re.sub(usage, lambda _: f"# Usage: {USAGE[shell]}", text, count=1)
