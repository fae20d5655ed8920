"""The other ways to encode AUs and identity (MagicFace, tables II and III): what each network gets to see."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import TINY_PATCH, random_crop, run_without_package, tiny_patch_pipeline

from magicedit.errors import ModelError
from magicedit.models import encode_identity, load_pipeline, predict_noise, refine_patch_pipeline
from magicedit.models.unets import AU_ENCODERS, IDENTITY_ENCODERS
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import ActionUnitMap

SMILE = np.eye(12, dtype=np.float32)[6] * 3
FROWN = np.eye(12, dtype=np.float32)[2] * 2

# Each encoder on its own, and one that needs every optional component
VARIANTS = [
    *((au, "unet") for au in AU_ENCODERS),
    *(("linear", identity) for identity in IDENTITY_ENCODERS if identity != "unet"),
    ("latent_map", "clip"),
]
each_variant = pytest.mark.parametrize(
    ("au_encoder", "identity_encoder"), VARIANTS, ids=["-".join(v) for v in VARIANTS]
)


def variant(au_encoder, identity_encoder="unet", **changes):
    """Without identity patches on the input channels, so that the identity has one way in."""
    settings = {"au_encoder": au_encoder, "identity_encoder": identity_encoder, "concat_identity": False}
    pipeline = tiny_patch_pipeline(**settings | changes)
    for network in pipeline.components.values():
        if isinstance(network, torch.nn.Module):
            network.eval()
    return pipeline


def edit(pipeline, au_delta=SMILE, faces=(0,), conditions=None, **kwargs):
    kwargs = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"} | kwargs
    kwargs.setdefault("generator", [torch.Generator().manual_seed(5) for _ in np.atleast_2d(au_delta)])
    crops = [random_crop(32, seed) for seed in faces]
    backgrounds = [random_crop(32, seed + 100) for seed in (faces if conditions is None else conditions)]
    return pipeline(crops, backgrounds, au_delta, **kwargs).images


def draws(pipeline, batch, seed=3):
    """Latents, condition latents of the width that the model takes, and AU variations."""
    generator = torch.Generator().manual_seed(seed)
    condition_channels = pipeline.unet.config.in_channels - 48
    if pipeline.au_map is not None:
        condition_channels -= pipeline.au_map.config.channels
    return (
        torch.randn(batch, 48, 8, 8, generator=generator),
        torch.randn(batch, condition_channels, 8, 8, generator=generator),
        2 * torch.randn(batch, 12, generator=generator),
    )


# --- Action units -------------------------------------------------------------------------------------------


@each_variant
def test_aus_matter(au_encoder, identity_encoder):
    pipeline = variant(au_encoder, identity_encoder)
    for guidance in (1.0, 2.0):
        smile, frown, nothing = (
            edit(pipeline, au, guidance_scale=guidance) for au in (SMILE, FROWN, 0 * SMILE)
        )
        assert not torch.equal(smile, frown)
        assert not torch.equal(smile, nothing)


@torch.no_grad()
def test_padded_aus_are_added_to_the_time_embedding():
    pipeline = variant("padded")
    unet, (latents, condition, au_delta) = pipeline.unet, draws(pipeline, 2)
    prompt = pipeline.encode_prompt()
    ours = predict_noise(unet, latents, condition, torch.tensor([601, 37]), prompt, au_delta, None)

    width = 4 * TINY_PATCH.block_out_channels[0]
    padded = torch.cat([au_delta, torch.zeros(2, width - 12)], dim=1)
    handle = unet.time_embedding.register_forward_hook(lambda module, args, embedding: embedding + padded)
    theirs = unet(
        torch.cat([latents, condition], dim=1),
        torch.tensor([601, 37]),
        encoder_hidden_states=prompt.expand(2, -1, -1),
        class_labels=torch.zeros(2, width),
    ).sample
    handle.remove()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert not any(True for _ in unet.class_embedding.parameters())


@torch.no_grad()
def test_mapped_aus_are_input_channels_behind_the_others():
    pipeline = variant("latent_map")
    unet, (latents, condition, au_delta) = pipeline.unet, draws(pipeline, 2)
    seen = []
    handle = unet.conv_in.register_forward_hook(lambda module, args, output: seen.append(output))
    predict_noise(unet, latents, condition, 601, pipeline.encode_prompt(), au_delta, None, pipeline.au_map)
    handle.remove()

    first, second, last = (pipeline.au_map.layers[i] for i in (0, 2, 4))
    hidden = au_delta
    for layer in (first, second):
        hidden = hidden @ layer.weight.T + layer.bias
        hidden = hidden * torch.sigmoid(hidden)
    channels = (hidden @ last.weight.T + last.bias).reshape(2, 4, 8, 8)
    kernel = unet.conv_in.weight
    assert kernel.shape[1] == 48 + 48 + 4
    expected = unet.conv_in.bias[:, None, None] + sum(
        F.conv2d(x, k, padding=1)
        for x, k in zip((latents, condition, channels), kernel.split([48, 48, 4], dim=1), strict=True)
    )
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)
    assert unet.class_embedding is None


# --- Identity -----------------------------------------------------------------------------------------------


@each_variant
def test_identity_reaches_the_network_unless_there_is_no_encoder(au_encoder, identity_encoder):
    """A noise model's result depends on the identity by the network alone; nothing else changes here."""
    pipeline = variant(au_encoder, identity_encoder, prediction="noise")
    first, other = (edit(pipeline, faces=(face,), conditions=(0,)) for face in (0, 1))
    assert torch.equal(first, other) == (identity_encoder == "none")
    assert not torch.equal(first, edit(pipeline, conditions=(7,)))


