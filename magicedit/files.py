"""Atomic file writing, and small YAML documents that people may edit."""

import contextlib
import hashlib
import os
import reprlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from magicedit.errors import MagicEditError, OutputError

# What we write has a few thousand bytes, two levels, and no anchors or tags
LARGEST_DOCUMENT = 100_000  # bytes
LONGEST_TEXT = 10_000  # characters of one name or value
DEEPEST = 10  # levels
LONGEST_REASON = 300  # characters: a parser's messages may quote the file


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """Opens a file to write that becomes `path` when the block succeeds: a crash leaves the old one or none.

    It has another name in the same folder until then. Raises OutputError where the file cannot be created,
    written or renamed.
    """
    target = Path(path).resolve()  # a link keeps pointing where it did
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"{path} could not be written ({error}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text as `replacing` does."""
    with replacing(path) as file:
        file.write(text.encode())


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def walk(folder: Path, leave_out: Callable[[Path], bool]) -> Iterator[Path]:
    """Files in a folder and its sub-folders, links followed, each folder once; hidden ones and sub-folders to
    leave out are not among them."""
    visited = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        here = Path(root)
        if here.resolve() in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(here.resolve())
        folders[:] = [name for name in folders if not name.startswith(".") and not leave_out(here / name)]
        yield from (here / name for name in names if not name.startswith("."))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_document(path: str | Path, format: str, content: Mapping[str, Any]) -> Path:
    """Writes YAML with the format's name first; OutputError where that fails."""
    import yaml

    text = yaml.safe_dump({"magicedit": format, **content}, sort_keys=False, allow_unicode=True)
    write_text(path, text)
    return Path(path)


def read_document(path: str | Path, format: str) -> dict[str, Any]:
    """Reads the mapping that `write_document` wrote under that format's name.

    Raises MagicEditError where the file is missing, too large, not YAML, or of another format.
    """
    import yaml

    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_DOCUMENT:
            raise ValueError("it is larger than any such file; is it the right one?")
        text = path.read_text(encoding="utf-8")
        _check_plain(text)
        _check_keys(yaml.compose(text, Loader=yaml.SafeLoader))
        content = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise MagicEditError(f"{path} does not exist; check the path of the `{format}` file") from error
    except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:  # ValueError: 2020-13-45
        reason = " ".join(str(error).split())[:LONGEST_REASON]
        if isinstance(error, UnicodeDecodeError):
            reason = "it is no YAML text (in UTF-8); is it the right file?"
        raise MagicEditError(f"{path} cannot be read as `{format}`: {reason}") from error
    if not isinstance(content, dict) or content.get("magicedit") != format:
        said = content.get("magicedit") if isinstance(content, dict) else None
        says = f"says {reprlib.repr(said)}" if isinstance(said, str) else "is missing"
        raise MagicEditError(
            f"{path} is no `{format}` file: its line `magicedit:` {says}; "
            "give one that magicedit wrote for this"
        )
    del content["magicedit"]
    return content


def _check_plain(text: str) -> None:
    """Raises ValueError for YAML that expands enormously, or that yields anything but plain values.

    An alias repeats the whole content of its anchor, so that aliases of aliases can fill any memory.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it has an alias (*{reprlib.repr(event.anchor)[1:-1]}); write the value itself")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"it has a tag ({reprlib.repr(event.tag)}); leave it out")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_TEXT:
            raise ValueError(f"it has a text of {len(event.value)} characters; {LONGEST_TEXT} are allowed")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _check_keys(node: Any) -> None:
    """Raises ValueError on duplicate keys, which YAML would silently overwrite."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    both = f"lines {lines[key.value]} and {line}"
                    raise ValueError(f"it has {reprlib.repr(key.value)} twice, in {both}; keep one")
                lines[key.value] = line
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item)
