"""What is constant for a face is computed once, never stale, and changes no number."""

import concurrent.futures
import contextlib
import copy
import io
import weakref

import diffusers
import numpy as np
import pytest
import torch
from tiny_models import random_crop, tiny_patch_pipeline
from torch.utils._python_dispatch import TorchDispatchMode

from magicedit.pipelines.pipeline_magicedit import EncodedFaces, weights_version
from magicedit.pipelines.reference_attention import encode_reference, is_compiled, transformer_blocks

SMILE = np.eye(12, dtype=np.float32)[6] * 3
FROWN = np.eye(12, dtype=np.float32)[2] * 2


def crops(pipeline, seed=0):
    size = pipeline.config.resolution
    return random_crop(size, seed), random_crop(size, seed + 100)


def run(pipeline, au_delta=SMILE, seed=0, **kwargs):
    kwargs = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"} | kwargs
    return pipeline(au_delta=au_delta, generator=torch.Generator().manual_seed(seed), **kwargs).images


class Calls:
    """How often modules ran while it is open."""

    def __init__(self, **modules):
        self.counts = dict.fromkeys(modules, 0)
        self.handles = [m.register_forward_hook(self.counter(name)) for name, m in modules.items()]

    def counter(self, name):
        def count(*_):
            self.counts[name] += 1

        return count

    def __enter__(self):
        return self.counts

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def test_encoded_faces_give_the_same_to_the_bit(pipeline):
    image, condition = crops(pipeline)
    faces = pipeline.encode_faces(image, condition)
    for au in (SMILE, FROWN):
        direct = run(pipeline, au, image=image, condition_image=condition)
        assert torch.equal(run(pipeline, au, faces=faces), direct)


def test_reference_and_text_are_projected_once_a_face_and_layer(sd_pipeline):
    name, block = next(iter(transformer_blocks(sd_pipeline.unet).items()))
    with Calls(
        encoder=sd_pipeline.reference_unet.conv_in,
        vae=sd_pipeline.vae.encoder,
        text=sd_pipeline.text_encoder,
        text_key=block.attn2.to_k,
        text_value=block.attn2.to_v,
        key=block.attn1.to_k,
        value=block.attn1.to_v,
        query=block.attn1.to_q,
    ) as counts:
        faces = sd_pipeline.encode_faces(*crops(sd_pipeline))
        for au, steps in ((SMILE, 3), (FROWN, 4)):
            run(sd_pipeline, au, faces=faces, num_inference_steps=steps)
    assert counts == {
        "encoder": 1,
        "vae": 2,  # the face and its condition image
        "text": 1,
        "text_key": 1,
        "text_value": 1,
        "key": 7 + 1,  # a step each, and the reference once
        "value": 7 + 1,
        "query": 7,
    }, name


def test_the_id_encoder_ends_at_its_last_feature(sd_pipeline):
    reference_unet = sd_pipeline.reference_unet
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1))
    last = reference_unet.up_blocks[-1].attentions[-1].transformer_blocks[-1]
    entering = []
    handle = last.norm1.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    with Calls(last=last.attn1, head=reference_unet.conv_out, before=reference_unet.conv_in) as counts:
        features = encode_reference(reference_unet, latents, text)
    assert counts == {"last": 0, "head": 0, "before": 1}
    with torch.no_grad():
        reference_unet(latents, torch.zeros(2), encoder_hidden_states=text.expand(2, -1, -1))
    handle.remove()
    assert len(features) == 16
    assert torch.equal(list(features.values())[-1], entering[-1])  # of the whole forward


def test_attention_to_one_text_token_needs_no_queries(patch_pipeline):
    block = next(iter(transformer_blocks(patch_pipeline.unet).values()))
    faces = patch_pipeline.encode_faces(*crops(patch_pipeline))
    assert faces.prompt_embeds.shape[1] == 1
    with Calls(query=block.attn2.to_q) as counts:
        short = run(patch_pipeline, faces=faces)
        assert counts["query"] == 0
        faces.reference.prompt_embeds = None  # then the stock attention runs
        assert torch.equal(run(patch_pipeline, faces=faces), short)
        assert counts["query"] == 3


