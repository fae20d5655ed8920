"""The exported denoiser computes what the pipeline's own does, and refuses what it was not made for."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny_models import SHALLOW, random_crop, tiny_patch_pipeline, tiny_stable_diffusion_pipeline

from magicedit.errors import ModelError
from magicedit.models import load_pipeline
from magicedit.models.export import (
    DenoiserGraph,
    export_onnx,
    pipeline_digest,
    projections_of,
    use_onnx,
    weights_digest,
)

PARITY = 1e-4  # greatest absolute difference, what the specification asks for
SMILE = np.eye(12, dtype=np.float32)[6] * 3


def edited(pipeline, guidance=2.0, faces=1, rows=1):
    side = pipeline.config.resolution
    crops = [random_crop(side, number) for number in range(faces)]
    return pipeline(
        crops,
        crops,
        np.stack([SMILE * (1 + row) for row in range(rows)]),
        num_inference_steps=2,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(row) for row in range(rows)],
        output_type="pt",
    ).images


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxscript", reason="exporting needs the package onnxscript")
    pytest.importorskip("onnxruntime", reason="the graph needs the package onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(tiny_patch_pipeline(), folder)
    return folder


@pytest.mark.parametrize(("faces", "rows", "guidance"), [(1, 1, 1.0), (1, 3, 2.0), (2, 4, 2.0)])
def test_edits_are_the_same(exported, faces, rows, guidance):
    pipeline = tiny_patch_pipeline()
    expected = edited(pipeline, guidance, faces, rows)
    use_onnx(pipeline, exported)
    found = edited(pipeline, guidance, faces, rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=PARITY)
    assert (edited(pipeline, guidance, faces, rows)[:1] - edited(tiny_patch_pipeline(1))).abs().max() > 1e-2


@pytest.mark.slow
def test_a_model_with_text_is_the_same(tmp_path):
    pytest.importorskip("onnxscript", reason="exporting needs the package onnxscript")
    pytest.importorskip("onnxruntime", reason="the graph needs the package onnxruntime")
    pipeline = tiny_stable_diffusion_pipeline(tmp_path, **SHALLOW)
    expected = edited(pipeline)
    export_onnx(pipeline, tmp_path / "exported")
    use_onnx(pipeline, tmp_path / "exported")
    torch.testing.assert_close(edited(pipeline), expected, rtol=0, atol=PARITY)


def test_changed_weights_are_refused(exported):
    pipeline = tiny_patch_pipeline()
    use_onnx(pipeline, exported)
    with torch.no_grad():
        pipeline.unet.conv_in.weight.add_(1)
    with pytest.raises(ModelError, match="export it again"):
        edited(pipeline)
    with pytest.raises(ModelError, match="other weights"):
        use_onnx(tiny_patch_pipeline(1), exported)


def test_the_weights_stay_the_pipelines_own(exported, tmp_path):
    pipeline = tiny_patch_pipeline()
    use_onnx(pipeline, exported)
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"][1] == "UNet2DConditionModel"
    with pytest.raises(ModelError, match="already"):
        use_onnx(pipeline, exported)


def test_a_missing_graph_is_named(tmp_path):
    pytest.importorskip("onnxruntime", reason="the graph needs the package onnxruntime")
    with pytest.raises(ModelError, match=r"denoiser\.onnx"):
        use_onnx(tiny_patch_pipeline(), tmp_path)


def test_the_graph_is_a_function_of_its_inputs():
    """Without any package: the module that is exported equals the denoiser, and other keys change it."""
    pipeline = tiny_patch_pipeline()
    unet, side = pipeline.unet, pipeline.config.resolution
    crop = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    faces = pipeline.encode_faces(crop, crop)
    sample = torch.randn(1, unet.config.in_channels, *faces.identity_latents.shape[-2:])
    timestep, labels = torch.tensor([500]), torch.from_numpy(SMILE)[None]
    with torch.no_grad():
        expected = unet(
            sample,
            timestep,
            encoder_hidden_states=faces.prompt_embeds,
            class_labels=labels,
            cross_attention_kwargs={"reference": faces.reference},
        ).sample
        projections = projections_of(unet, faces.reference)
        graph = DenoiserGraph(unet, torch.zeros_like(faces.prompt_embeds))
        torch.testing.assert_close(graph(sample, timestep, labels, projections), expected, rtol=0, atol=0)
        others = [x.flip(-1) for x in projections]
        assert (graph(sample, timestep, labels, others) - expected).abs().max() > 1e-4


def test_a_digest_sees_every_number():
    one, other = tiny_patch_pipeline().unet, tiny_patch_pipeline().unet
    assert weights_digest(one) == weights_digest(other)
    with torch.no_grad():
        other.conv_out.bias[-1] += 1e-6
    assert weights_digest(one) != weights_digest(other)


def test_the_digest_of_a_pipeline_sees_every_network_and_setting(tmp_path):
    first = pipeline_digest(tiny_patch_pipeline())
    folder = tmp_path / "elsewhere"
    tiny_patch_pipeline().save_pretrained(folder)
    assert pipeline_digest(load_pipeline(folder, device="cpu")) == first
    others = [tiny_patch_pipeline() for _ in range(4)]
    with torch.no_grad():
        others[0].unet.conv_out.bias[-1] += 1e-6
        others[1].reference_unet.conv_in.bias[-1] += 1e-6
    others[2].scheduler = type(others[2].scheduler).from_config(others[2].scheduler.config, beta_end=0.013)
    others[3].register_to_config(default_steps=3)
    assert len({first, *map(pipeline_digest, others)}) == 5


def test_adapters_and_other_dtypes_are_refused(tmp_path):
    pytest.importorskip("onnxruntime", reason="the graph needs the package onnxruntime")
    pipeline = tiny_patch_pipeline()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ModelError, match="fuse_lora"):
        use_onnx(pipeline, tmp_path)
    with pytest.raises(ModelError, match="float32 on the CPU"):
        use_onnx(tiny_patch_pipeline().to(dtype=torch.bfloat16), tmp_path)


def test_an_adapter_that_is_added_later_is_refused(exported):
    pipeline = tiny_patch_pipeline()
    use_onnx(pipeline, exported)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    with pytest.raises(ModelError, match="adapters changed"):
        edited(pipeline)
