"""Photographs opened by a page, and its pictures as files in its own folder."""

import hashlib
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image

from magicedit.editor.results import face_window
from magicedit.errors import ImageError, MagicEditError
from magicedit.faces import Face
from magicedit.imaging import Photo, open_photo, reduced

CLOSE_SIDE = 640  # px a side of the shown surroundings of a face, at most
SHOWN_SIDE = 1280  # px: the longer side of what the page shows; downloads have the photograph's own


class Cancelled(MagicEditError):
    """An edit that the user stopped, or whose page was closed."""


class PictureFiles:
    """The files that the browser fetches for one page, in a new folder inside `folder`."""

    def __init__(self, folder: Path):
        self.folder = Path(tempfile.mkdtemp(prefix="session-", dir=folder))
        self._writer = ThreadPoolExecutor(2, "pictures")
        self._lock = threading.Lock()  # held for moments only
        self._closed = False

    def stop(self) -> None:
        """Ends keeping: `keep_later` raises Cancelled from now on."""
        with self._lock:
            self._closed = True

    def delete(self) -> None:
        """Waits for unfinished writes, then deletes the folder; call `stop` first."""
        self._writer.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    def raise_if_closed(self) -> None:
        """Raises Cancelled after `stop`."""
        if self._closed:
            raise Cancelled("the page was closed")

    def keep(self, pixels: np.ndarray) -> Path:
        """Writes a picture for the browser as a JPEG file, once; Cancelled where the page is closed."""
        pixels = np.ascontiguousarray(pixels)
        path = self.folder / f"{hashlib.blake2b(pixels, digest_size=12).hexdigest()}.jpg"
        try:
            if not path.exists():
                whole = path.with_suffix(f".{threading.get_ident()}.tmp")
                PIL.Image.fromarray(pixels).save(whole, "JPEG", quality=92)
                whole.replace(path)
        except OSError:
            self.raise_if_closed()
            raise
        return path

    def keep_later(self, pixels: Callable[[], np.ndarray]) -> Future[Path]:
        """Computes and writes a picture in another thread; errors as in `keep`."""
        with self._lock:
            self.raise_if_closed()
            return self._writer.submit(lambda: self.keep(pixels()))


def open_upload(path: str | Path) -> Photo:
    """Opens an uploaded photograph; errors contain its name without our folder."""
    path = Path(path)
    try:
        photo = open_photo(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from error
    return replace(photo, source=Path(path.name))


def close_up(pixels: np.ndarray, face: Face) -> np.ndarray:
    """Returns a face's surroundings in a photograph (height, width, 3) uint8, at most CLOSE_SIDE a side."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = face_window(face.box, (width, height))
    return reduced(pixels[top:bottom, left:right], CLOSE_SIDE)
