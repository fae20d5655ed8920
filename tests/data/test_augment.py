"""Photographs warped by the muscles as rows of a dataset."""

import json

import numpy as np
import pytest

from magicedit.action_units import NAMES
from magicedit.data import PairDataset, prepare_dataset
from magicedit.data.augment import muscle_variants
from magicedit.errors import DatasetError
from magicedit.faces import align, crop_face

VARIANTS = 3


@pytest.fixture(scope="module")
def augmented(photographs, backend, tmp_path_factory):
    output = tmp_path_factory.mktemp("datasets") / "augmented"
    report = prepare_dataset(
        photographs, output, size=128, backend=backend, validation=["bob"], augment="muscles",
        variants=VARIANTS, image_format="png", progress=False,
    )  # fmt: skip
    return output, report


def test_each_training_photograph_has_its_variants(augmented):
    output, report = augmented
    assert report.photographs == {"train": 3, "validation": 1}
    assert report.variants == VARIANTS
    assert report.pairs["train"] == 8 * 7 + 4 * 3  # ann has two photographs, carol one
    rows = PairDataset(output, resolution=128).records
    assert len(rows) == 3 * (1 + VARIANTS)
    assert sum("#muscles-" in row.source for row in rows) == 3 * VARIANTS
    assert len(PairDataset(output, "validation", resolution=128, warped=1.0).records) == 1


def test_labels_are_the_photographs_plus_what_was_commanded(augmented):
    import pyarrow.parquet as pq

    output, _ = augmented
    rows = pq.read_table(next((output / "data").glob("train-*.parquet"))).to_pylist()
    by_source = {row["source"]: row for row in rows}
    checked = 0
    for row in rows:
        if "#" not in row["source"]:
            continue
        original = by_source[row["source"].split("#")[0]]
        (note,) = (note for note in row["notes"] if note.startswith("warped by "))
        command = dict(part.split("=") for part in note.removeprefix("warped by ").split(","))
        difference = np.subtract(row["action_units"], original["action_units"])
        expected = [float(command.get(name, 0)) for name in NAMES]
        np.testing.assert_allclose(difference, expected, atol=0.011)
        assert 0 <= min(row["action_units"])
        assert max(row["action_units"]) <= 5
        assert row["image"]["bytes"] != original["image"]["bytes"]
        assert row["identity"] == original["identity"]
        assert not row["measured"]
        assert not row["sha256"]
        checked += 1
    assert checked == 3 * VARIANTS


def test_single_photographs_make_pairs(augmented):
    """carol.png has no second photograph; its pairs are related by landmarks like any."""
    pairs = PairDataset(augmented[0], resolution=128, warped=0.0, au_dropout=0.0)
    carols = [n for n in range(60) if pairs.records[pairs.pair(n).source].identity == "carol.png"]
    assert carols
    assert any(np.abs(pairs[n]["au_delta"].numpy()).max() > 0.5 for n in carols[:5])


def test_again_is_unchanged_and_without_is_another_dataset(augmented, photographs, backend):
    output, _ = augmented
    settings = {"size": 128, "backend": backend, "validation": ["bob"], "image_format": "png"}
    again = prepare_dataset(
        photographs, output, **settings, augment="muscles", variants=VARIANTS, progress=False
    )
    assert again.unchanged
    assert again.variants == VARIANTS
    fewer = prepare_dataset(photographs, output, **settings, augment="muscles", variants=1, progress=False)
    assert (fewer.unchanged, fewer.measured) == (False, 0)
    assert json.loads((output / "magicedit.json").read_text())["variants"] == 1
    prepare_dataset(photographs, output, **settings, augment="muscles", variants=VARIANTS, progress=False)


def test_variants_depend_on_the_photograph_alone(backend, astronaut):
    (face,) = backend.detect(astronaut)
    alignment = align(face, 128)
    crop, landmarks = crop_face(astronaut, alignment), alignment.apply(face.landmarks)
    first, again, other = (
        list(muscle_variants(crop, landmarks, face.action_units, 4, name)) for name in ("a", "a", "b")
    )
    assert all(np.array_equal(x.pixels, y.pixels) for x, y in zip(first, again, strict=True))
    assert [x.command for x in first] != [x.command for x in other]


def test_commands_lead_into_the_range_from_wherever_the_face_is(backend, astronaut):
    """She smiles at 4.5 of 5: most commands have to take from that smile."""
    (face,) = backend.detect(astronaut)
    alignment = align(face, 128)
    crop, landmarks = crop_face(astronaut, alignment), alignment.apply(face.landmarks)
    variants = list(muscle_variants(crop, landmarks, face.action_units, 60, "many"))
    labels = [level for variant in variants for level in variant.action_units.values()]
    assert 0 <= min(labels)
    assert max(labels) <= 5
    smiles = [variant.command["AU12"] for variant in variants if "AU12" in variant.command]
    assert len(smiles) > 5
    assert sum(steps < 0 for steps in smiles) > 0.6 * len(smiles)


@pytest.mark.parametrize(
    "wrong", [{"augment": "magic"}, {"augment": "muscles", "variants": 0}, {"variants": 3}]
)
def test_settings_that_make_no_sense(photographs, backend, tmp_path, wrong):
    with pytest.raises(DatasetError, match=str(next(reversed(wrong)))):
        prepare_dataset(photographs, tmp_path / "out", backend=backend, **wrong)


def test_other_landmarks_are_refused_before_measuring(photographs, tmp_path):
    with pytest.raises(DatasetError, match="MediaPipe"):
        prepare_dataset(photographs, tmp_path / "out", backend="insightface", augment="muscles")
    assert not (tmp_path / "out").exists()
