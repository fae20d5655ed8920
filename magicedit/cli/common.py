"""What several commands share: options, names of people, and printing."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from magicedit.errors import DatasetError


def say(message: str) -> None:
    """For people, not programs: stdout belongs to results."""
    print(message, file=sys.stderr, flush=True)


def print_json(content: dict[str, Any]) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def chosen_people(option: str, text: str, otherwise: str) -> list[str]:
    """Names joined by commas, or those of @FILE, one a line.

    Args:
        option: on the command line, for messages, such as "--identities".
        otherwise: what leaving the option out does, for messages.

    Raises:
        DatasetError: where the file cannot be read, or nobody is named.
    """
    if text.startswith("@"):
        try:
            names = Path(text[1:]).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"cannot read the names of {option} in {text[1:]}: {error}") from error
    else:
        names = text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise DatasetError(f"{option} {text} names nobody; leave it out to {otherwise}")
    return names
