"""Errors of the user as messages in the page, and to callers of the API."""

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from magicedit.app.picture_files import Cancelled
from magicedit.errors import MagicEditError


def spoken(
    handler: Callable[..., Any], note: Callable[[gr.Request, str], None] | None = None
) -> Callable[..., Any]:
    """Returns the handler with MagicEditErrors turned into messages; other exceptions are bugs and stay.

    note: receives errors of the page, whose handlers get Gradio's request first. The page draws messages as
        HTML and they may quote a file, so they are escaped; API callers get them unescaped.
    """

    def text(error: MagicEditError, request: Any) -> str:
        if note is None:
            return str(error)
        note(request, str(error))
        return html.escape(str(error), quote=False)

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
