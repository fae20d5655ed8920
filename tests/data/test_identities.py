import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from magicedit.cli import main
from magicedit.data import prepare_dataset
from magicedit.data.identities import SAME_PERSON, cluster, read_identities
from magicedit.errors import DatasetError, MissingDependencyError
from magicedit.faces.backends import dlib

SETTINGS = {"size": 64, "progress": False}


def identities(folder: Path) -> dict[str, str]:
    paths = sorted((folder / "data").glob("*.parquet"))
    found = [row for path in paths for row in pq.read_table(path, columns=["source", "identity"]).to_pylist()]
    return {row["source"]: row["identity"] for row in found}


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


# --- A list ---


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_tells_who_is_on_each_photograph(tmp_path, photographs, backend, encoding):
    lines = ("file;identity;camera", "ann/light.png;j\u00fcrgen;1", "carol;ju\u0308rgen;2", "nobody.jpg;x;3")
    table = write(tmp_path / "who.csv", *lines, encoding=encoding)
    settings = SETTINGS | {"backend": backend, "identities": table}
    report = prepare_dataset(photographs, tmp_path / "dataset", **settings)
    assert identities(tmp_path / "dataset") == {"ann/light.png": "jürgen", "carol.png": "jürgen"}
    assert report.pairs == {"train": 2}
    missing = {entry["source"] for entry in report.rejected if entry["reason"] == "no identity in who.csv"}
    assert missing == {
        *("ann/dark.png", "ann/empty.jpg", "ann/torn.png"),
        *("bob/copy.png", "bob/mirrored.jpg", "bob/wall.png"),
    }
    assert {
        "source": "who.csv",
        "note": "1 row is of no file in the folder: nobody.jpg",
        "kind": "warning",
    } in report.notes


def test_another_list_of_the_same_photographs_is_written_without_measuring(tmp_path, photographs, backend):
    settings = SETTINGS | {"backend": backend, "identities": tmp_path / "who.csv"}
    for person in ("ann", "carol"):
        write(tmp_path / "who.csv", "file,identity", "ann/light.png,ann", f"carol,{person}")
        report = prepare_dataset(photographs, tmp_path / "dataset", **settings)
        assert identities(tmp_path / "dataset") == {"ann/light.png": "ann", "carol.png": person}
    assert (report.measured, report.reused) == (0, 2)
    assert prepare_dataset(photographs, tmp_path / "dataset", **settings).unchanged


def test_a_list_that_names_no_file_of_the_folder_is_an_error(tmp_path, photographs):
    table = write(tmp_path / "who.csv", "file,identity", "zoe/1.jpg,zoe")
    with pytest.raises(DatasetError, match=r"no row of .*who\.csv names a file in the folder, such as ann/"):
        prepare_dataset(photographs, tmp_path / "dataset", identities=table, **SETTINGS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,who", "a.jpg,ann"], r"needs the columns file and identity, and has file, who"),
        (["a.jpg,ann"], r"needs the columns file and identity, and has a\.jpg, ann"),
        (
            ["file,identity", "a.jpg,ann", "a.jpg,bob"],
            r"line 3: a\.jpg is of ann in an earlier line and",
        ),
        (["file,identity", "a.jpg,"], r"line 2: expected a file and its identity, got a\.jpg and \"\""),
        (["file,identity,identity", "a.jpg,ann,bob"], "two columns 'identity'"),
        (["file,identity", "a.jpg,ann,bob"], "expected 2 cells, got 3"),
        (["file,identity"], "names no file"),
    ],
)
def test_lists_that_cannot_be_read_say_why(tmp_path, lines, message):
    with pytest.raises(DatasetError, match=message):
        read_identities(write(tmp_path / "who.csv", *lines))
    with pytest.raises(DatasetError, match="does not exist"):
        read_identities(tmp_path / "nowhere.csv")


def test_identities_are_folders_cluster_or_a_file(tmp_path, photographs):
    with pytest.raises(DatasetError, match=r"folders, cluster or the path of a CSV file, got clusters"):
        prepare_dataset(photographs, tmp_path / "dataset", identities="clusters", **SETTINGS)


def test_a_line_that_is_there_twice_counts_once(tmp_path):
    table = write(tmp_path / "who.csv", "image,person", "a.jpg,ann", "a.jpg,ann", "b.jpg,bob")
    assert read_identities(table) == {"a.jpg": "ann", "b.jpg": "bob"}