@pytest.mark.parametrize("concat_identity", [False, True])
def test_no_identity_encoder_means_none_whatever_the_channels(concat_identity):
    """The raw output of flow, mask and paint too is a function of noise, condition and AUs."""
    pipeline = variant("linear", "none", concat_identity=concat_identity)
    outputs = []
    pipeline.unet.register_forward_hook(lambda module, args, output: outputs.append(output.sample))
    for face in (0, 1):
        edit(pipeline, faces=(face,), conditions=(0,), num_inference_steps=1)
    assert torch.equal(*outputs)
    assert not pipeline.config.concat_identity
    assert variant("linear", "convolution").config.concat_identity


@each_variant
@torch.no_grad()
def test_faces_are_the_innermost_of_a_batch(au_encoder, identity_encoder):
    """Two faces in three variations: rows 0, 2, 4 are of the first face."""
    pipeline = variant(au_encoder, identity_encoder)
    identity = torch.stack([torch.from_numpy(np.array(random_crop(32, s))).permute(2, 0, 1) for s in (0, 1)])
    identity = pipeline.encode_images(identity / 127.5 - 1)
    latents, condition, au_delta = draws(pipeline, 6)
    prompt = pipeline.encode_prompt()

    def predict(rows, faces):
        features, tokens = encode_identity(
            pipeline.reference_unet, pipeline.image_encoder, identity[faces], prompt
        )
        return predict_noise(
            pipeline.unet,
            latents[rows],
            condition[rows],
            601,
            tokens,
            au_delta[rows],
            features,
            pipeline.au_map,
        )

    together = predict(list(range(6)), [0, 1])
    for row in range(6):
        torch.testing.assert_close(together[row], predict([row], [row % 2])[0], rtol=0, atol=2e-5)
    if identity_encoder in ("unet", "clip"):
        assert (together[0] - predict([0], [1])[0]).abs().max() > 1e-3


@each_variant
def test_batch_equals_singles(au_encoder, identity_encoder):
    pipeline = variant(au_encoder, identity_encoder)
    requests = np.stack([SMILE, FROWN, SMILE - FROWN])
    for faces in ((0, 1, 2), (0,)):
        together = edit(pipeline, requests, faces)
        for row, au in enumerate(requests):
            alone = edit(pipeline, au, (faces[row % len(faces)],))[0]
            torch.testing.assert_close(together[row], alone, rtol=0, atol=2e-5)


# --- Saving and loading -------------------------------------------------------------------------------------


@each_variant
def test_saved_and_loaded_it_answers_the_same(au_encoder, identity_encoder, tmp_path):
    pipeline = variant(au_encoder, identity_encoder)
    pipeline.save_pretrained(tmp_path)
    loaded = MagicEditPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for name, component in pipeline.components.items():
        assert (component is None) == (loaded.components[name] is None), name
    assert torch.equal(edit(loaded), edit(pipeline))


