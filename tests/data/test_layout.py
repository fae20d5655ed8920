"""Who is on the photographs of a folder, by its sub-folders."""

import pytest

from magicedit.data.layout import people_of
from magicedit.errors import DatasetError


def test_sub_folders_are_people_and_loose_photographs_their_own():
    people = people_of(["ann/1.jpg", "ann/day/2.jpg", "ben/1.jpg", "cleo.jpg"])
    assert list(people.identities.values()) == ["ann", "ann", "ben", "cleo.jpg"]
    assert (people.splits, people.notes) == ({}, {})


@pytest.mark.parametrize("prefix", ["", "images/", "Photos/"])
@pytest.mark.parametrize(
    ("train", "validation"), [("train", "validation"), ("Train", "val"), ("training", "dev")]
)
def test_people_lie_in_the_folders_of_their_splits(prefix, train, validation):
    names = [f"{train}/ann/1.jpg", f"{train}/ben/1.jpg", f"{validation}/cleo/x/1.jpg", "test/dora/1.jpg"]
    people = people_of([prefix + name for name in names])
    assert list(people.identities.values()) == ["ann", "ben", "cleo", "dora"]
    assert people.splits == {"ann": "train", "ben": "train", "cleo": "validation", "dora": "test"}


def test_one_folder_of_everything_is_nobody_and_one_split_divides_nothing():
    for folder in ("images", "train", "train/images"):
        people = people_of([f"{folder}/ann/1.jpg", f"{folder}/ben/1.jpg"])
        assert list(people.identities.values()) == ["ann", "ben"]
        assert people.splits == {}


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.jpg", "validation/2.jpg"],
        ["images/1.jpg", "images/2.jpg"],
        ["train/ann/1.jpg", "train/2.jpg"],
        ["train/images/1.jpg", "val/images/2.jpg"],
    ],
)
def test_photographs_that_lie_directly_in_such_folders_are_ambiguous(names):
    with pytest.raises(DatasetError, match="names no person, but photographs such as"):
        people_of(names)


def test_a_person_in_two_splits_is_an_error():
    with pytest.raises(DatasetError, match="ann is in two folders of splits, train and validation"):
        people_of(["train/ann/1.jpg", "validation/ann/2.jpg"])


def test_a_person_of_such_a_name_among_others_is_noted():
    people = people_of(["ann/1.jpg", "test/1.jpg"])
    assert list(people.identities.values()) == ["ann", "test"]
    assert "taken for a person" in people.notes["test"]
