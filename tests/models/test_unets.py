import copy
import json

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from safetensors.torch import load_file, save_file
from tiny_models import randomise_new_layers, tiny_stable_diffusion, tiny_unet

from magicedit.errors import ModelError
from magicedit.models import (
    PatchModelConfig,
    convert,
    create_patch_pipeline,
    encode_reference,
    freeze_unused_reference,
    from_stable_diffusion,
    hold_matrices,
    load_magicface,
    load_pipeline,
    predict_noise,
    refine_patch_pipeline,
    unused_reference_parameters,
)


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "latents": draw(2, 4, 8, 8),
        "condition_latents": draw(2, 4, 8, 8),
        "timesteps": torch.tensor([601, 37]),
        "prompt_embeds": draw(1, 6, 32),
        "au_delta": draw(2, 12),
    }


def test_starts_as_stable_diffusion(sd_folder, inputs):
    """Without a reference the widened denoiser predicts what Stable Diffusion does."""
    unet, reference_unet = from_stable_diffusion(sd_folder)
    assert unet.config.in_channels == 8
    with torch.no_grad():
        ours = predict_noise(unet, **inputs, features=None)
        theirs = reference_unet(
            inputs["latents"],
            inputs["timesteps"],
            encoder_hidden_states=inputs["prompt_embeds"].expand(2, -1, -1),
        ).sample
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_not_a_stable_diffusion_folder(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(ModelError, match="Stable Diffusion"):
        from_stable_diffusion(tmp_path)


def test_wrong_au_shape_is_named(sd_folder, inputs):
    unet, _ = from_stable_diffusion(sd_folder)
    with pytest.raises(ValueError, match=r"\(2, 12\), got \(2, 5\)"):
        predict_noise(unet, **{**inputs, "au_delta": torch.zeros(2, 5)}, features=None)


def test_foreign_processor_is_refused_by_name(sd_folder, inputs):
    unet, reference_unet = from_stable_diffusion(sd_folder)
    features = encode_reference(reference_unet, inputs["latents"], inputs["prompt_embeds"])
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(AttnProcessor2_0())
    with pytest.raises(ValueError, match=r"mid_block\.attentions\.0\.transformer_blocks\.0\.attn1"):
        predict_noise(unet, **inputs, features=features)


def test_fused_projections_are_refused(sd_folder, inputs):
    unet, _ = from_stable_diffusion(sd_folder)
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="Fused"):
        predict_noise(unet, **inputs, features=None)


def test_a_deep_copy_uses_its_own_weights(sd_folder, inputs):
    """The processors know their block's norm1: a copy must know the copy's."""
    unet, reference_unet = from_stable_diffusion(sd_folder)
    features = encode_reference(reference_unet, inputs["latents"], inputs["prompt_embeds"])
    twin = copy.deepcopy(unet)
    with torch.no_grad():
        before = predict_noise(twin, **inputs, features=features)
        for block in unet.modules():
            if type(block).__name__ == "BasicTransformerBlock":
                block.norm1.weight.zero_()
        after = predict_noise(twin, **inputs, features=features)
    assert torch.equal(before, after)


def gradients(unet, reference_unet, inputs, checkpointing):
    unet, reference_unet = copy.deepcopy(unet).train(), copy.deepcopy(reference_unet).train()
    freeze_unused_reference(reference_unet)
    if checkpointing:
        unet.enable_gradient_checkpointing()
        reference_unet.enable_gradient_checkpointing()
    features = encode_reference(reference_unet, inputs["latents"].flip(0), inputs["prompt_embeds"])
    predict_noise(unet, **inputs, features=features).pow(2).mean().backward()
    return {
        f"{part}.{name}": p.grad
        for part, network in (("unet", unet), ("reference", reference_unet))
        for name, p in network.named_parameters()
        if p.requires_grad
    }


def test_gradients_reach_both_unets_with_and_without_checkpointing(sd_folder, inputs):
    unet, reference_unet = from_stable_diffusion(sd_folder)
    randomise_new_layers(unet)
    plain = gradients(unet, reference_unet, inputs, checkpointing=False)
    missing = [name for name, gradient in plain.items() if gradient is None]
    assert not missing
    reached = [
        name for name, gradient in plain.items() if name.startswith("reference.") and gradient.abs().max() > 0
    ]
    assert len(reached) > 0.9 * sum(name.startswith("reference.") for name in plain)
    checkpointed = gradients(unet, reference_unet, inputs, checkpointing=True)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-7)


def test_unused_reference_parameters_are_those_without_gradient(inputs):
    reference_unet = tiny_unet()
    unused = unused_reference_parameters(reference_unet)
    assert len(unused) == 26
    features = encode_reference(reference_unet, inputs["latents"], inputs["prompt_embeds"])
    sum(feature.pow(2).mean() for feature in features.values()).backward()
    assert {name for name, p in reference_unet.named_parameters() if p.grad is None} == set(unused)


