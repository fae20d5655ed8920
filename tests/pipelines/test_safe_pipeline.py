"""What the pipelines of the families share: only whole folders of safetensors are loaded."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from magicedit.pipelines.pipeline_flow_autoencoder import FlowAutoencoderPipeline
from magicedit.pipelines.pipeline_ganimation import (
    GANimationCritic,
    GANimationGenerator,
    GANimationPipeline,
    LabelEmbedding,
)

WEIGHTS = "embedding/diffusion_pytorch_model.safetensors"


@pytest.fixture
def pipeline() -> GANimationPipeline:
    torch.manual_seed(0)
    networks = GANimationGenerator(4, 1, 8), LabelEmbedding(2, 8), GANimationCritic(16, 4, 2)
    return GANimationPipeline(*networks, 16, "AU12,AU26", relative=True)


def test_a_saved_pipeline_is_loaded_with_its_settings(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = GANimationPipeline.from_pretrained(tmp_path, torch_dtype=torch.float64)
    assert loaded.config.relative
    assert loaded.config.action_units == "AU12,AU26"
    assert loaded.dtype == torch.float64
    crop = np.linspace(0, 1, 16 * 16 * 3, dtype=np.float32).reshape(1, 16, 16, 3)
    both = [model(crop, [4.0, 0.0], output_type="np").images for model in (pipeline, loaded)]
    np.testing.assert_allclose(*both, atol=1e-5)


def without_a_tensor(folder):
    weights = load_file(folder / WEIGHTS)
    weights.popitem()
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def with_another_tensor(folder):
    save_file(load_file(folder / WEIGHTS) | {"more": torch.zeros(1)}, folder / WEIGHTS, {"format": "pt"})


def of_another_class(folder):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": ["x", "Other"]}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_tensor, "do not fit its config .missing_keys"),
        (with_another_tensor, "do not fit its config .unexpected_keys"),
        (of_another_class, "holds a Other, not a GANimationPipeline"),
        (lambda folder: (folder / WEIGHTS).unlink(), "embedding has no safetensors weights"),
        (lambda folder: (folder / "embedding").rename(folder / "lost"), "has no folder embedding"),
        (lambda folder: (folder / "model_index.json").unlink(), "has no model_index.json"),
    ],
)
def test_a_damaged_folder_is_refused(pipeline, tmp_path, damage, message):
    pipeline.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        GANimationPipeline.from_pretrained(tmp_path)


def test_a_family_does_not_load_another(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a GANimationPipeline, not a FlowAutoencoderPipeline"):
        FlowAutoencoderPipeline.from_pretrained(tmp_path)


def test_pickles_are_not_written(pipeline, tmp_path):
    with pytest.raises(ValueError, match="safetensors only"):
        pipeline.save_pretrained(tmp_path, safe_serialization=False)
