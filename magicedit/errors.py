"""Errors that a user can cause, and mend.

Every message says what was expected, what came and what to do about it. The command line prints the
message alone and exits with 2; anything else that escapes is our own fault and keeps its traceback.
"""


class MagicEditError(ValueError):
    """Base of all errors below: catch this one to catch whatever bad input can cause."""


class ActionUnitError(MagicEditError):
    """An action unit, an intensity or an emotion that is unknown, malformed or out of range."""


class ImageError(MagicEditError):
    """A photograph that cannot be read, or cannot be edited as it is."""


class VideoError(MagicEditError):
    """A video that cannot be read, is damaged, or cannot be edited as it is."""


class NoFaceError(MagicEditError):
    """No face where one is needed, or not the face that was asked for."""


class ModelError(MagicEditError):
    """A model folder or hub id that is incomplete, mismatched, unsafe (pickle) or not reachable."""


class DatasetError(MagicEditError):
    """Training data that is missing, unreadable or made for something else."""


class TrainingError(MagicEditError):
    """Training settings that contradict each other, or a run that must not go on."""


class OutputError(MagicEditError):
    """A result that cannot be written where it was asked for."""


class MissingDependencyError(MagicEditError):
    """A feature whose optional packages are not installed; the message names the extra."""
