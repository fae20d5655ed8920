"""Attention maps of whole edits, with the embedded model on a public photograph."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from skimage import data
from tiny_models import tiny_stable_diffusion
from transformers import CLIPTextModel, CLIPTokenizer

from magicedit import ExpressionEditor
from magicedit.editor import named_places
from magicedit.editor.recording import record_reference_attention
from magicedit.errors import ActionUnitError, MagicEditError, ModelError, NoFaceError
from magicedit.faces import align, crop_face, load_backend
from magicedit.models import PatchModelConfig, create_patch_pipeline, from_stable_diffusion
from magicedit.pipelines.pipeline_magicedit import MagicEditPipeline
from magicedit.pipelines.reference_attention import transformer_blocks

QUERIES = ("left mouth corner", "right mouth corner", "left brow", "right eye", "nose")


@pytest.fixture(scope="module")
def photo():
    return data.astronaut()


@pytest.fixture(scope="module")
def editor():
    return ExpressionEditor.from_pretrained("mini", device="cpu")


@pytest.fixture(scope="module")
def maps(editor, photo):
    return editor.attention_maps(photo, {"AU12": 3}, steps=2, guidance=2)


def test_shapes_and_sums(editor, maps):
    assert maps.queries == QUERIES
    assert maps.maps.shape == (2, 5, 16, 16)  # the finest attention of 128 px in patches of 4, one level down
    assert maps.maps.dtype == np.float32
    sums = maps.maps.sum((2, 3))
    assert ((sums > 0) & (sums < 1)).all()
    assert set(maps.layers) == set(transformer_blocks(editor.pipeline.unet))
    assert maps.reference_share.shape == (2, len(maps.layers))
    assert ((maps.reference_share > 0) & (maps.reference_share < 1)).all()
    assert maps.timesteps.tolist() == [999.0, 499.0]
    assert all(name.startswith(("down_blocks.1", "up_blocks.1")) for name in maps.map_layers)
    assert maps.text_share is None


def test_crop_and_points_are_those_of_the_face(editor, maps, photo):
    (face,) = editor.measure(photo)
    alignment = align(face, 128)
    assert np.array_equal(maps.crop, crop_face(photo, alignment))
    places = dict(zip(maps.queries, maps.points, strict=True))
    left, right = (alignment.apply(face.landmarks[index]) for index in (291, 61))
    assert np.array_equal(places["left mouth corner"], left)
    assert np.array_equal(places["right mouth corner"], right)
    assert left[0] > right[0]  # the subject's left is the picture's right
    assert places["right eye"][1] < places["nose"][1] < left[1]
    assert places["left brow"][1] < places["right eye"][1]
    assert places["right eye"][0] < places["nose"][0] < places["left brow"][0]


def test_both_landmark_schemes_name_the_same_places():
    """The nearest of MediaPipe's points stand for the 68; only those that places are made of matter here."""
    points = load_backend("mediapipe").detect(data.astronaut())[0].landmarks
    nearest = {
        **{48: 61, 54: 291, 29: 5, 22: 285, 23: 336, 24: 334, 25: 293, 26: 300},
        **{36: 33, 37: 160, 38: 158, 39: 133, 40: 153, 41: 144},
    }
    others = np.full((68, 2), np.nan, np.float32)
    others[list(nearest)] = points[list(nearest.values())]
    ours, theirs = named_places(points, "mediapipe478"), named_places(others, "ibug68")
    for name in QUERIES:
        assert np.linalg.norm(ours[name] - theirs[name]) < 6, name  # px; the eyes are 50 px apart


def test_maps_are_the_recorded_rows_of_the_edit(editor, maps, photo):
    """The same edit by `edit`, with every query recorded: the token under each point, in the guided half."""
    with record_reference_attention(editor.pipeline.unet) as record:
        editor.edit(photo, add={"AU12": 3}, steps=2, guidance=2, face="largest", measure=False)
    tokens = [int((y + 0.5) / 8) * 16 + int((x + 0.5) / 8) for x, y in maps.points]
    for step in range(2):
        rows = torch.stack([record.reference[step][name][-1] for name in maps.map_layers])[:, tokens].mean(0)
        np.testing.assert_allclose(maps.maps[step].reshape(5, 256), rows, rtol=0, atol=1e-6)
        assert (record.reference[step][maps.map_layers[0]][0, tokens] - rows).abs().max() > 1e-5
        shares = [float(record.reference_share[step][name][-1]) for name in maps.layers]
        np.testing.assert_allclose(maps.reference_share[step], shares, rtol=0, atol=1e-6)


