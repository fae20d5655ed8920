"""A family of editors that the package has never heard of: trained, loaded, edited with, filmed, evaluated.

Nothing of the package is changed for it: a method for the loop, a `FaceModel`, a line in each registry.
"""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import edited_film, evaluated

from magicedit import ExpressionEditor
from magicedit.action_units import FACS
from magicedit.cli import main
from magicedit.errors import ActionUnitError, ModelError
from magicedit.evaluation.editors import ModelEditor
from magicedit.imaging import open_photo
from magicedit.models.face_model import LOADERS, FaceModel
from magicedit.models.folder import ModelFolder
from magicedit.train.config import parse_config
from magicedit.train.loop import train
from magicedit.train.methods import OBJECTIVES, Losses, Method
from magicedit.vocabulary import Control, Vocabulary

SIZE = 64
TAN = Control("tan", "darker skin", "cheek", has_sides=True, range=(-4, 4), kind="attribute")
VOCABULARY = Vocabulary((FACS["AU12"], FACS["AU26"], TAN), known=FACS)


class Tint:
    """Adds a colour that a network makes of the request, where another finds skin in the crop."""

    vocabulary, resolution = VOCABULARY, SIZE
    composes = follows_muscles = False

    def __init__(self):
        self.skin = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 3, padding=1), torch.nn.Sigmoid())
        self.colour = torch.nn.Linear(len(VOCABULARY), 3, bias=False)

    def encode(self, crop, condition):
        pixels = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 255
        return pixels, self.skin(pixels).detach()

    def is_current(self, encoded):
        return True

    def change(self, encoded, deltas, sampling, on_step=None):
        pictures = []
        for (pixels, skin), delta in zip(encoded, deltas, strict=True):
            added = skin * self.colour(torch.from_numpy(delta).float())[None, :, None, None]
            shown = (pixels + added).clamp(0, 1)[0].permute(1, 2, 0) * 255
            pictures.append(shown.round().byte().detach().numpy())
        return pictures

    def steps(self, steps, quality):
        return 1

    def show_progress(self, shown): ...

    def fingerprint(self):
        return str([float(p.sum()) for net in (self.skin, self.colour) for p in net.parameters()])

    @classmethod
    def load(cls, folder, device=None, dtype=None):
        model = cls()
        for name in ("skin", "colour"):
            getattr(model, name).load_state_dict(load_file(Path(folder) / f"{name}.safetensors"))
        return model


