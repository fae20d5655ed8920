"""Model cards: a header that hubs read, examples that compile, and everything that was said."""

import re

import pytest
from huggingface_hub import ModelCard

from magicedit.action_units import NAMES
from magicedit.errors import ActionUnitError
from magicedit.hub import TrainingData, license_of, licensed_card, model_card
from magicedit.hub.cards import UNLICENSED

LONDON = TrainingData(
    "Face Research Lab London Set",
    photographs=158,
    identities=79,
    license="CC-BY-4.0",
    citation="DeBruine & Jones 2017, doi:10.6084/m9.figshare.5047666",
    url="https://doi.org/10.6084/m9.figshare.5047666",
)
HUB_SET = TrainingData("Others", photographs=30, identities=21, license="CC0-1.0", hub_id="alice/others")


def table_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_header_is_what_hubs_filter_by():
    card = model_card("Small", license="mit", data=[LONDON, HUB_SET], tags=["small"], base_model="alice/base")
    data = ModelCard(card).data
    assert data.license == "mit"
    assert data.library_name == "diffusers"
    assert data.pipeline_tag == "image-to-image"
    assert data.datasets == ["alice/others"]
    assert data.base_model == "alice/base"
    assert {"action-units", "facs", "small"} <= set(data.tags)
    assert "datasets" not in ModelCard(model_card("Small", data=[LONDON])).data.to_dict()


def test_card_says_what_was_handed_to_it():
    command = "accelerate launch train/train.py --resolution 96 --note 'a ``` b'"
    card = model_card(
        "Small editor",
        description="Works at 96 px.",
        data=[LONDON, HUB_SET],
        data_note="Ten identities were held out.",
        command=command,
        results={"AU12": {"asked": 3, "measured": 1.73456}, "AU4": {"asked": 3, "note": "left|right"}},
        results_note="Ten faces, two cores.",
    )
    text = ModelCard(card).text
    assert text.lstrip().startswith("# Small editor\n")
    assert "Works at 96 px." in text
    assert command in section(text, "Training")

    data = section(text, "Training data and the people it shows")
    assert ["**all**", "188", "100", ""] in table_rows(data)
    assert ["Others", "30", "21", "CC0-1.0"] in table_rows(data)
    assert LONDON.citation in data
    assert "Ten identities were held out." in data

    results = section(text, "Measured results")
    assert table_rows(results) == [
        ["", "asked", "measured", "note"],
        ["---"] * 4,
        ["AU12", "3", "1.735", ""],
        ["AU4", "3", "", "left\\|right"],
    ]
    assert "Ten faces, two cores." in results


def test_plain_results_make_two_columns():
    results = section(
        model_card("Small", results={"identity distance": 0.2345678, "faces": 10}), "Measured results"
    )
    assert table_rows(results)[2:] == [["identity distance", "0.2346"], ["faces", "10"]]


def test_condition_vector_is_listed_in_the_models_own_order():
    rows = table_rows(section(model_card("Small", action_units=["AU12", "au4"]), "Action units"))
    assert [row[:2] for row in rows[2:]] == [["0", "AU12"], ["1", "AU4"]]
    assert len(table_rows(section(model_card("Small"), "Action units"))) == 2 + len(NAMES)


def test_every_card_names_consent_and_deception():
    limits = section(model_card("Small"), "Limits, and what it is not for")
    assert "did not agree" in limits
    assert "deceiving" in limits


@pytest.mark.parametrize("repo_id", [None, "alice/small"])
def test_examples_compile_and_name_the_model(repo_id):
    usage = section(model_card("Small", repo_id=repo_id, resolution=96), "How to use it")
    blocks = re.findall(r"```python\n(.*?)```", usage, re.DOTALL)
    for block in blocks:
        compile(block, "card", "exec")
    loads = [block for block in blocks if "from_pretrained" in block]
    assert len(loads) == (4 if repo_id else 3)
    assert all((repo_id or "path/to/this/folder") in block for block in loads)
    assert "96 px" in usage


def test_what_cannot_be_said():
    with pytest.raises(ValueError, match="license_name"):
        model_card("Small", license="other")
    with pytest.raises(ValueError, match="mixture"):
        model_card("Small", results={"faces": 10, "AU12": {"asked": 3}})
    with pytest.raises(ActionUnitError):
        model_card("Small", action_units=["AU99"])
    card = ModelCard(
        model_card("Small", license="other", license_name="house", license_link="https://example.org/l")
    )
    assert (card.data.license, card.data.license_name) == ("other", "house")
    assert "[house](https://example.org/l)" in section(card.text, "Licence")


def test_a_card_states_no_licence_that_nobody_chose():
    card = model_card("Small", data=[LONDON])
    assert license_of(card) == {}
    assert UNLICENSED in section(card, "Licence")
    assert license_of("---\nlicense: ''\n---\n") == {}
    terms = {"license": "other", "license_name": "house", "license_link": "https://example.org/l"}
    assert license_of(licensed_card(card, **terms)) == terms
    assert (
        licensed_card(card, "mit").split("---", 2)[2]
        == model_card("Small", data=[LONDON], license="mit").split("---", 2)[2]
    )


def test_a_card_may_state_several_licences():
    card = model_card("Small", license=["mit", "apache-2.0"])
    assert license_of(card) == {"license": ["mit", "apache-2.0"]}
    assert "under mit, apache-2.0." in section(ModelCard(card).text, "Licence")
    assert license_of(licensed_card("# a\n", **license_of(card))) == license_of(card)
    assert license_of("---\nlicense: [mit]\n---\n") == {"license": "mit"}
    assert license_of("---\nlicense: []\n---\n") == {}
    with pytest.raises(ValueError, match="license_name"):
        model_card("Small", license=["mit", "other"])
    for text in ("license: {a: mit}", "license: [mit, 2]", "license: 2.0", "license: mit\nlicense_name: [a]"):
        with pytest.raises(ValueError, match=r"its license(_name)? must be text, or for `license` a list"):
            license_of(f"---\n{text}\n---\n")