# It runs with diffusers alone, and saves a model that was itself loaded from a folder's file
EDIT_AND_SAVE = """
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
    crop = Image.new("RGB", (32, 32), (200, 150, 120))
    generator = torch.Generator().manual_seed(0)
    image = pipeline(crop, crop, [0.0] * 6 + [3.0] + [0.0] * 5, generator=generator).images[0]
    pipeline.save_pretrained(sys.argv[2])
    image.save(sys.argv[2] + "/image.png")
"""


def test_loads_where_the_package_is_not_installed(tmp_path):
    pipeline = variant("latent_map", "clip")
    pipeline.save_pretrained(tmp_path / "first")
    run_without_package(EDIT_AND_SAVE, tmp_path / "first", tmp_path / "second", work=tmp_path)
    from PIL import Image

    crop = Image.new("RGB", (32, 32), (200, 150, 120))
    ours = pipeline(crop, crop, SMILE, generator=torch.Generator().manual_seed(0)).images[0]
    with Image.open(tmp_path / "second" / "image.png") as theirs:
        assert np.abs(np.asarray(theirs, int) - np.asarray(ours, int)).max() <= 1  # other threads
    assert torch.equal(edit(load_pipeline(tmp_path / "second", device="cpu")), edit(pipeline))


def test_the_safe_route_never_runs_the_folders_code(tmp_path):
    variant("latent_map").save_pretrained(tmp_path)
    for file in (tmp_path / "pipeline.py", tmp_path / "au_map" / "pipeline.py"):
        assert file.is_file()
        file.write_text("raise SystemExit('the code of the folder was run')")
    assert type(MagicEditPipeline.from_pretrained(tmp_path).au_map) is ActionUnitMap


def test_every_network_is_loaded_in_the_asked_precision(tmp_path):
    variant("latent_map", "clip").save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for n in (loaded.unet, loaded.image_encoder, loaded.au_map) for p in n.parameters()} == {
        torch.bfloat16
    }
    assert edit(loaded).shape == (1, 3, 32, 32)


def test_a_reference_unet_is_not_left_out_by_mistake(tmp_path):
    """Without it the face would silently be another's; a model that has none names none."""
    variant("linear").save_pretrained(tmp_path)
    index_file = tmp_path / "model_index.json"
    index = json.loads(index_file.read_text())
    del index["reference_unet"]
    index_file.write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names no reference_unet"):
        load_pipeline(tmp_path, device="cpu")


@pytest.mark.parametrize("change", [[None, None], ["pipeline", "Other"], ["diffusers", "ActionUnitMap"]])
def test_an_au_map_is_neither_left_out_nor_of_another_class(tmp_path, change):
    variant("latent_map").save_pretrained(tmp_path)
    index_file = tmp_path / "model_index.json"
    index_file.write_text(json.dumps(json.loads(index_file.read_text()) | {"au_map": change}))
    with pytest.raises(ModelError, match="au_map"):
        load_pipeline(tmp_path, device="cpu")


def test_a_missing_tensor_of_the_au_map_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    variant("latent_map").save_pretrained(tmp_path)
    (file,) = (tmp_path / "au_map").glob("*.safetensors")
    state = load_file(file)
    del state["layers.4.bias"]
    save_file(state, file)
    with pytest.raises(ModelError, match=r"layers\.4\.bias"):
        load_pipeline(tmp_path, device="cpu")
    shutil.rmtree(tmp_path / "au_map")
    with pytest.raises(ModelError, match="has no folder au_map"):
        load_pipeline(tmp_path, device="cpu")


# --- What does not go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["au_encoder", "identity_encoder"])
def test_unknown_encoders_are_refused(setting):
    with pytest.raises(ModelError, match=r"got .*nonsense"):
        tiny_patch_pipeline(**{setting: "nonsense"})


@pytest.mark.parametrize("settings", [("latent_map", "unet"), ("linear", "clip")], ids=["map", "clip"])
def test_encoders_of_one_size_say_so(settings):
    pipeline = variant(*settings)
    crop = random_crop(48)
    with pytest.raises(ValueError, match=r"32 x 32 px.*got 48 x 48 px"):
        pipeline(crop, crop, SMILE)
    with pytest.raises(ModelError, match="one resolution"):
        refine_patch_pipeline(pipeline, 48)


def test_convolution_refines():
    """Nothing but convolutions and attention: as any other model, without a reference UNet."""
    refined = refine_patch_pipeline(variant("padded", "convolution"), 48)
    assert refined.unet.config.sample_size == 12
