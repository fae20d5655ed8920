"""Writes docs/cli.md, the reference of the command line, from the parsers themselves.

    python dev/cli_reference.py [--check]

`--check` changes nothing and ends with 1 where the page is not what the parsers say.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from magicedit.cli import build_parser
from magicedit.train.config import build_parser as build_train_parser

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"

HEAD = """\
<!-- Written by `python dev/cli_reference.py` from the parsers: change help texts there, not this page. -->

# Command line

Every command has `--help`, which says the same as this page. These rules hold for all commands:

- Results go to standard output, everything else to standard error.
- The exit code is 0 if everything worked. It is 1 if a part failed, such as some photographs of a folder. It
  is 2 if the input cannot be used: then one line says what was expected, what was received and what to do.
- `-q` (`--quiet`) prints only results, warnings and errors, without progress bars. `-v` (`--verbose`) prints
  more, with the time. `--debug` shows the whole traceback of an error.
- An existing file is replaced only with `--overwrite`.
- Faces are counted from 1, the largest.
- `--steps` is the number of denoising steps of the model.

"""


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Name, summary and parser of each command, in the order of `--help`."""
    (choices,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for listed in choices._choices_actions:
        yield listed.dest, listed.help, choices.choices[listed.dest]


def shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What a user can give, `--help`, `--debug`, `-q` and `-v` left out: every command has them."""
    everywhere = {"--help", "--debug", "--quiet", "--verbose"}
    return [
        action
        for action in parser._actions
        if action.help != argparse.SUPPRESS and everywhere.isdisjoint(action.option_strings)
    ]


def value_of(action: argparse.Action) -> str:
    """How the value of an option is written, with its choices; nothing for switches."""
    if action.nargs == 0:
        return ""
    written = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "VALUE")
    written = " ".join(written) if isinstance(written, tuple) else written
    return {"?": f"[{written}]", "*": f"[{written} ...]", "+": f"{written} [...]"}.get(action.nargs, written)


def usage(command: str, parser: argparse.ArgumentParser) -> str:
    """One line: arguments, what is required, and whether there is more."""
    words = [command]
    for action in shown(parser):
        if not action.option_strings:
            words.append(value_of(action))
        elif action.required:
            words.append(f"{action.option_strings[0]} {value_of(action)}".strip())
    if any(action.option_strings and not action.required for action in shown(parser)):
        words.append("[options]")
    return " ".join(words)


def described(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """A definition in Markdown: how it is written, and its help."""
    names = [f"`{f'{name} {value_of(action)}'.strip()}`" for name in action.option_strings]
    text = parser._get_formatter()._expand_help(action).replace("<", "&lt;").replace("*", r"\*")
    return f"{', '.join(names) or f'`{value_of(action)}`'}\n:   {text}\n"


def section(command: str, summary: str, parser: argparse.ArgumentParser) -> str:
    """Of one command: what it does, how it is called, its options, its examples."""
    summary = (parser.description or summary).strip()
    lines = [f"## {command}", "", summary[0].upper() + summary[1:].rstrip(".") + ".", ""]
    lines += ["```text", usage(command, parser), "```", ""]
    lines += [described(action, parser) for action in shown(parser) if action.help]
    if parser.epilog:
        lines += ["```text", parser.epilog.strip(), "```", ""]
    return "\n".join(lines)


def reference() -> str:
    """The whole page."""
    parts = []
    for name, summary, parser in commands(build_parser()):
        if name == "train":  # its flags are read by the script's own parser
            parser, summary = build_train_parser(), summary.partition(";")[0]
        parts.append(section(f"magicedit {name}", summary, parser))
    return HEAD + "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    text = reference()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
    return int(args.check and (not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text))


if __name__ == "__main__":
    sys.exit(main())
