"""Who is on the photographs: by a list of names, or by grouping faces by their identity descriptors."""

from pathlib import Path

import numpy as np

from magicedit.data.labels import NAME_COLUMNS
from magicedit.errors import DatasetError
from magicedit.files import shown
from magicedit.tables import read_table

FOLDERS, CLUSTER = "folders", "cluster"
# L2 distance of dlib's descriptors, below which a face is of a person. Joining strangers is worse than
# parting one person, and the more people there are, the nearer is a stranger: of 599 people, most of them
# synthetic, 8 groups are mixed at 0.35 and 13 at 0.4. dlib's own 0.6, for the question whether two given
# photographs match, gives half of 120 real people to others. See benchmarks/identities.json.
SAME_PERSON = 0.35
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
                raise DatasetError(f"expected a file and its identity, got {shown(name)} and {shown(person)}")
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
    1975, chapter 3). One pass, which compares every item with every person so far: 100,000 of as many
    people take half a minute of one core, and the memory of the descriptors twice.
    """
    items, dimensions = descriptors.shape
    means, sizes = np.zeros((items, dimensions), np.float32), np.zeros(items, int)
    lengths = np.zeros(items, np.float32)  # of the means, squared
    people, count = np.zeros(items, int), 0
    for start in range(0, items, _BLOCK):
        block = np.asarray(descriptors[start : start + _BLOCK], np.float32)
        # |mean - item|^2 less |item|^2, of the people before the block: (block, people)
        before = block @ means[:count].T
        before *= -2
        before += lengths[:count]
        changed: list[int] = []
        for number, (item, known) in enumerate(zip(block, before, strict=True), start):
            distances = np.full(count, np.inf, np.float32)
            distances[: len(known)] = known
            distances[changed] = lengths[changed] - 2 * (means[changed] @ item)
            nearest = int(np.argmin(distances)) if count else -1
            if nearest < 0 or distances[nearest] + item @ item >= threshold**2:
                nearest, count = count, count + 1
            sizes[nearest] += 1
            means[nearest] += (item - means[nearest]) / sizes[nearest]
            lengths[nearest] = means[nearest] @ means[nearest]
            if nearest not in changed:
                changed.append(nearest)
            people[number] = nearest
    return people
