"""Files written all or nothing, and small YAML documents that people may change."""

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from magicedit.errors import MagicEditError, OutputError

LARGEST_DOCUMENT = 1_000_000  # bytes: what we write takes a few thousand


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write that becomes `path` when the block ends well: a crash leaves the old one or none.

    It has another name in the same folder until then.

    Raises:
        OutputError: where the file cannot be made, written or renamed.
    """
    target = Path(path).resolve()  # a link keeps pointing where it did
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise OutputError(f"{path} could not be written ({error}); choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_document(path: str | Path, format: str, content: Mapping[str, Any]) -> Path:
    """Writes YAML with the format's name first; OutputError where that fails."""
    import yaml

    text = yaml.safe_dump({"magicedit": format, **content}, sort_keys=False, allow_unicode=True)
    with replacing(path) as file:
        file.write(text.encode())
    return Path(path)


def read_document(path: str | Path, format: str) -> dict[str, Any]:
    """The mapping that `write_document` wrote under that format's name.

    Raises:
        MagicEditError: where the file is missing, too large, no YAML, or says another format.
    """
    import yaml

    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_DOCUMENT:
            raise MagicEditError(f"{path} is larger than any `{format}` file; is it the right one?")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise MagicEditError(
            f"{path} cannot be read as `{format}`: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict) or content.get("magicedit") != format:
        said = content.get("magicedit") if isinstance(content, dict) else None
        raise MagicEditError(
            f"{path} is no `{format}` file: its line `magicedit:` says {said!r}; "
            "give one that magicedit wrote for this"
        )
    del content["magicedit"]
    return content