class TintMethod(Method):
    """Learns that half of a picture is skin, and that each step of "tan" makes it 0.1 darker."""

    def __init__(self, config, accelerator):
        self.config, self.model = config, Tint()

    def modules(self):
        return {"skin": self.model.skin, "colour": self.model.colour}

    def optimizers(self):
        return {name: torch.optim.Adam(net.parameters(), lr=0.05) for name, net in self.modules().items()}

    def samples(self):
        return [{"pixels": torch.rand(3, 8, 8), "delta": torch.randn(3)} for _ in range(64)]

    def losses(self, batch, networks) -> Losses:
        yield "skin", (networks["skin"](batch["pixels"]) - 0.5).square().mean(), {}
        wanted = -0.1 * batch["delta"][:, 2:]
        yield "colour", (networks["colour"](batch["delta"]) - wanted).square().mean(), {}

    def export(self, folder, step, samples_seen):
        for name, net in self.modules().items():
            save_file(net.state_dict(), folder / f"{name}.safetensors")
        index = {"_class_name": "Tint", "resolution": SIZE} | VOCABULARY.to_index()
        (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Trained by the loop."""
    output = tmp_path_factory.mktemp("tint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "tint", TintMethod)
        patch.setitem(LOADERS, "Tint", Tint.load)
        flags = ("--objective=tint", "--train_data_dir=data", "--train_batch_size=2", "--max_train_steps=30")
        train(parse_config([*flags, "--validation_steps=0", f"--output_dir={output}"]))
        yield str(output)


@pytest.fixture(scope="module")
def tinting(folder):
    return ExpressionEditor.from_pretrained(folder)


def darkness(before: np.ndarray, after: PIL.Image.Image, where: tuple[slice, slice]) -> float:
    return float((before[where].astype(int) - np.asarray(after)[where]).mean())


def test_it_edits_by_its_own_words(tinting, astronaut):
    assert isinstance(tinting.changer.model, FaceModel)
    assert tinting.action_units == ("AU12", "AU26", "tan")
    result = tinting.edit(astronaut, add="tan=2")
    (face,) = result.faces
    x0, y0, x1, y1 = (int(edge) for edge in face.box)
    inside = (slice((y0 + y1) // 2, y1), slice(x0, x1))
    assert darkness(astronaut, result.image, inside) > 5
    one_sided = tinting.edit(astronaut, add="tanL=2").image
    left, right = (slice(y0, y1), slice((x0 + x1) // 2, x1)), (slice(y0, y1), slice(x0, (x0 + x1) // 2))
    assert darkness(astronaut, one_sided, left) > 2 * darkness(astronaut, one_sided, right)
    with pytest.raises(ActionUnitError, match=r"AU1 .*cannot be edited here.*Known: AU12, AU26, tan"):
        tinting.edit(astronaut, add="AU1=1")
    with pytest.raises(ModelError, match="needs a MagicEditPipeline"):
        tinting.attention_maps(astronaut, "tan=1")


def test_it_is_swept(tinting, astronaut):
    results = tinting.sweep(astronaut, "tan", -2, 2, 3, measure=False)
    assert [round(result.faces[0].requested["tan"]) for result in results] == [-2, 0, 2]
    means = [np.asarray(result.image).mean() for result in results]
    assert means[0] > means[1] > means[2]


def test_the_commands_know_it(folder, astronaut, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    PIL.Image.fromarray(astronaut).save(photo)
    assert main(["edit", str(photo), "-o", str(tmp_path / "o.png"), "--au", "tan=1", "--model", folder]) == 0
    assert main(["edit", str(photo), "-o", str(tmp_path / "o.png"), "--au", "tam=1", "--model", folder]) == 2
    assert "did you mean tan" in capsys.readouterr().err
    keys = ["--key", "0:AU26=0", "--key", "0.3:AU26=2"]
    film = edited_film(astronaut, tmp_path, *keys, "--model", folder)
    assert film.stat().st_size > 0


def test_the_index_says_the_sides_of_a_word(folder, tmp_path):
    index = json.loads((Path(folder) / "model_index.json").read_text())
    assert index["controls"] == [
        {"name": "tan", "description": "darker skin", "region": "cheek", "has_sides": True, "range": [-4, 4]}
        | {"kind": "attribute"}
    ]
    read = ModelFolder.find(folder).action_units
    assert read == VOCABULARY
    assert read.controls == VOCABULARY.controls

    del index["controls"]  # as folders were written before
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    old = ModelFolder.find(tmp_path).action_units
    assert old == VOCABULARY
    assert old.with_sides() == ("AU12", "AU12L", "AU12R", "AU26", "tan")


def test_commands_know_its_words_before_they_load_it(folder, astronaut, tmp_path, capsys, monkeypatch):
    photo = tmp_path / "photo.png"
    PIL.Image.fromarray(astronaut).save(photo)
    command = ["edit", str(photo), "-o", str(tmp_path / "o.png"), "--model", folder, "--au"]
    assert main([*command, "tanL=1"]) == 0
    monkeypatch.setitem(LOADERS, "Tint", None)  # loading would fail
    assert main([*command, "AU26L=1"]) == 2
    assert "AU26 (jaw drop) has no sides" in capsys.readouterr().err
    assert main([*command, "tanR=5"]) == 2
    assert "expected a delta between -4 and 4 for tanR, got 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    "controls",
    [
        [{"name": "tint"}],  # not among the names
        [{"description": "no name"}],
        [{"name": "tan", "weight": 1}],
        [{"name": "tan", "has_sides": "yes"}],
        [{"name": "tan", "range": [4, -4]}],
        [{"name": "tan", "range": [0, 1, 2]}],
        [{"name": "tan", "range": [0, 50]}],
        ["tan"],
    ],
)
def test_unusable_controls_of_an_index_are_refused(tmp_path, controls):
    index = {"_class_name": "Tint"} | VOCABULARY.to_index() | {"controls": controls}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="has unusable controls"):
        ModelFolder.find(tmp_path).action_units  # noqa: B018


def test_it_is_evaluated(folder, astronaut, tmp_path):
    rows = evaluated(f"tint={folder}", astronaut, tmp_path)
    assert len(rows) == 2
    assert ModelEditor(ExpressionEditor.from_pretrained(folder)).own_picture(open_photo(astronaut)) is None
