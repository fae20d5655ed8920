"""Errors of the user as messages in the page, and to callers of the API."""

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from magicedit.app.session import Cancelled
from magicedit.errors import MagicEditError


def spoken(handler: Callable[..., Any], escape: bool = True) -> Callable[..., Any]:
    """The handler, whose MagicEditErrors become messages; what else escapes is our own fault and stays.

    escape: for the page, which draws messages as HTML; they may quote a file.
    """

    def text(error: MagicEditError) -> str:
        return html.escape(str(error), quote=False) if escape else str(error)

    @functools.wraps(handler)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except Cancelled as error:
            raise gr.Error(text(error), title="Stopped", duration=3, print_exception=False) from error
        except MagicEditError as error:
            raise gr.Error(text(error), duration=12, print_exception=False) from error

    return wrapped
