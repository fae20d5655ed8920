"""The model card: description, use, training data and limits of a model."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from magicedit.action_units import DESCRIPTIONS, NAMES, canonical_name
from magicedit.errors import ModelError

TAGS = ("magicedit", "facial-expression", "action-units", "facs", "image-editing", "face")
NOT_STATED = "Not stated by the author of this card."
UNLICENSED = "The licence of the weights is not stated: ask the author before you use them."

INTRODUCTION = """\
An editor of facial expressions for the `magicedit` package. It changes the expression of the person in a
photograph by *action units* (AUs) of the Facial Action Coding System: each AU is one facial movement, and is
asked for as a variation in intensity steps (intensities run from 0 to 5; +2 is two steps more, 0 keeps what
is there). Identity, head pose and background are meant to stay."""

ARCHITECTURE = """\
The method is that of MagicFace (Wei et al. 2025, [arXiv:2501.02260](https://arxiv.org/abs/2501.02260)): a
diffusion UNet whose self-attention also sees the features of a second UNet, the ID encoder, and whose time
embedding carries the AU variation."""

LIMITS = """\
- AU variations are commands to a learned model, not measurements: how far an edit goes depends on the face,
  its pose, the light and what the training data showed. Measure the result where it matters.
- Expect worse edits of what the training data shows little of: rare movements, faces turned far to the side
  or partly covered, and people of an age, skin colour, facial hair or disability that it hardly contains.
- An edited expression is invented. It says nothing about what the person felt, and neither do AUs: they
  describe movements, not emotions.

**Not for:**

- pictures of people who did not agree to have them edited: ask first, also for pictures that are public;
- deceiving anybody: passing an edited picture off as a record of what happened, in news, politics, evidence,
  identity checks or dating; say that a picture was edited wherever you show it;
- harassing, ridiculing or sexualising people, or pictures of children that they or their parents reject;
- inferring emotions, character, health or truthfulness of a person, or building systems that do."""

# Questions that a hub asks people who request the weights of a gated model, as in the YAML header:
# https://huggingface.co/docs/hub/models-gated
GATE = {
    "extra_gated_heading": "Before you edit anybody's face",
    "extra_gated_prompt": (
        "This model changes the facial expressions of people in photographs. Used on people who did not "
        "agree to it, or to deceive, it does harm. Please read the points below and agree to them. Your user "
        "name, e-mail address and answers go to the authors of this repository."
    ),
    "extra_gated_fields": {
        "What I want to use it for": "text",
        "I edit only people who agreed to it, also where their pictures are public": "checkbox",
        "I say that a picture was edited wherever I show it": "checkbox",
        "I do not use it to harass, ridicule or sexualise anybody, or to deceive identity checks": "checkbox",
        "I do not use it to infer what people feel, think or are": "checkbox",
    },
    "extra_gated_button_content": "I agree, give me access",
}
ORDER = "The condition vector, in this order:"
RESULTS = "Measured results"
LOCAL = "path/to/this/folder"  # loaded by the examples while the model is unpublished


@dataclass(frozen=True)
class TrainingData:
    """One source of training photographs.

    photographs, identities: numbers used in training. citation: as the publisher requests it. hub_id: of a
    dataset on the hub. url: other source of the data.
    """

    name: str
    photographs: int
    identities: int
    license: str
    citation: str = ""
    hub_id: str | None = None
    url: str | None = None


def model_card(
    name: str,
    *,
    repo_id: str | None = None,
    description: str = "",
    license: str | list[str] | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    data: Sequence[TrainingData] = (),
    data_note: str = "",
    base_model: str | None = None,
    command: str | None = None,
    results: Mapping[str, object] | None = None,
    results_note: str = "",
    action_units: Sequence[str] = NAMES,
    resolution: int | None = None,
    tags: Sequence[str] = (),
    gated: bool = False,
    adapters_of: str | None = None,
) -> str:
    """Returns the text of a README.md with a YAML header for hubs.

    Args:
        name: heading of the card.
        repo_id: "owner/name" where it will be published; without it the examples load a local folder.
        description: what is particular about this model, in Markdown.
        license: of the weights, an identifier of the hub or a list of them; with "other", `license_name` and
            `license_link`. None: the card says that it is not stated.
        data: what it was trained on. data_note: further remarks, such as the held-out people.
        base_model: hub id of the model that training started from.
        command: the command that trained it.
        results: measured values by name, or rows of such mappings: `{"AU12": {"asked": 3, "measured": 1.7}}`.
        results_note: how they were measured: protocol, faces, hardware, date.
        action_units: in the order of the model's condition vector.
        resolution: pixels a side of the crops that the model edits.
        gated: include the questions that people answer before they get the weights. Asking them is a setting
            of the repository: `push_folder(gated=)`.
        adapters_of: the base of LoRA adapters, a hub id or a folder's name; None: a whole pipeline.

    Raises:
        ActionUnitError: on an unknown AU.
        ValueError: where a license "other" has no name, or rows of results mix with plain values.
    """
    if "other" in identifiers(license) and not license_name:
        raise ValueError(
            'license "other" needs license_name (and license_link), or name a license of the hub'
        )
    units = [canonical_name(unit) for unit in action_units]
    movements = [
        (position, unit, DESCRIPTIONS.get(unit, "not named here")) for position, unit in enumerate(units)
    ]
    header = ModelCardData(
        license=license,
        license_name=license_name,
        license_link=license_link,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        base_model=base_model,
        datasets=[part.hub_id for part in data if part.hub_id] or None,
        tags=[*TAGS, *tags, *(() if adapters_of is None else ("lora",))],
        **(GATE if gated else {}),
    )
    sections = [
        ("", _paragraphs(INTRODUCTION, description, ARCHITECTURE)),
        ("How to use it", _usage(repo_id, units, resolution, adapters_of)),
        ("Action units", _paragraphs(ORDER, _table(("position", "AU", "movement"), movements))),
        ("Training data and the people it shows", _paragraphs(_data_table(data), data_note)),
        ("Training", _training(command, base_model)),
        (RESULTS, _paragraphs(results_note, _results_table(results or {}))),
        ("Limits, and what it is not for", LIMITS),
        (
            "Licence",
            _paragraphs(
                license_sentence(license, license_name, license_link),
                "The photographs they were trained on keep their own licences, named above." if data else "",
            ),
        ),
    ]
    body = "\n\n".join(_paragraphs(f"## {title}" if title else f"# {name}", text) for title, text in sections)
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n{body}\n"))


def gated_card(card: str) -> str:
    """Returns the card with the hub's questions for access to the weights; existing questions are kept."""
    parsed = ModelCard(card, ignore_metadata_errors=True)
    for name, value in GATE.items():
        if parsed.data.get(name) is None:
            setattr(parsed.data, name, value)
    return str(parsed)


def licensed_card(card: str, license: str | list[str], **named: str) -> str:
    """Returns a card whose header or text states no licence of the weights with one.

    license, named: as `license`, `license_name` and `license_link` of `model_card`.
    """
    parsed = ModelCard(card, ignore_metadata_errors=True)
    for field, value in {"license": license, **named}.items():
        setattr(parsed.data, field, value)
    return str(parsed).replace(UNLICENSED, license_sentence(license, **named))


def license_of(card: str) -> dict[str, Any]:
    """Returns what a card's header states of `license`, `license_name` and `license_link`, by these names.

    A license is an identifier, or a list of several, as hubs allow; ValueError for anything else.
    """
    header = ModelCard(card, ignore_metadata_errors=True).data.to_dict()
    fields = ("license", "license_name", "license_link")
    stated = {name: value for name in fields if (value := header.get(name))}
    if "license" not in stated:
        return {}
    license = identifiers(stated["license"])
    for name, value in stated.items():
        texts = license if name == "license" else [value]
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"its {name} must be text, or for `license` a list of texts, got {value!r}")
    return stated | {"license": license[0] if len(license) == 1 else license}


def identifiers(license: str | list[str] | None) -> list[str]:
    """Returns the identifiers of a license as it stands in a card's header."""
    return license if isinstance(license, list) else [] if license is None else [license]


def license_sentence(
    license: str | list[str] | None, license_name: str | None = None, license_link: str | None = None
) -> str:
    """Returns a card's sentence on the licence of the weights; arguments as of `model_card`."""
    name = license_name or ", ".join(identifiers(license))
    if not name:
        return UNLICENSED
    return f"The weights are under {f'[{name}]({license_link})' if license_link else name}."


def named_card(card: str, repo_id: str) -> str:
    """Returns the card with examples that load `repo_id` instead of a folder."""
    return card.replace(json.dumps(LOCAL), json.dumps(repo_id))


def measured_card(card: str, results: Mapping[str, object], results_note: str = "") -> str:
    """Returns the card with its results section replaced by these results, as for `model_card`.

    Raises ModelError where it has no such section.
    """
    section = re.compile(rf"^## {RESULTS}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    text = f"## {RESULTS}\n\n{_paragraphs(results_note, _results_table(results))}\n\n"
    if len(section.findall(card)) != 1:
        raise ModelError(
            f"the model card has no section `## {RESULTS}` to write into; add that line to README.md, or "
            "write a new card"
        )
    return section.sub(lambda _: text, card).rstrip("\n") + "\n"


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])