@pytest.fixture
def magicface_folder(tmp_path, sd_folder):
    """A checkpoint in the published layout: stock keys but for the AU layer, which its config hides."""
    unet, reference_unet = from_stable_diffusion(sd_folder)
    randomise_new_layers(unet)
    folder = tmp_path / "magicface"
    for name, network in (("denoising_unet", unet), ("ID_enc", reference_unet)):
        network.save_pretrained(folder / name)
        config_file = folder / name / "config.json"
        config = json.loads(config_file.read_text())
        config |= {"class_embed_type": None, "projection_class_embeddings_input_dim": None, "in_channels": 4}
        config_file.write_text(json.dumps(config))
    weights = folder / "denoising_unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({k.replace("class_embedding.", "au_aug_mlp."): v for k, v in state.items()}, weights)
    return folder, unet


def test_magicface_layout_round_trip(magicface_folder, inputs):
    folder, original = magicface_folder
    unet, reference_unet = load_magicface(folder)
    features = encode_reference(reference_unet, inputs["latents"], inputs["prompt_embeds"])
    with torch.no_grad():
        ours = predict_noise(unet, **inputs, features=features)
        expected = predict_noise(original, **inputs, features=features)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_magicface_missing_tensor_is_named(magicface_folder):
    folder, _ = magicface_folder
    weights = folder / "ID_enc" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state.pop("conv_norm_out.weight")
    save_file(state, weights)
    with pytest.raises(ModelError, match=r"conv_norm_out\.weight"):
        load_magicface(folder)


def test_magicface_missing_file_is_named(magicface_folder):
    folder, _ = magicface_folder
    (folder / "ID_enc" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"ID_enc/config\.json"):
        load_magicface(folder)


def test_magicface_without_au_layer(tmp_path, sd_folder):
    _, reference_unet = from_stable_diffusion(sd_folder)
    reference_unet.save_pretrained(tmp_path / "denoising_unet")
    reference_unet.save_pretrained(tmp_path / "ID_enc")
    with pytest.raises(ModelError, match="au_aug_mlp"):
        load_magicface(tmp_path)


def test_convert_makes_a_pipeline_of_the_checkpoint(magicface_folder, sd_folder, tmp_path):
    folder, original = magicface_folder
    convert(folder, sd_folder, tmp_path / "pipeline")
    pipeline = load_pipeline(tmp_path / "pipeline", device="cpu")
    assert pipeline.config.prediction == "noise"
    assert type(pipeline.scheduler).__name__ == "UniPCMultistepScheduler"
    for name, tensor in original.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], tensor), name
    assert pipeline.encode_prompt().shape == (1, 77, 32)
    with pytest.raises(ModelError, match="not empty"):
        convert(folder, sd_folder, tmp_path / "pipeline")


@pytest.mark.parametrize("fine", [False, True])
def test_a_refined_pipeline_predicts_what_it_did(fine):
    config = PatchModelConfig(resolution=32, block_out_channels=(16, 32), fine_flow=fine, default_steps=2)
    pipeline = create_patch_pipeline(config, seed=1)
    generator = torch.Generator().manual_seed(0)
    image, condition = torch.rand(2, 1, 3, 32, 32, generator=generator)
    call = {"latents": torch.randn(1, 48, 8, 8, generator=generator), "output_type": "pt"}
    before = pipeline(image, condition, torch.full((1, 12), 2.0), **call).images
    refined = refine_patch_pipeline(pipeline, 64)
    assert refined.config.resolution == 64
    torch.testing.assert_close(
        refined(image, condition, torch.full((1, 12), 2.0), **call).images, before, rtol=0, atol=1e-6
    )


def test_refining_refuses_what_it_cannot():
    noise = create_patch_pipeline(
        PatchModelConfig(resolution=32, block_out_channels=(16, 32), prediction="noise")
    )
    with pytest.raises(ModelError, match="flow_mask_paint"):
        refine_patch_pipeline(noise, 64)
    composed = create_patch_pipeline(PatchModelConfig(resolution=32, block_out_channels=(16, 32)))
    with pytest.raises(ModelError, match="divisible by 8"):
        refine_patch_pipeline(composed, 36)


def test_a_new_fine_flow_is_still():
    """Random displacements of single pixels would be snow."""
    unet = create_patch_pipeline(PatchModelConfig(resolution=32, block_out_channels=(16, 32))).unet
    assert unet.conv_out.weight[66:].count_nonzero() == 0
    assert unet.conv_out.weight[:66].count_nonzero() > 0


def test_held_matrices_compute_what_autocast_computes():
    """To the bit, forward and backward: autocast casts a float32 matrix to the same values at each use."""

    def computed(held: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        unet = tiny_unet(3).requires_grad_(False)
        unet.conv_in.requires_grad_(True)
        if held:
            hold_matrices(unet, torch.bfloat16)
        generator = torch.Generator().manual_seed(0)
        latents, text = (torch.randn(*shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, 32)))
        with torch.autocast("cpu", torch.bfloat16):
            output = unet(latents, torch.tensor([5, 500]), encoder_hidden_states=text).sample
        output.float().pow(2).mean().backward()
        return output, unet.conv_in.weight.grad, unet.mid_block.resnets[0].conv1.weight

    (plain, plain_grad, _), (output, grad, matrix) = computed(held=False), computed(held=True)
    assert matrix.dtype == torch.bfloat16
    assert grad.abs().max() > 0
    assert torch.equal(output, plain)
    assert torch.equal(grad, plain_grad)
