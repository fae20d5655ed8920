"""The web page: `magicedit app`. Needs the extra `app` (Gradio)."""

from magicedit.app.server import serve
from magicedit.app.session import PastEdit, Session

__all__ = ["PastEdit", "Session", "serve"]