def _code(language: str, text: str) -> str:
    text = text.strip("\n")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _usage(repo_id: str | None, units: Sequence[str], resolution: int | None, adapters_of: str | None) -> str:
    quoted = json.dumps(repo_id or LOCAL)
    example = "AU12" if "AU12" in units else units[0]
    crops = f"square crops of {resolution} px" if resolution else "square crops of the size in its config"
    whole = (
        "Whole photographs, with the `magicedit` package, which finds the face and keeps the full size:",
        _code(
            "python",
            f"from magicedit import ExpressionEditor\n\n"
            f"editor = ExpressionEditor.from_pretrained({quoted})\n"
            f'editor.edit("photo.jpg", add={{"{example}": 2}}).save("edited.png")',
        ),
    )
    call = (
        f"Either pipeline takes {crops}, upright and aligned: the face, the same crop with the face blanked "
        "and the contour of the jaw drawn, and a row of AU variations for each picture wanted:",
        _code(
            "python", "pipe(image, condition_image, au_delta).images  # au_delta: (pictures, action units)"
        ),
    )
    if adapters_of is not None:
        return _paragraphs(
            f"These are LoRA adapters of `{adapters_of}`, which is needed too: from its hub, or as a folder "
            "of that name beside this one.",
            *whole,
            "The pipeline alone: the base with these adapters, or an editing pipeline of the same base that "
            "is loaded already. Neither runs code from the model's repository:",
            _code(
                "python",
                f"from magicedit.models import load_pipeline\n\n"
                f"pipe = load_pipeline({quoted})\n"
                f"pipe.load_lora_weights({quoted})  # instead, into a pipeline of the base",
            ),
            *call,
        )
    offline = (
        "The same from the local cache, without a network (for an id, `diffusers` would ask the hub):",
        _code(
            "python",
            f"from diffusers import DiffusionPipeline\n"
            f"from huggingface_hub import snapshot_download\n\n"
            f"folder = snapshot_download({quoted})  # once online, then also offline\n"
            f"pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)",
        ),
    )
    return _paragraphs(
        *whole,
        "The pipeline alone, with the package. This never runs code from the model's repository:",
        _code(
            "python",
            f"from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline\n\n"
            f"pipe = MagicEditPipeline.from_pretrained({quoted})",
        ),
        "The pipeline alone, with `diffusers` and without the package. This runs `pipeline.py` from the "
        "model's repository: read it first, and pin a revision.",
        _code(
            "python",
            f"from diffusers import DiffusionPipeline\n\n"
            f"pipe = DiffusionPipeline.from_pretrained({quoted}, trust_remote_code=True)",
        ),
        *(offline if repo_id else ()),
        *call,
    )


