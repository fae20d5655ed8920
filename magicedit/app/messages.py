"""Errors of the user as messages in the page, and to callers of the API."""

import functools
import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from magicedit.app.folders import PREFIX
from magicedit.app.picture_files import Cancelled
from magicedit.errors import MagicEditError

WRONG_VALUES = "the values are not those that this address expects; see the page's API documentation"
LONGEST_MESSAGE = 1000  # characters; a message may quote what was sent
OUR_FOLDER = re.compile(rf"[^\s'\"(]*{PREFIX}\S*/")  # of files that a message names


def spoken(
    handler: Callable[..., Any], note: Callable[[gr.Request, str], None] | None = None
) -> Callable[..., Any]:
    """Returns the handler with MagicEditErrors turned into messages; other exceptions are bugs and stay.

    note: receives errors of the page, whose handlers get Gradio's request first. The page draws messages as
        HTML and they may quote a file, so they are escaped; API callers get them unescaped.
    """

    def text(error: MagicEditError, request: Any) -> str:
        told = OUR_FOLDER.sub("", str(error))
        told = told if len(told) <= LONGEST_MESSAGE else f"{told[:LONGEST_MESSAGE]}..."
        if note is None:
            return told
        note(request, told)
        return html.escape(told, quote=False)

    @functools.wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Cancelled as error:
            raise gr.Error(
                text(error, args[0]), title="Stopped", duration=3, print_exception=False
            ) from error
        except MagicEditError as error:
            raise gr.Error(text(error, args[0]), duration=12, print_exception=False) from error

    return wrapped


def said(text: str) -> str:
    """Returns the status line, which screen readers read out when it changes."""
    return f"<p class='me-status' role='status' aria-live='polite'>{html.escape(text)}</p>"


def listed(texts: Sequence[str]) -> str:
    """Returns an HTML list."""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f"<ul class='me-warnings'>{items}</ul>" if items else ""
