"""Who is on the photographs of a folder, and of which split, by the names of its sub-folders."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from magicedit.errors import DatasetError
from magicedit.files import shown

TRAIN, VALIDATION, TEST = "train", "validation", "test"
# Names of folders that hold a split or everything, and nobody's photographs; case does not count
SPLITS = {
    **dict.fromkeys(("train", "training", "train_set"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev", "validation_set", "val_set"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "test_set"), TEST),
}
CONTAINERS = frozenset(
    ("images", "image", "imgs", "img", "photos", "photographs", "pictures", "faces", "data")
)


class People(NamedTuple):
    """identities: by name of the photograph. splits: by identity, one of TRAIN, VALIDATION and TEST, where
    folders tell them, else empty. notes: folder -> what may be wrong with it."""

    identities: dict[str, str]
    splits: dict[str, str]
    notes: dict[str, str]


def people_of(names: Iterable[str], listed: Mapping[str, str] | None = None) -> People:
    """Returns the people of photographs, by their paths relative to the folder with forward slashes.

    `ann/1.jpg` and `ann/day/1.jpg` are of ann; `1.jpg` is an identity of its own. Folders of splits and those
    that hold everything are no people: `train/ann/1.jpg` and `images/train/ann/1.jpg` are of ann too.

    listed: identities by name, in place of those of the folders.

    Raises DatasetError where photographs lie directly in such folders and are not listed, or a person is in
    two splits.
    """
    names = list(names)
    kept = {name: tuple(name.split("/")) for name in names}
    split_of: dict[str, str] = {}
    while tops := Counter(parts[0].casefold() for parts in kept.values() if len(parts) > 1):
        splits = [top for top in tops if top in SPLITS]
        shared = [top for top in tops if top in CONTAINERS]
        if len(splits) + len(shared) < len(tops) or (splits and shared) or (splits and split_of):
            break
        for name, parts in kept.items():
            if len(parts) == 2 and listed is None:
                raise DatasetError(
                    f"{parts[0]} names no person, but photographs such as {shown(name)} lie directly in it; "
                    "give each person a folder of their own in it"
                )
            if len(parts) > 1 and len(splits) > 1:  # one alone divides nothing
                split_of[name] = SPLITS[parts[0].casefold()]
        kept = {name: parts[1:] if len(parts) > 1 else parts for name, parts in kept.items()}
    if listed is not None:
        return _checked(names, dict(listed), {}, split_of)
    return _checked(names, {name: parts[0] for name, parts in kept.items()}, kept, split_of)


def _checked(
    names: list[str],
    identities: dict[str, str],
    kept: Mapping[str, tuple[str, ...]],
    split_of: Mapping[str, str],
) -> People:
    splits: dict[str, str] = {}
    for name in names if split_of else ():
        split = split_of.get(name, TRAIN)
        if splits.setdefault(identities[name], split) != split:
            raise DatasetError(
                f"{shown(identities[name])} is in two folders of splits, {splits[identities[name]]} and "
                f"{split}; put all photographs of a person into one"
            )
    folders = {parts[0] for parts in kept.values() if len(parts) > 1}
    notes = {
        folder: "taken for a person, as the other folders beside it; if it holds several, take it out"
        for folder in sorted(folders)
        if folder.casefold() in SPLITS or folder.casefold() in CONTAINERS
    }
    return People(identities, splits, notes)
