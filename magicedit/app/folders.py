"""The temporary folder of a served page: held by a lock, swept by age, and removed after a kill."""

import contextlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from magicedit.errors import MagicEditError, OutputError
from magicedit.files import LOCK, locked

log = logging.getLogger(__name__)
PREFIX = "magicedit-app-"
ATTEMPTS = 10


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder in the system's temporary one, deleted at the end. Folders that killed servers left behind
    are deleted first; a living server's is held by its lock. OutputError where none can be made."""
    sweep_dead()
    with contextlib.ExitStack() as stack:
        for _ in range(ATTEMPTS):  # another start may sweep a folder before it is locked
            try:
                made = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
            except OSError as error:
                raise OutputError(
                    f"the page needs a temporary folder ({error}); free some space, or set another TMPDIR"
                ) from error
            folder = Path(stack.enter_context(made))
            with contextlib.suppress(OutputError):
                stack.enter_context(locked(folder))
                if (folder / LOCK).exists():
                    break
        else:
            raise OutputError(f"no folder could be locked in {tempfile.gettempdir()}; set TMPDIR to another")
        yield folder


def sweep_dead() -> None:
    """Deletes this user's folders of servers that no longer run."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # Others may place links and folders of this name where everybody can write
        with contextlib.suppress(OSError, MagicEditError):
            found = folder.lstat()
            own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
            if own and folder.is_dir() and not folder.is_symlink():
                with locked(folder):
                    shutil.rmtree(folder, ignore_errors=True)


class Sweeper:
    """A thread that deletes what lies unchanged in a folder for longer than `seconds`.

    Ages are those of the monotonic clock since a file was first seen as it is, so that a clock that is set
    changes nothing. Every failure concerns one file only.

    needed: called before each round; returns the files to keep, and folders to keep with all that is in them.
    """

    def __init__(self, folder: Path, seconds: float, needed: Callable[[], Collection[Path]]):
        self.folder, self.seconds, self.needed = folder, seconds, needed
        self._seen: dict[Path, tuple[int, float]] = {}  # last change, and when that was first seen
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def __enter__(self) -> "Sweeper":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self.seconds / 10):
            try:
                self.sweep(time.monotonic())
            except Exception:  # whatever `needed` raises: the next round sweeps
                log.exception("the page's folder could not be swept")

    def sweep(self, now: float) -> None:
        """Deletes files, and then folders that are empty; `now` in seconds of the monotonic clock."""
        needed, seen = {Path(path) for path in self.needed()}, {}
        for root, folders, names in os.walk(self.folder, topdown=False):
            for path in (Path(root) / name for name in (*names, *folders)):
                if path.parent == self.folder and path.name == LOCK:
                    continue
                with contextlib.suppress(OSError):  # deleted meanwhile, a folder that is not empty
                    changed = path.lstat().st_mtime_ns
                    before, since = self._seen.get(path, (changed, now))
                    seen[path] = (changed, since if before == changed else now)
                    if now - seen[path][1] > self.seconds and needed.isdisjoint((path, *path.parents)):
                        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
                        del seen[path]
        self._seen = seen
