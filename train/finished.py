"""How a finished model replaces an earlier one in its folder: whole, or not at all, wherever a kill comes.

The new files are written aside, with `parts.json`, the SHA-256 of each. One rename decides: before it the
folder holds the earlier model; after it the new one is whole in FINISHED until its files are in their places.
Meanwhile `ModelFolder` reads it there, and the folder has no index, so that nothing else loads a
mixture.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from magicedit.errors import MagicEditError
from magicedit.files import read_json, sha256_of, sync, writing
from magicedit.models.checks import LARGEST_JSON, PARTS
from magicedit.models.folder import ADAPTERS, ADAPTERS_INDEX, FINISHED, INDEX
from magicedit.train.state import remove

UNFINISHED, CARD = ".unfinished", "README.md"
RUN_FOLDERS = ("logs", "previews")  # of a run; its checkpoints' names are no identifiers, as components' are
INDEXES = (INDEX, ADAPTERS_INDEX)  # each makes a folder a model
BESIDE = "|".join(  # the components
    [*map(re.escape, (*INDEXES, ADAPTERS, PARTS, "training.json", "README.md")), r"pipeline\w*\.py"]
)


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
        (aside / PARTS).write_text(json.dumps({"sha256": digests}, indent=1) + "\n", encoding="utf-8")
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
        components = {Path(name).parts[0] for name in names if "/" in name}
        for part in components:
            if (folder / part).is_symlink():  # what it points to is not ours
                (folder / part).unlink()
        # Of the earlier model: what it lists, and what else is in sub-folders that the new one has
        earlier = _listed(folder) | {
            file.relative_to(folder).as_posix()
            for part in components
            for file in (folder / part).rglob("*")
            if file.is_file()
        }
        for index in INDEXES:
            (folder / index).unlink(missing_ok=True)
        # Configurations, which make a folder a component, and the list go last: a kill leaves the rest known
        for name in sorted(earlier - names, key=lambda name: name.endswith("config.json")):
            (folder / name).unlink(missing_ok=True)
        (folder / PARTS).unlink(missing_ok=True)
        for name in sorted(names, key=lambda name: (name in INDEXES, name)):
            _put(new / name, folder / name)
        sync(folder)
        new.rename(folder / UNFINISHED)  # half deleted, it would count as whole
        remove(folder / UNFINISHED)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _listed(folder: Path) -> set[str]:
    """Returns the files of a model in the folder that its `parts.json` names; none without a readable one."""
    try:
        listed = read_json(folder / PARTS, limit=LARGEST_JSON)["sha256"]
        return {name for name in listed if _is_part(folder, name)}
    except (MagicEditError, AttributeError, KeyError, TypeError):
        return set()


def _is_part(folder: Path, name: str) -> bool:
    """Whether a list, which anybody may have written, names a file of a model in the folder: one in a
    component's folder, or one that is saved beside these."""
    parts = name.split("/")
    if not all(re.fullmatch(r"[\w. -]+", part) and part not in (".", "..") for part in parts):
        return False
    if any((folder / Path(*parts[:n])).is_symlink() for n in range(1, len(parts))):
        return False
    component = parts[0].isidentifier() and parts[0] not in RUN_FOLDERS
    known = component and any((folder / parts[0]).glob("*config.json"))
    return (known if len(parts) > 1 else bool(re.fullmatch(BESIDE, name))) and (folder / name).is_file()


def _put(file: Path, place: Path) -> None:
    """Gives a file a second place, replacing what is there; a copy where the file system has no links."""
    place.parent.mkdir(parents=True, exist_ok=True)
    remove(place)
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)
    sync(place)
