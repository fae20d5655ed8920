"""Who is on the photographs: by a list of names, or by grouping faces by their identity descriptors."""

from pathlib import Path

import numpy as np

from magicedit.data.labels import NAME_COLUMNS
from magicedit.errors import DatasetError
from magicedit.files import shown
from magicedit.tables import read_table

FOLDERS, CLUSTER = "folders", "cluster"
# L2 distance of dlib's descriptors, below which two faces are of one person. dlib's own 0.6 suits a question
# about two photographs; among the pairs of a large set it joins strangers. benchmarks/identities.json.
SAME_PERSON = 0.4
_BLOCK = 128  # descriptors compared at a time
_IDENTITY_COLUMNS = ("identity", "person", "subject")


def read_identities(path: Path) -> dict[str, str]:
    """Returns the identity of each file that a CSV file names, in its columns `file` and `identity`.

    Raises: DatasetError where it cannot be read, lacks a column or a name, or gives a file two identities.
    """
    table = read_table(path, DatasetError)
    columns = [table.columns(*names)[:1] for names in (NAME_COLUMNS, _IDENTITY_COLUMNS)]
    if not all(columns):
        has = ", ".join(map(shown, table.header[:8])) or "none"
        raise DatasetError(
            f"{shown(path)} needs the columns file and identity, and has {has}; name them in its first line"
        )
    [file], [identity] = columns
    found: dict[str, str] = {}
    for number, row in table.rows:
        with table.at(number):
            cells = table.cells(row)
            name, person = cells.get(file, ""), cells.get(identity, "")
            if not name or not person:
                raise DatasetError(
                    f"expected a file and its identity, got {shown(name)!r} and {shown(person)!r}"
                )
            if found.setdefault(name, person) != person:
                raise DatasetError(
                    f"{shown(name)} is of {shown(found[name])} in an earlier line and of {shown(person)} "
                    "here; keep one"
                )
    if not found:
        raise DatasetError(f"{shown(path)} names no file; give each file and its identity in a line")
    return found


def cluster(descriptors: np.ndarray, threshold: float = SAME_PERSON) -> np.ndarray:
    """Returns a number of the person for each descriptor, (items,) int, in order of their first items.

    descriptors: (items, dimensions) float32. Each item joins the person whose mean is nearest, if that is
    nearer than `threshold`, else it begins one (leader clustering; J. Hartigan, "Clustering Algorithms",
    1975, chapter 3). One pass: the time is that of comparing every item with every person, 100,000 with
    100,000 take minutes of one core, and the memory that of the descriptors twice.
    """
    items, dimensions = descriptors.shape
    means, sizes = np.zeros((items, dimensions), np.float32), np.zeros(items, int)
    people, count = np.zeros(items, int), 0
    for start in range(0, items, _BLOCK):
        block = descriptors[start : start + _BLOCK].astype(np.float32)
        before = _squared_distances(means[:count], block)  # (people, block), before the block
        changed: list[int] = []
        for place, item in enumerate(block):
            distances = np.full(count, np.inf, np.float32)
            distances[: len(before)] = before[:, place]
            distances[changed] = _squared_distances(means[changed], item[None])[:, 0]
            nearest = int(np.argmin(distances)) if count else -1
            if nearest < 0 or distances[nearest] >= threshold**2:
                nearest, count = count, count + 1
            sizes[nearest] += 1
            means[nearest] += (item - means[nearest]) / sizes[nearest]
            if nearest not in changed:
                changed.append(nearest)
            people[start + place] = nearest
    return people


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a, b) float32 of the rows of two arrays."""
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * (a @ b.T), 0)
