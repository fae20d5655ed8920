"""Photographs opened by a page, and its pictures as files in its own folder."""

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image

from magicedit.editor.results import face_window
from magicedit.errors import ImageError, MagicEditError, OutputError
from magicedit.faces import Face
from magicedit.files import shown
from magicedit.imaging import Photo, open_photo, reduced
from magicedit.provenance import Mark, renamed, without_place

CLOSE_SIDE = 640  # px a side of the shown surroundings of a face, at most
SHOWN_SIDE = 1280  # px: the longer side of what the page shows; downloads have the photograph's own


class Cancelled(MagicEditError):
    """An edit that the user stopped, or whose page was closed."""


@dataclass(frozen=True)
class Upload:
    """A photograph as it was uploaded, kept for as long as its page. name: as the user called it."""

    path: Path
    name: str


class PictureFiles:
    """The files that the browser fetches for one page, in a folder inside `folder`, made for the first of
    them."""

    def __init__(self, folder: Path):
        self._parent = folder
        self._made: Path | None = None
        self._writer = ThreadPoolExecutor(2, "pictures")
        self._lock = threading.Lock()  # held for moments only
        self._closed = False

    @property
    def folder(self) -> Path:
        """The page's own folder; Cancelled where the page is closed, OutputError where it cannot be made."""
        with self._lock:
            self.raise_if_closed()
            try:
                if self._made is None:
                    self._made = Path(tempfile.mkdtemp(prefix="session-", dir=self._parent))
                self._made.mkdir(exist_ok=True)  # something else may clean temporary folders
            except OSError as error:
                raise unwritable(error) from error
            return self._made

    def stop(self) -> None:
        """Ends keeping: `keep_later` raises Cancelled from now on."""
        with self._lock:
            self._closed = True

    def delete(self) -> None:
        """Waits for unfinished writes, then deletes the folder; call `stop` first."""
        self._writer.shutdown()
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)

    def raise_if_closed(self) -> None:
        """Raises Cancelled after `stop`."""
        if self._closed:
            raise Cancelled("the page was closed")

    def keep_upload(self, path: Path) -> Upload:
        """Keeps an uploaded file for as long as the page; the upload itself is swept by age."""
        try:
            kept = Path(tempfile.mkdtemp(prefix="photograph-", dir=self.folder)) / f"kept{path.suffix}"
            try:
                os.link(path, kept)
            except OSError:  # a file system without links
                shutil.copyfile(path, kept)
        except OSError as error:
            self.raise_if_closed()
            raise unwritable(error) from error
        return Upload(kept, path.name)

    def keep(self, pixels: np.ndarray, edited: bool = False) -> Path:
        """Writes a picture for the browser as a JPEG file, once; Cancelled where the page is closed.

        edited: marks it as such; people save what they see.
        """
        pixels = np.ascontiguousarray(pixels)
        name = hashlib.blake2b(pixels, digest_size=12).hexdigest() + ("-edited" if edited else "")
        path = self.folder / f"{name}.jpg"
        try:
            if path.exists():
                os.utime(path)  # begins its time anew, see `Sweeper`
            else:
                whole = path.with_suffix(f".{threading.get_ident()}.tmp")
                mark = {"xmp": Mark({}).packet()} if edited else {}
                PIL.Image.fromarray(pixels).save(whole, "JPEG", quality=92, **mark)
                whole.replace(path)
        except OSError as error:
            self.raise_if_closed()
            raise unwritable(error) from error
        return path

    def keep_later(self, pixels: Callable[[], np.ndarray]) -> Future[Path]:
        """Computes and writes an edited picture in another thread; errors as in `keep`."""
        with self._lock:
            self.raise_if_closed()
            return self._writer.submit(lambda: self.keep(pixels(), edited=True))


def unwritable(error: OSError) -> OutputError:
    return OutputError(f"the server cannot write the page's files ({error.strerror}); make room on its disk")


def open_upload(upload: str | Path | Upload) -> Photo:
    """Opens an uploaded photograph, without its place and its camera's numbers; errors contain its name
    without our folder."""
    if not isinstance(upload, Upload):
        upload = Upload(Path(upload), Path(upload).name)
    try:
        photo = open_photo(upload.path)
    except ImageError as error:
        raise ImageError(without_folder(error, upload.path, upload.name)) from error
    return renamed(without_place(photo), upload.name)


def without_folder(error: MagicEditError | str, path: Path, name: str) -> str:
    """Returns a message about an uploaded file with the file's name instead of its place."""
    return str(error).replace(str(path), name).replace(shown(path), name)


def close_up(pixels: np.ndarray, face: Face) -> np.ndarray:
    """Returns a face's surroundings in a photograph (height, width, 3) uint8, at most CLOSE_SIDE a side."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = face_window(face.box, (width, height))
    return reduced(pixels[top:bottom, left:right], CLOSE_SIDE)