def test_a_named_layer(editor, photo, maps):
    layer = "mid_block.attentions.0.transformer_blocks.0"
    coarse = editor.attention_maps(photo, "AU12=+3", steps=2, guidance=2, layer=layer)
    assert coarse.maps.shape == (2, 5, 8, 8)
    assert coarse.map_layers == (layer,)
    assert np.array_equal(coarse.reference_share, maps.reference_share)
    every = [
        editor.attention_maps(photo, "AU12=+3", steps=2, guidance=2, layer=name).maps
        for name in maps.map_layers
    ]
    np.testing.assert_allclose(np.mean(every, axis=0), maps.maps, rtol=0, atol=1e-6)


def test_seed_and_request_matter(editor, photo, maps):
    assert np.array_equal(editor.attention_maps(photo, {"AU12": 3}, steps=2, guidance=2).maps, maps.maps)
    assert not np.array_equal(
        editor.attention_maps(photo, {"AU12": 3}, steps=2, guidance=2, seed=1).maps, maps.maps
    )
    assert not np.array_equal(editor.attention_maps(photo, {"AU4": 3}, steps=2, guidance=2).maps, maps.maps)


def test_saved_without_pickles(maps, tmp_path):
    maps.save(tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as file:
        assert set(file) == {f.name for f in dataclasses.fields(maps)} - {"text_share"}
        assert tuple(file["queries"]) == QUERIES
        assert tuple(file["layers"]) == maps.layers
        for name in ("maps", "points", "crop", "timesteps", "reference_share"):
            assert np.array_equal(file[name], getattr(maps, name))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"add": {"AU12L": 3}}, ActionUnitError, "both sides"),
        ({"layer": "nowhere"}, ModelError, "no layer 'nowhere'; it has down_blocks"),
        ({"face": 7}, NoFaceError, "index 7"),
        ({"steps": 0}, MagicEditError, "at least 1"),
    ],
)
def test_what_a_user_can_get_wrong(editor, photo, arguments, error, message):
    with pytest.raises(error, match=message):
        editor.attention_maps(photo, **{"add": {"AU12": 3}} | arguments)


def test_several_faces_are_refused(editor, photo):
    with pytest.raises(NoFaceError, match="one face"):
        editor.attention_maps(np.concatenate([photo, photo], axis=1), {"AU12": 3}, face="all")


def test_a_model_without_reference_unet_says_so(editor, photo):
    config = PatchModelConfig(block_out_channels=(16, 32), resolution=64, identity_encoder="none")
    other = ExpressionEditor(create_patch_pipeline(config), editor.backend, model="plain")
    with pytest.raises(ModelError, match="plain has no reference UNet"):
        other.attention_maps(photo, {"AU12": 3})


def test_a_model_with_text_shares_among_its_words(editor, photo, tmp_path):
    unet, reference_unet = from_stable_diffusion(tiny_stable_diffusion(tmp_path))
    parts = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "tokenizer": CLIPTokenizer}
    pipeline = MagicEditPipeline(
        unet=unet,
        reference_unet=reference_unet,
        scheduler=DDIMScheduler.from_pretrained(tmp_path, subfolder="scheduler"),
        **{name: part.from_pretrained(tmp_path, subfolder=name) for name, part in parts.items()},
        resolution=128,
    )
    maps = ExpressionEditor(pipeline, editor.backend).attention_maps(photo, {"AU12": 3}, steps=2)
    assert maps.maps.shape == (2, 5, 16, 16)
    assert maps.text_share.shape == (2, 16, 77)
    np.testing.assert_allclose(maps.text_share.sum(-1), 1, rtol=0, atol=1e-5)
    maps.save(tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as file:
        assert np.array_equal(file["text_share"], maps.text_share)