def test_changed_weights_make_encoded_faces_stale(pipeline):
    image, condition = crops(pipeline)
    faces = pipeline.encode_faces(image, condition)
    weight = next(iter(transformer_blocks(pipeline.unet).values())).attn1.to_k.weight
    with torch.no_grad():
        weight.mul_(1.5)
        try:
            assert not pipeline.is_current(faces)
            with pytest.raises(ValueError, match="encode_faces again"):
                run(pipeline, faces=faces)
            fresh = pipeline.encode_faces(image, condition)
            assert torch.equal(
                run(pipeline, faces=fresh), run(pipeline, image=image, condition_image=condition)
            )
            with pytest.raises(ValueError, match="same weights"):
                EncodedFaces.join([faces, fresh])
        finally:
            weight.div_(1.5)


def test_a_weight_at_the_address_of_the_one_it_replaces_makes_encoded_faces_stale():
    pipeline = tiny_patch_pipeline()
    layer = pipeline.unet.conv_in
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())  # never written to, as a loaded one
    faces = pipeline.encode_faces(*crops(pipeline))
    values = layer.weight.detach() + 1
    place, version = id(layer.weight), layer.weight._version
    layer.weight = None
    others = []  # hold other places, until the next parameter lies where the old one lay
    while id(parameter := torch.nn.Parameter(values)) != place:
        others.append(parameter)
        assert len(others) < 10_000
    layer.weight = parameter
    assert parameter._version == version
    assert not pipeline.is_current(faces)


def test_weights_version_tells_copies_apart_and_keeps_no_weight_alive():
    layer = torch.nn.Linear(3, 3)
    version, copied = weights_version(layer), copy.deepcopy(layer)
    assert weights_version(copied) != version
    assert weights_version(layer) == version
    with torch.inference_mode():
        made = torch.nn.Linear(3, 3)
        assert weights_version(made) == weights_version(made)  # these have no version of their own
    gone = weakref.ref(layer.weight)
    del layer
    assert gone() is None


def test_weights_version_leaves_no_trace_in_what_is_saved():
    layer, files = torch.nn.Linear(3, 3), (io.BytesIO(), io.BytesIO())
    torch.save(layer.state_dict(), files[0])
    weights_version(layer)
    torch.save(layer.state_dict(), files[1])
    assert files[0].getvalue() == files[1].getvalue()


def test_an_adapter_makes_encoded_faces_stale(sd_pipeline):
    from peft import LoraConfig

    faces = sd_pipeline.encode_faces(*crops(sd_pipeline))
    sd_pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False))
    try:
        assert not sd_pipeline.is_current(faces)
        faces = sd_pipeline.encode_faces(*crops(sd_pipeline))
        assert sd_pipeline.is_current(faces)
        sd_pipeline.unet.disable_adapters()
        assert not sd_pipeline.is_current(faces)
    finally:
        sd_pipeline.unet.delete_adapters("default")


