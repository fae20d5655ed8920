"""Who is who after measuring: faces grouped into people, and notes on people and their split."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from magicedit.data.identities import cluster
from magicedit.data.layout import TRAIN, VALIDATION
from magicedit.data.shards import Place, opened_shard
from magicedit.data.sources import Choices, Sources, split_of_people
from magicedit.data.videos import video_of
from magicedit.faces.identity import DESCRIPTOR


def group_people(sources: Sources, places: Mapping[str, Place], choices: Choices) -> None:
    """Gives photographs of one person one identity, by the descriptors of their rows, and people a split.

    The frames of one person of a video stay together: tracking tells that they are of one. An identity has
    the name of its first photograph or video.
    """
    means = _means(sources, places)
    people = cluster(np.stack(list(means.values())))
    names: dict[int, str] = {}
    identity = {unit: names.setdefault(int(person), unit) for unit, person in zip(means, people, strict=True)}
    sources.photographs = [replace(s, identity=identity[s.identity]) for s in sources.photographs]
    sources.splits = split_of_people(set(names.values()), choices.validation, choices.validation_fraction)


def _means(sources: Sources, places: Mapping[str, Place]) -> dict[str, np.ndarray]:
    """Returns the mean descriptor (128,) float32 of each identity so far, in order of the photographs."""
    rows_of: dict[Path, list[tuple[int, str]]] = defaultdict(list)
    sums: dict[str, np.ndarray] = {}
    for source in sources.photographs:
        sums.setdefault(source.identity, np.zeros(DESCRIPTOR, np.float32))
        place = places[source.sha256]
        rows_of[place.file].append((place.row, source.identity))
    for file, rows in rows_of.items():
        with opened_shard(file) as parquet:
            column = parquet.read(["descriptor"]).column(0).combine_chunks()
        values, starts = column.values.to_numpy(), column.offsets.to_numpy()  # warped rows have no values
        for row, identity in rows:
            sums[identity] += values[starts[row] : starts[row + 1]]
    counts = Counter(source.identity for source in sources.photographs)
    return {identity: total / counts[identity] for identity, total in sums.items()}


def note_singles(sources: Sources) -> None:
    """Notes how many people to train on have a single photograph, where not all have."""
    counts = Counter(s.identity for s in sources.photographs if sources.splits[s.identity] == TRAIN)
    singles = sum(count == 1 for count in counts.values())
    if 0 < singles < len(counts):
        have = "has" if singles == 1 else "have"
        note = f"{singles} of {len(counts)} people {have} one photograph: for warped pairs only"
        sources.folder_notes.append({"source": TRAIN, "note": note})


def note_unreserved(sources: Sources, fraction: float) -> None:
    """Warns where a share of people to validate on reserves none of those who have a usable photograph."""
    people = {source.identity for source in sources.photographs}
    if not fraction or any(sources.splits[person] == VALIDATION for person in people):
        return
    if len({video_of(person) for person in people}) == 1:
        why = "there is one person" if len(people) == 1 else "all people are of one video, which is not split"
    else:
        why = "no photograph of the reserved people can be used; name others to --validation"
    note = f"nobody is reserved, although a share of {fraction:g} is asked for: {why}"
    sources.folder_notes.append({"source": VALIDATION, "note": note, "kind": "warning"})
