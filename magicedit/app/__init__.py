"""The web page: `magicedit app`. Needs the extra `app` (Gradio)."""

from magicedit.app.server import serve
from magicedit.app.session import EditSettings, PastEdit, Session

__all__ = ["EditSettings", "PastEdit", "Session", "serve"]