def test_faces_one_after_the_other_and_from_two_threads(pipeline):
    faces = [pipeline.encode_faces(*crops(pipeline, seed)) for seed in (0, 1)]
    direct = [
        run(pipeline, image=image, condition_image=condition)
        for image, condition in (crops(pipeline, seed) for seed in (0, 1))
    ]
    assert not torch.equal(*direct)
    fresh = [pipeline.encode_faces(*crops(pipeline, seed)) for seed in (0, 1)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        threaded = list(pool.map(lambda part: run(pipeline, faces=part), fresh * 2))
    for row in (0, 1):
        assert torch.equal(run(pipeline, faces=faces[row]), direct[row])
        assert torch.equal(threaded[row], direct[row])
        assert torch.equal(threaded[row + 2], direct[row])


def test_joined_faces_equal_single_ones(pipeline):
    parts = [pipeline.encode_faces(*crops(pipeline, seed)) for seed in (0, 1)]
    run(pipeline, faces=parts[0])  # its keys and values are projected, those of the other are not
    joined = EncodedFaces.join(parts)
    generators = [torch.Generator().manual_seed(0) for _ in range(4)]
    together = pipeline(
        faces=joined,
        au_delta=np.stack([SMILE, SMILE, FROWN, FROWN]),  # two variants of two faces, faces innermost
        num_inference_steps=3,
        guidance_scale=2.0,
        generator=generators,
        output_type="pt",
    ).images
    for row, (part, au) in enumerate([(0, SMILE), (1, SMILE), (0, FROWN), (1, FROWN)]):
        alone = run(pipeline, au, faces=parts[part])[0]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=2e-5)  # other kernels by batch size


def test_what_encoded_faces_cannot_be_combined_with(patch_pipeline):
    image, condition = crops(patch_pipeline)
    faces = patch_pipeline.encode_faces(image, condition)
    with pytest.raises(ValueError, match="either image and condition_image, or faces"):
        run(patch_pipeline, faces=faces, image=image, condition_image=condition)
    with pytest.raises(ValueError, match="either image and condition_image, or faces"):
        run(patch_pipeline)


class SharedConcatenations(TorchDispatchMode):
    """Counts concatenations that end in `tokens` tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.count = tokens, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.cat.default and out.ndim >= 3 and out.shape[-2] == self.tokens:
            self.count += 1
        return out


def test_keys_and_values_are_concatenated_once_each(sd_pipeline):
    """A layer copies its own and the reference's tokens once, into keys and into values."""
    faces = sd_pipeline.encode_faces(*crops(sd_pipeline))
    run(sd_pipeline, faces=faces, num_inference_steps=1)
    with SharedConcatenations(2 * 64) as mode:  # 8 x 8 latents: the outermost level's 2 + 3 layers
        run(sd_pipeline, faces=faces, num_inference_steps=1)
    assert mode.count == 2 * 5


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_nothing_in_the_loop_waits_for_the_device(pipeline, scheduler):
    """On the meta device every read of a value raises, as on a GPU it would wait."""
    meta = copy.deepcopy(pipeline)
    meta.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    meta.to("meta")
    faces = meta._encode(*meta._prepare_pair(*crops(meta)))
    assert faces.identity.device.type == "meta"
    done = []

    def note_step(_, step, timestep, tensors):
        done.append(step)
        return tensors

    with contextlib.suppress(NotImplementedError):  # the result's copy to the CPU, behind the loop
        meta(
            faces=faces,
            au_delta=SMILE,
            num_inference_steps=3,
            guidance_scale=2.0,
            latents=torch.empty_like(faces.identity_latents),
            output_type="latent",
            callback_on_step_end=note_step,
        )
    assert done == [0, 1, 2]


def test_compiles_without_a_graph_break(patch_pipeline):
    faces = patch_pipeline.encode_faces(*crops(patch_pipeline))
    eager = run(patch_pipeline, faces=faces)
    original, patch_pipeline.unet = (
        patch_pipeline.unet,
        torch.compile(patch_pipeline.unet, backend="aot_eager", fullgraph=True),
    )
    try:
        assert is_compiled(patch_pipeline.unet)
        faces = patch_pipeline.encode_faces(*crops(patch_pipeline))
        torch.testing.assert_close(run(patch_pipeline, faces=faces), eager, rtol=0, atol=1e-5)
        other = patch_pipeline.encode_faces(*crops(patch_pipeline, 1))  # no closure keeps the first face
        direct = run(patch_pipeline, faces=other)
    finally:
        patch_pipeline.unet = original
    torch.testing.assert_close(
        direct,
        run(patch_pipeline, faces=patch_pipeline.encode_faces(*crops(patch_pipeline, 1))),
        rtol=0,
        atol=1e-5,
    )
