"""What `record_reference_attention` sees, against matrices written out, and that it leaves nothing behind."""

import threading

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny_models import random_crop, randomise_new_layers, tiny_patch_pipeline, tiny_unet

from magicedit.editor import recording
from magicedit.editor.recording import record_reference_attention
from magicedit.models import encode_reference, predict_noise
from magicedit.models.unets import make_denoiser
from magicedit.pipelines.reference_attention import transformer_blocks

SMILE = np.eye(12, dtype=np.float32)[6] * 3


@pytest.fixture(scope="module")
def pipeline():
    return tiny_patch_pipeline()


@pytest.fixture(scope="module")
def stable_diffusion():
    """Denoiser and inputs in the published layout, 4 rows of 2 faces."""
    unet, reference_unet = make_denoiser(tiny_unet(1)), tiny_unet(2)
    randomise_new_layers(unet)
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    prompt = draw(1, 6, 32)
    with torch.no_grad():
        features = encode_reference(reference_unet, draw(2, 4, 16, 16), prompt)
    return unet, {
        "latents": draw(4, 4, 16, 16),
        "condition_latents": draw(4, 4, 16, 16),
        "timesteps": 601,
        "prompt_embeds": prompt,
        "au_delta": draw(4, 12),
        "features": features,
    }


def edit(pipeline, au_delta=SMILE, **kwargs):
    kwargs = {"num_inference_steps": 3, "output_type": "pt"} | kwargs
    noise = torch.Generator().manual_seed(0)
    return pipeline(random_crop(32), random_crop(32, 100), au_delta, generator=noise, **kwargs).images


def softmax(logits):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def written_out(attn, hidden_states, other):
    """Attention weights (batch, queries, keys), mean over heads: one product of matrices a row and head."""

    def project(layer, x):
        return x.double().numpy() @ layer.weight.detach().double().numpy().T

    queries, keys = project(attn.to_q, hidden_states), project(attn.to_k, other)
    width = queries.shape[-1] // attn.heads
    rows = []
    for query, key in zip(queries, keys, strict=True):
        parts = [slice(head * width, (head + 1) * width) for head in range(attn.heads)]
        rows.append(np.mean([softmax(query[:, p] @ key[:, p].T / np.sqrt(width)) for p in parts], axis=0))
    return np.stack(rows)


@torch.no_grad()
def test_weights_are_those_of_explicit_matrices(stable_diffusion):
    unet, inputs = stable_diffusion
    seen, handles = {}, []
    for name, block in transformer_blocks(unet).items():
        for part in ("attn1", "attn2"):
            handles.append(
                getattr(block, part).register_forward_pre_hook(
                    lambda module, args, kwargs, key=(name, part): seen.update({key: args[0]}),
                    with_kwargs=True,
                )
            )
    with record_reference_attention(unet) as record:
        predict_noise(unet, **inputs)
    for handle in handles:
        handle.remove()

    blocks = transformer_blocks(unet)
    assert list(record.reference[0]) == list(inputs["features"])  # in execution order
    assert len(record.reference) == len(record.reference_share) == len(record.text) == 1
    for name, block in blocks.items():
        own = seen[name, "attn1"]  # (4, tokens, channels)
        tokens = own.shape[1]
        reference = block.norm1(inputs["features"][name][[0, 1, 0, 1]])  # faces innermost
        weights = written_out(block.attn1, own, torch.cat([own, reference], dim=1))
        recorded = record.reference[0][name]
        assert recorded.shape == (4, tokens, tokens)
        np.testing.assert_allclose(recorded, weights[:, :, tokens:], rtol=0, atol=1e-6)
        share = record.reference_share[0][name]
        np.testing.assert_allclose(share, weights[:, :, tokens:].sum(-1).mean(-1), rtol=0, atol=1e-5)
        assert (share > 0).all()
        assert (recorded.sum(-1) < 1).all()

        weights = written_out(block.attn2, seen[name, "attn2"], inputs["prompt_embeds"].expand(4, -1, -1))
        np.testing.assert_allclose(record.text[0][name], weights.mean(1), rtol=0, atol=1e-6)