def _data_table(data: Sequence[TrainingData]) -> str:
    if not data:
        return NOT_STATED
    rows: list[tuple] = []
    for part in data:
        name = f"[{part.name}]({part.url})" if part.url else part.name
        rows.append((name, part.photographs, part.identities, part.license))
    rows.append(("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows), ""))
    citations = "\n".join(f"- {part.name}: {part.citation}" for part in data if part.citation)
    return _paragraphs(_table(("source", "photographs", "people", "licence"), rows), citations)


def _training(command: str | None, base_model: str | None) -> str:
    start = f"Training started from `{base_model}`." if base_model else ""
    if command is None:
        return _paragraphs(start, "The command that trained it is " + NOT_STATED[0].lower() + NOT_STATED[1:])
    return _paragraphs(start, "Trained with", _code("sh", command))


def _results_table(results: Mapping[str, object]) -> str:
    if not results:
        return "None were recorded with this card."
    rows = [value for value in results.values() if isinstance(value, Mapping)]
    if not rows:
        return _table(("measure", "value"), [(name, _number(value)) for name, value in results.items()])
    if len(rows) != len(results):
        raise ValueError("results must be all plain values or all rows, got a mixture")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return _table(
        ("", *columns),
        [(name, *(_number(row.get(column, "")) for column in columns)) for name, row in results.items()],
    )


def _number(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
