"""Errors caused by user input; each message says how to fix it.

Every message says what was expected, what was given and what to do. The command line prints only the message
and exits with 2; any other exception is a bug of ours and keeps its traceback.
"""

import contextlib
from collections.abc import Iterator

# Packages that `magicedit` requires and `magicedit-light` does not (setup.py)
LEFT_OUT = {
    *("accelerate", "datasets", "diffusers", "huggingface_hub", "peft", "pyarrow", "scipy"),
    *("torch", "transformers"),
}
LIGHT_EXTRAS = {"app", "c2pa", "exr", "heic", "video"}
LONGEST_REASON = 300  # characters: messages of parsers and libraries may quote a whole file


class MagicEditError(ValueError):
    """Base of all errors below: catch it to catch every error caused by invalid input."""


class ActionUnitError(MagicEditError):
    """An action unit, an intensity or an emotion that is unknown, malformed or out of range."""


class ImageError(MagicEditError):
    """A photograph that cannot be read or edited."""


class VideoError(MagicEditError):
    """A video that cannot be read, is damaged, or cannot be edited."""


class NoFaceError(MagicEditError):
    """No face where one is needed, or not the requested face."""


class ModelError(MagicEditError):
    """A model folder or hub id that is incomplete, mismatched, unsafe (pickle) or not reachable."""


class DatasetError(MagicEditError):
    """Training data that is missing, unreadable or made for something else."""


class TrainingError(MagicEditError):
    """Training settings that contradict each other, or a run that must not continue."""


class OutputError(MagicEditError):
    """A result that cannot be written to the requested place."""


class MissingDependencyError(MagicEditError):
    """A feature whose optional packages are not installed; the message names the extra."""


@contextlib.contextmanager
def needs_extra(extra: str, problem: str) -> Iterator[None]:
    """Turns an ImportError into a MissingDependencyError that states the problem and names the extra."""
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(f"{problem} ({error}); {installing(extra)}") from error


def version_of(package: str) -> str | None:
    """Returns the version of an installed distribution; None where there is none of that name."""
    import importlib.metadata  # a slow import

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_installed(package: str) -> bool:
    """Whether a distribution of that name is installed."""
    return version_of(package) is not None


def is_light() -> bool:
    """Whether `magicedit-light` is what is installed, and not `magicedit`."""
    return is_installed("magicedit-light") and not is_installed("magicedit")


def installing(extra: str | None = None) -> str:
    """Returns how to install the whole package or an extra of it.

    Where `magicedit-light` is installed: an extra of that, if it has it, else the whole package in its place,
    because both have the same files.
    """
    if extra in LIGHT_EXTRAS and is_light():
        return f"pip install 'magicedit-light[{extra}]'"
    command = f"pip install 'magicedit[{extra}]'" if extra else "pip install magicedit"
    return f"pip uninstall magicedit-light, then {command}" if is_light() else command


@contextlib.contextmanager
def needs_whole(problem: str) -> Iterator[None]:
    """Turns the absence of a library of LEFT_OUT into a MissingDependencyError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in LEFT_OUT:
            raise
        raise MissingDependencyError(
            f"{problem} needs the whole package ({error}); {installing()}"
        ) from error


def reason_of(error: BaseException, most: int | None = LONGEST_REASON) -> str:
    """Returns an error's message as one line of at most `most` characters; its type where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__


@contextlib.contextmanager
def building(kind: type[MagicEditError], problem: str) -> Iterator[None]:
    """Turns whatever is raised in the block, but a `kind`, into one that states the problem and the reason.

    It is for libraries' classes, which raise anything at all on a configuration that is none.
    """
    try:
        yield
    except kind:
        raise
    except Exception as error:
        raise kind(f"{problem}: {reason_of(error, 1000)}") from error  # which may name every tensor
