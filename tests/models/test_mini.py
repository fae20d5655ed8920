"""The embedded models: what lies in the package, and that they answer."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from magicedit.action_units import to_vector
from magicedit.editor import ExpressionEditor
from magicedit.embedded import embedded_folder
from magicedit.hub.push import check_pipeline_folder
from magicedit.models import load_pipeline
from magicedit.pipelines import pipeline_magicedit
from magicedit.pipelines.pipeline_magicedit import self_contained

MINI = embedded_folder("mini")
VALIDATION = ["001", "011", "024", "036", "062", "083", "101", "115", "126", "138"]


def test_is_a_small_pipeline_folder_without_pickles():
    assert set(check_pipeline_folder(MINI)) == {"unet", "reference_unet", "scheduler"}
    assert sum(file.stat().st_size for file in MINI.rglob("*")) < 60e6
    pipeline = load_pipeline("mini", device="cpu")
    assert pipeline.config.prediction == "flow_mask_paint"
    assert pipeline.vae is None


@pytest.mark.parametrize("model", ["mini", "mini-live"])
def test_a_saved_copy_has_the_code_of_its_class(model, tmp_path):
    """The package holds that code once; where the weights go, it goes."""
    assert not list(embedded_folder(model).rglob("*.py"))
    load_pipeline(model, device="cpu").save_pretrained(tmp_path)
    assert (tmp_path / "pipeline.py").read_text() == self_contained(Path(pipeline_magicedit.__file__))


def test_names_no_path_of_the_machine_that_trained_it():
    for file in (*MINI.rglob("*.json"), MINI / "README.md"):
        assert not any(word in file.read_text() for word in ("/tmp", "/work", "/home", "/root")), file


def test_card_names_data_licence_identities_and_command():
    card = (MINI / "README.md").read_text()
    for word in ("license: apache-2.0", "CC BY 4.0", "figshare.5047666", "accelerate launch", "Held out"):
        assert word in card
    seen = card.split("Identities seen:")[1].split("Held out")[0]
    assert not [identity for identity in VALIDATION if f" {identity}," in seen]


def test_smiles_on_faces_it_has_not_seen(london):
    """AU12 = +3 raises the measured AU12 by at least 1.0 on at least 8 of the ten validation faces."""
    editor = ExpressionEditor.from_pretrained("mini", device="cpu")
    changes = {}
    for identity in VALIDATION:
        face = editor.edit(london(identity, "neutral"), add={"AU12": 3}, face="largest").faces[0]
        changes[identity] = face.after["AU12"] - face.before["AU12"]
    assert sum(change >= 1.0 for change in changes.values()) >= 8, changes


@pytest.mark.parametrize("seed", [1, 2])
def test_another_seed_gives_the_same_expression(london, seed):
    editor = ExpressionEditor.from_pretrained("mini", device="cpu")
    photo = london("036", "neutral")
    first, other = (editor.edit(photo, add={"AU12": 3}, seed=s).faces[0].after["AU12"] for s in (0, seed))
    assert other == pytest.approx(first, abs=0.5)  # intensity steps


# --- Schedulers ---

SERVED = [
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
]
REFUSED = [
    "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "PNDMScheduler",
]


@pytest.fixture(scope="module")
def smile(closed_mouth):
    """`smile(scheduler, steps)`: the synthetic portrait's crop with a smile and raised brows, 0..255."""
    editor = ExpressionEditor.from_pretrained("mini", device="cpu")
    pipeline, own = editor.pipeline, editor.pipeline.scheduler
    cut = editor.changer.cut(closed_mouth, editor.measure(closed_mouth)[0])
    au_delta = to_vector({"AU1": 2.0, "AU12": 2.0}, pipeline.action_units)

    def edited(scheduler: str, steps: int, prediction_type: str = "sample") -> np.ndarray:
        config = own.config | {"prediction_type": prediction_type}
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(config)
        result = pipeline(
            faces=cut.encoded,
            au_delta=au_delta,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        )
        return 255 * result.images[0].astype(np.float64)

    edited.crop = cut.crop
    return edited


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
@pytest.mark.parametrize("scheduler", SERVED)
def test_a_scheduler_gives_the_picture_of_the_models_own(smile, scheduler, prediction_type):
    """Stochastic ones differ by up to 20 levels at an edge, others by 1; the edit changes up to 88."""
    for steps in (2, 3, 8):  # 3: where rounding once made Euler's ancestral step NaN
        own = smile("DDIMScheduler", steps)
        assert np.abs(own - smile.crop).max() > 75
        difference = np.abs(smile(scheduler, steps, prediction_type) - own)
        assert difference.mean() < 0.5
        assert difference.max() < 25


@pytest.mark.parametrize("scheduler", REFUSED)
def test_schedulers_that_would_destroy_the_face_are_refused(smile, scheduler):
    with pytest.raises(ValueError, match=f"cannot be sampled with {scheduler}"):
        smile(scheduler, 4)


# --- mini-live: the same in one step ---


def test_live_is_a_denoiser_beside_the_id_encoder_of_mini(tmp_path):
    live, mini = (load_pipeline(name, device="cpu") for name in ("mini-live", "mini"))
    assert (live.config.distilled_steps, live.config.default_steps) == (1, 1)
    shared, own = live.reference_unet.state_dict(), live.unet.state_dict()
    assert all(torch.equal(tensor, shared[name]) for name, tensor in mini.reference_unet.state_dict().items())
    assert not all(torch.equal(tensor, own[name]) for name, tensor in mini.unet.state_dict().items())
    folder = embedded_folder("mini-live")
    assert not list(folder.rglob("*reference*"))
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 20e6
    live.save_pretrained(tmp_path / "whole")  # which stands alone
    assert load_pipeline(tmp_path / "whole", device="cpu").config.distilled_steps == 1


@pytest.mark.parametrize("identity", ["001", "115"])
def test_live_opens_a_mouth_as_mini_does_in_more_steps(london, identity):
    """The student's flow comes nearer to that of `mini` in four steps than that of `mini` in one does."""
    photo = london(identity, "neutral")

    def opened(model, steps):
        editor = ExpressionEditor.from_pretrained(model, device="cpu")
        cut = editor.changer.cut(photo, editor.backend.detect(photo)[0])
        request = editor.changer.model.vocabulary.vector({"AU26": 3.0})
        (change,) = editor.changer.changes([cut], [request], editor.sampling(steps=steps))
        return change.flow

    aim = opened("mini", 4)
    far, near = (np.abs(opened(model, 1) - aim).mean() for model in ("mini", "mini-live"))
    assert near < 0.97 * far