def test_a_row_that_fits_several_photographs_is_an_error(tmp_path, write_photographs):
    folder = write_photographs(tmp_path / "folder")
    (folder / "bob" / "light.png").write_bytes((folder / "bob" / "mirrored.jpg").read_bytes())
    table = write(tmp_path / "who.csv", "file,identity", "light.png,ann")
    with pytest.raises(DatasetError, match=r"the row 'light\.png' could be of 2 photographs"):
        prepare_dataset(folder, tmp_path / "dataset", identities=table, **SETTINGS)


def test_identities_contradict_a_layout(tmp_path, photographs):
    with pytest.raises(DatasetError, match="CelebA's lists already say who is who; leave --identities out"):
        prepare_dataset(photographs, tmp_path / "d", layout="celeba", identities="cluster", **SETTINGS)


# --- Grouping ---


def people_around(rng, people: int, each: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors (people * each, 128) of unit length, in random order, and the person of each."""
    centres = rng.normal(size=(people, 128))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = rng.normal(size=(people * each, 128)) * spread / np.sqrt(128)
    person = np.repeat(np.arange(people), each)
    order = rng.permutation(len(person))
    return (centres[person] + noise)[order].astype(np.float32), person[order]


def test_clusters_are_the_people_whatever_the_blocks():
    descriptors, people = people_around(np.random.default_rng(3), people=90, each=5, spread=0.15)
    found = cluster(descriptors)
    pairs = found[:, None] == found
    assert (pairs == (people[:, None] == people)).all()
    firsts = [int(np.flatnonzero(found == number)[0]) for number in range(90)]
    assert firsts == sorted(firsts)  # numbered in order of their first items


def test_clusters_equal_those_of_comparing_one_by_one():
    descriptors, _ = people_around(np.random.default_rng(5), people=60, each=6, spread=0.4)
    means, sizes, expected = [], [], []
    for item in descriptors.astype(np.float64):
        distances = [np.linalg.norm(mean - item) for mean in means]
        nearest = int(np.argmin(distances)) if distances else -1
        if nearest < 0 or distances[nearest] >= SAME_PERSON:
            means.append(item.copy())
            sizes.append(1)
            nearest = len(means) - 1
        else:
            sizes[nearest] += 1
            means[nearest] += (item - means[nearest]) / sizes[nearest]
        expected.append(nearest)
    assert 60 < max(expected) < 360  # some joined, some not
    assert cluster(descriptors).tolist() == expected


@pytest.fixture(scope="session")
def crowd(tmp_path_factory, closed_mouth) -> Path:
    """Two people, three photographs of one of them, in folders that tell nothing."""
    if not dlib.available():
        pytest.skip("grouping needs the evaluation extra")
    folder = tmp_path_factory.mktemp("crowd") / "found"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    astronaut = pytest.importorskip("skimage.data").astronaut()
    Image.fromarray(astronaut).save(folder / "a" / "1.png")
    Image.fromarray(closed_mouth).save(folder / "a" / "2.png")
    Image.fromarray((astronaut * 0.7).astype(np.uint8)).save(folder / "b" / "1.png")
    Image.fromarray(astronaut[:400, 60:460]).save(folder / "b" / "2.jpg", quality=85)
    return folder


def test_faces_are_grouped_into_people(tmp_path, crowd, backend):
    settings = SETTINGS | {"backend": backend, "identities": "cluster"}
    report = prepare_dataset(crowd, tmp_path / "dataset", **settings)
    assert identities(tmp_path / "dataset") == {
        **dict.fromkeys(("a/1.png", "b/1.png", "b/2.jpg"), "a/1.png"),
        "a/2.png": "a/2.png",
    }
    assert report.pairs == {"train": 6}
    again = prepare_dataset(crowd, tmp_path / "dataset", **settings)
    assert again.unchanged
    split = prepare_dataset(crowd, tmp_path / "dataset", validation=["a/2.png"], **settings)
    assert (split.measured, split.identities) == (0, {"train": 1, "validation": 1})


def test_groups_of_a_dataset_with_warped_rows_stay_as_they_are(tmp_path, crowd, backend):
    """Its shards are read again where a photograph is added."""
    folder = shutil.copytree(crowd, tmp_path / "folder")
    settings = SETTINGS | {"backend": backend, "identities": "cluster", "augment": "muscles", "variants": 1}
    prepare_dataset(folder, tmp_path / "dataset", **settings)
    before = identities(tmp_path / "dataset")
    Image.fromarray(np.asarray(Image.open(folder / "a" / "2.png"))[10:, 10:]).save(folder / "c.png")
    report = prepare_dataset(folder, tmp_path / "dataset", **settings)
    assert report.measured == 1
    again = {"c.png": "a/2.png", "c.png#muscles-1": "a/2.png"}
    assert identities(tmp_path / "dataset") == before | again


def test_grouping_refuses_folders_of_splits(tmp_path, photographs, crowd):
    for split in ("train", "val"):
        (tmp_path / "folder" / split / "x").mkdir(parents=True)
        (tmp_path / "folder" / split / "x" / "1.png").write_bytes((crowd / "a" / "1.png").read_bytes())
    with pytest.raises(DatasetError, match="groups of faces may cross them"):
        prepare_dataset(tmp_path / "folder", tmp_path / "dataset", identities="cluster", **SETTINGS)


def test_grouping_without_the_extra_is_refused_in_one_line(tmp_path, photographs, monkeypatch):
    monkeypatch.setattr(dlib, "_models_folder", lambda: None)
    for loaded in (dlib._library, dlib._predictor, dlib._network):
        loaded.cache_clear()
    with pytest.raises(MissingDependencyError, match=r"magicedit\[evaluation\]"):
        prepare_dataset(photographs, tmp_path / "dataset", identities="cluster", **SETTINGS)
    assert not (tmp_path / "dataset").exists()


def test_the_command_takes_a_list_and_says_what_it_could_not_use(tmp_path, photographs, capsys):
    table = write(tmp_path / "who.csv", "file,identity", "ann/light.png,ann", "x.png,y", "z.png,y")
    arguments = [str(photographs), "-o", str(tmp_path / "dataset"), "--size", "64"]
    assert main(["prepare", *arguments, "--identities", str(table), "--json"]) == 0
    output = capsys.readouterr()
    assert "warning: who.csv: 2 rows are of no file in the folder: x.png, z.png" in output.err
    assert json.loads(output.out)["photographs"] == {"train": 1}


# --- The committed benchmark ---


def test_the_benchmark_measures_purity_and_completeness():
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from identities import agreement

    assert agreement([0, 0, 1, 1], ["a", "a", "b", "b"]) == {"purity": 1.0, "completeness": 1.0}
    assert agreement([0, 1, 2, 3], ["a", "a", "b", "b"]) == {"purity": 1.0, "completeness": 0.0}
    assert agreement([0, 0, 0, 0], ["a", "a", "b", "b"]) == {"purity": 0.5, "completeness": 1.0}


def test_the_tutorial_tells_the_committed_figures():
    root = Path(__file__).resolve().parents[2]
    page = " ".join((root / "docs" / "training.md").read_text().split())
    results = json.loads((root / "benchmarks" / "identities.json").read_text())
    rows = {(row["faces"], row["threshold"]): row for row in results["faces"]["rows"]}
    real, both = rows["real people", SAME_PERSON], rows["with synthetic people", SAME_PERSON]
    usual = rows["with synthetic people", 0.6]
    assert results["faces"]["threshold"] == SAME_PERSON
    assert (real["purity"], real["mixed"]) == (1, 0)
    assert f"below a distance of {SAME_PERSON}," in page
    assert f"On {real['photographs']} photographs of {real['people']} real people" in page
    assert f"{real['completeness']:.1%}".replace("%", " %") + " of the pairs of photographs" in page
    assert f"On {both['photographs']} photographs of {both['people']} people" in page
    assert f"{both['purity']:.1%}".replace("%", " %") + " of the photographs" in page
    assert f"At dlib's usual threshold of 0.6, it is {usual['purity']:.1%}".replace("%", " %") in page
    speed = json.loads((root / "benchmarks" / "video_frames.json").read_text())["speed"]
    seconds = f"{speed['cpu_seconds'] / speed['seconds']:.1f} seconds of one core for each second"
    assert f"{seconds}, at {speed['height']} lines and with two people" in page
    assert speed["people"] == 2
    worst = max(results["scale"]["rows"], key=lambda row: row["people"])
    assert f"Grouping {worst['descriptors']:,} photographs of as many people" in page
    assert f"takes {worst['cpu_seconds']:.0f} seconds of one core" in page