@torch.no_grad()
def test_large_layers_are_recorded_in_parts(stable_diffusion, monkeypatch):
    unet, inputs = stable_diffusion
    points = torch.tensor([[0.99, 0.5], [0.1, 0.1]])

    def run():
        with record_reference_attention(unet, points) as record:
            predict_noise(unet, **inputs)
        return record

    whole = run()
    monkeypatch.setattr(recording, "QUERIES_AT_ONCE", 7)
    parts = run()
    for kind in ("reference", "reference_share", "text"):
        for name, expected in getattr(whole, kind)[0].items():
            torch.testing.assert_close(getattr(parts, kind)[0][name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_recording_changes_no_result_and_leaves_no_trace(pipeline, guidance_scale):
    blocks = transformer_blocks(pipeline.unet).values()
    before = [processor for block in blocks for processor in (block.attn1.processor, block.attn2.processor)]
    states = [dict(vars(processor)) for processor in before]
    alone = edit(pipeline, guidance_scale=guidance_scale)
    with record_reference_attention(pipeline.unet) as record:
        recorded = edit(pipeline, guidance_scale=guidance_scale)
    assert torch.equal(recorded, alone)
    assert len(record.reference) == 3

    def restored():
        after = [
            processor for block in blocks for processor in (block.attn1.processor, block.attn2.processor)
        ]
        same = all(a is b for a, b in zip(after, before, strict=True))
        return same and states == [dict(vars(processor)) for processor in after]

    assert restored()
    assert not pipeline.unet._forward_pre_hooks
    with pytest.raises(KeyboardInterrupt), record_reference_attention(pipeline.unet):
        raise KeyboardInterrupt
    assert restored()
    edit(pipeline)
    assert len(record.reference) == 3


def test_steps_layers_and_sums(pipeline):
    with record_reference_attention(pipeline.unet) as record:
        edit(pipeline, guidance_scale=1.0)
    layers = list(transformer_blocks(pipeline.reference_unet))
    for step in record.reference:
        assert sorted(step) == sorted(layers)
        for weights in step.values():
            assert weights.shape == (1, 16, 16)
            assert weights.dtype == torch.float32
            assert (weights >= 0).all()
            assert ((weights.sum(-1) > 0) & (weights.sum(-1) < 1)).all()
    assert not torch.equal(record.reference[0][layers[0]], record.reference[2][layers[0]])
    assert all((weights == 1).all() for step in record.text for weights in step.values())  # a single token


def test_the_conditioned_half_of_a_guided_call_comes_last(pipeline):
    def first_step(au_delta, guidance_scale):
        with record_reference_attention(pipeline.unet) as record:
            edit(pipeline, au_delta, guidance_scale=guidance_scale)
        return record.reference[0]

    guided = first_step(SMILE, 2.0)
    for name, weights in guided.items():
        assert weights.shape[0] == 2
        torch.testing.assert_close(weights[-1:], first_step(SMILE, 1.0)[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(weights[:1], first_step(0 * SMILE, 1.0)[name], rtol=0, atol=1e-6)
        assert (weights[0] - weights[1]).abs().max() > 1e-5


def test_points_choose_the_tokens_they_lie_in(pipeline):
    """4 x 4 tokens of 8 px; order and repetition are those of the points, corners lie inside."""
    points = torch.tensor([[0.6, 0.1], [0.0, 0.0], [1.0, 1.0], [0.6, 0.1], [0.3, 0.8]])
    with record_reference_attention(pipeline.unet) as every:
        edit(pipeline)
    with record_reference_attention(pipeline.unet, points) as chosen:
        edit(pipeline)
    for all_rows, rows in zip(every.reference, chosen.reference, strict=True):
        for name in all_rows:
            assert torch.equal(rows[name], all_rows[name][:, [2, 0, 15, 2, 13]])
    assert all(
        torch.equal(a[name], b[name])
        for a, b in zip(every.reference_share, chosen.reference_share, strict=True)
        for name in a
    )


def test_another_threads_calls_are_not_recorded(pipeline):
    with record_reference_attention(pipeline.unet) as record:
        thread = threading.Thread(target=edit, args=(pipeline,))
        thread.start()
        thread.join()
        assert record.reference == record.reference_share == record.text == []
        edit(pipeline)
    assert len(record.reference) == 3


def test_without_a_reference_nothing_is_given_to_it():
    pipeline = tiny_patch_pipeline(identity_encoder="none")
    with record_reference_attention(pipeline.unet) as record:
        edit(pipeline)
    assert record.reference == record.reference_share == [{}] * 3


def test_what_cannot_be_recorded_says_so(pipeline):
    wide = random_crop(64).crop((0, 0, 64, 32))
    with (
        pytest.raises(ValueError, match="square"),
        record_reference_attention(pipeline.unet, torch.zeros(1, 2)),
    ):
        pipeline(wide, wide, SMILE)
    other = tiny_patch_pipeline()
    other.unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(AttnProcessor2_0())
    with pytest.raises(ValueError, match="mid_block"), record_reference_attention(other.unet):
        pass
