"""How a finished model replaces an earlier one in its folder: whole, or not at all, wherever a kill comes.

The new files are written aside, with `parts.json`, the SHA-256 of each. One rename decides: before it the
folder holds the earlier model; after it the new one is whole in FINISHED until its files are in their places.
Meanwhile `ModelFolder` reads it there, and the folder has no model_index.json, so that nothing else loads a
mixture.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from magicedit.files import read_json, sha256_of, sync
from magicedit.models.folder import FINISHED
from magicedit.train.state import remove, writing

PARTS, INDEX, CARD = "parts.json", "model_index.json", "README.md"
UNFINISHED = ".unfinished"
LARGEST_PARTS = 10_000_000  # bytes


@contextlib.contextmanager
def replaced_whole(folder: Path) -> Iterator[Path]:
    """Yields an empty folder for a model's files, which replace the earlier model's when the block ends.

    Other files of the folder, such as checkpoints and previews, stay. Raises OutputError where something
    cannot be written; then the earlier model stays, or `finish` completes the new one.
    """
    aside = folder / UNFINISHED
    with writing(folder):
        remove(aside)
        aside.mkdir(parents=True)
        yield aside
        files = _files(aside)
        digests = {name: sha256_of(aside / name) for name in sorted(files - {CARD, PARTS})}
        (aside / PARTS).write_text(json.dumps({"sha256": digests}, indent=1) + "\n")
        for path in (*aside.rglob("*"), aside):
            sync(path)
        aside.rename(folder / FINISHED)
    finish(folder)


def finish(folder: Path) -> None:
    """Puts a whole new model into its place that a kill left beside it, and deletes one that is not whole.

    Raises OutputError where a file cannot be written; call it again then.
    """
    with writing(folder):
        remove(folder / UNFINISHED)
        new = folder / FINISHED
        if not new.is_dir():
            return
        sync(folder)
        names = _files(new)
        # Of the earlier model: what it lists, and what else is in sub-folders that the new one has
        earlier = _listed(folder) | {
            file.relative_to(folder).as_posix()
            for part in {Path(name).parts[0] for name in names if "/" in name}
            for file in (folder / part).rglob("*")
            if file.is_file()
        }
        for name in (INDEX, PARTS):
            (folder / name).unlink(missing_ok=True)
        for name in earlier - names:
            (folder / name).unlink(missing_ok=True)
        for name in sorted(names, key=lambda name: (name == INDEX, name)):  # it makes the folder a model
            _put(new / name, folder / name)
        sync(folder)
        new.rename(folder / UNFINISHED)  # half deleted, it would count as whole
        remove(folder / UNFINISHED)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _listed(folder: Path) -> set[str]:
    """Returns the files of the folder that its `parts.json` names; none where it has no readable one."""
    try:
        listed = read_json(folder / PARTS, limit=LARGEST_PARTS)["sha256"]
        paths = {name: Path(name) for name in listed}
        return {n for n, path in paths.items() if ".." not in path.parts and (folder / path).is_file()}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _put(file: Path, place: Path) -> None:
    """Gives a file a second place, replacing what is there; a copy where the file system has no links."""
    place.parent.mkdir(parents=True, exist_ok=True)
    remove(place)
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
    sync(place)
