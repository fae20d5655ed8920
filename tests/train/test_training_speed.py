"""What makes training faster leaves it what it is."""

import json
import os
import re
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_patch_pipeline, tiny_stable_diffusion
from warm import run_ranks

from magicedit.errors import TrainingError
from magicedit.models import encode_reference, load_pipeline
from magicedit.pipelines.reference_attention import transformer_blocks
from magicedit.train import compiled
from magicedit.train.config import parse_config
from magicedit.train.identity_cache import IdentityCache
from magicedit.train.loop import Run, train

ENTRY = str(Path(__file__).resolve().parents[2] / "train" / "train.py")


def log(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def denoiser(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def sd_flags(pairs_folder, sd_folder):
    def flags(output_dir, *more):
        return [
            *(f"--pretrained_model_name_or_path={sd_folder}", f"--train_data_dir={pairs_folder}"),
            *(f"--output_dir={output_dir}", "--resolution=64", "--train_batch_size=2"),
            *("--validation_steps=0", "--lr_warmup_steps=0", "--learning_rate=1e-3", "--logging_steps=1"),
            *("--max_train_steps=3", *more),
        ]

    return flags


# --- The text, projected once ---


def test_text_projected_once_has_the_same_gradients(sd_flags, tmp_path):
    run = Run(parse_config(sd_flags(tmp_path)))
    with torch.no_grad():  # else the AU layer, which starts at zero, hides what it does
        run.method.networks.unet.class_embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
    batch = next(iter(run._loader()))
    rows = []
    blocks = transformer_blocks(run.method.networks.unet).values()
    for block in blocks:
        block.attn2.to_k.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))

    def gradients(once):
        rows.clear()
        run.method.networks.gradient_checkpointing = not once  # it alone decides who projects
        run.method.networks.zero_grad()
        next(run.method.losses(batch, run.networks))[1].backward()
        return {name: p.grad.clone() for name, p in run.method.networks.named_parameters() if p.requires_grad}

    once = gradients(True)
    assert rows == [1] * len(blocks)
    each = gradients(False)
    assert rows == [2] * len(blocks)
    # The reference's middle has one token, which attends to itself alone: no query or key changes anything
    alone = re.compile(r"reference_unet\.mid_block\..*\.attn1\.to_[qk]\.weight")
    assert sum(1 for name in each if alone.fullmatch(name)) == 2
    for name, gradient in each.items():
        largest = float(gradient.abs().max())
        if alone.fullmatch(name):  # but for rounding, which not every processor does
            assert max(largest, float(once[name].abs().max())) < 1e-9, name
            continue
        assert largest > 0, name
        torch.testing.assert_close(once[name], gradient, rtol=1e-6, atol=1e-6 * largest, msg=name)


# --- A frozen reference, encoded once ---

FROZEN = ("--freeze_reference", "--no_augment")


def count_encodings(run):
    """Rows of every call of the ID encoder from now on."""
    calls = []
    run.method.networks.reference_unet.register_forward_pre_hook(
        lambda module, args: calls.append(len(args[0]))
    )
    return calls


def test_a_photograph_is_encoded_once(sd_flags, tmp_path):
    run = Run(parse_config(sd_flags(tmp_path, "--freeze_reference")))
    calls = count_encodings(run)
    run.train()
    assert len(run.method.pairs) == 2
    assert calls == [1, 1]
    assert sum(line["reference_misses"] for line in log(tmp_path)) == 2
    assert sum(line["reference_hits"] for line in log(tmp_path)) == 3 * 2 - 2


def test_the_cache_changes_nothing(tiny_flags, tmp_path):
    """To the bit where without it, too, one photograph is encoded at a time."""
    more = (*FROZEN, "--max_train_steps", "6", "--train_batch_size", "1", "--lr_scheduler", "constant")
    train(parse_config(tiny_flags(tmp_path / "with", *more)))
    train(parse_config(tiny_flags(tmp_path / "without", *more, "--reference_cache_gb", "0")))
    assert sum(line["reference_hits"] for line in log(tmp_path / "with")) > 0
    assert "reference_hits" not in log(tmp_path / "without")[0]
    assert same(denoiser(tmp_path / "with"), denoiser(tmp_path / "without"))


def test_resuming_and_forgetting_change_nothing(tiny_flags, tmp_path):
    """Else a resumed run, whose cache is empty, would end otherwise than an uninterrupted one."""
    more = (*FROZEN, "--lr_scheduler", "constant", "--train_batch_size", "3")
    train(parse_config(tiny_flags(tmp_path / "straight", *more, "--max_train_steps", "5")))
    train(parse_config(tiny_flags(tmp_path / "resumed", *more, "--max_train_steps", "3")))
    again = ("--max_train_steps", "5", "--resume_from_checkpoint", "latest")
    train(parse_config(tiny_flags(tmp_path / "resumed", *more, *again)))
    assert same(denoiser(tmp_path / "straight"), denoiser(tmp_path / "resumed"))
    none = ("--max_train_steps", "5", "--reference_cache_gb", "1e-9")
    train(parse_config(tiny_flags(tmp_path / "forgetful", *more, *none)))
    assert sum(line["reference_hits"] for line in log(tmp_path / "forgetful")) == 0
    assert same(denoiser(tmp_path / "straight"), denoiser(tmp_path / "forgetful"))


def test_every_row_has_the_features_of_its_own_picture(tiny_flags, tmp_path):
    """Also where the source is a warped photograph whose number is known already."""
    run = Run(parse_config(tiny_flags(tmp_path, *FROZEN, "--warped", "1", "--train_batch_size", "4")))
    warped_again, seen = 0, set()
    for batch, _ in zip(run._loader(), range(6), strict=False):
        latents = run.method._encode(batch)["identity"]
        features, tokens = run.method._frozen_identity(batch, latents)
        assert tokens is run.method.prompt_embeds
        for row in range(4):
            direct = encode_reference(
                run.method.networks.reference_unet, latents[row : row + 1], run.method.prompt_embeds
            )
            assert all(torch.equal(direct[layer][0], x[row]) for layer, x in features.items())
            record, as_stored = int(batch["source_index"][row]), bool(batch["source_as_stored"][row])
            stored = run.method.pairs.record_images(record)[0]
            assert torch.equal(batch["source"][row], stored) == as_stored
            warped_again += not as_stored and record in seen
            seen.add(record)
    assert warped_again > 0
    assert run.method.identity_cache.hits > 12


def test_tokens_of_a_frozen_image_encoder_are_kept_too(tiny_flags, tmp_path):
    variant = ("--au_encoder", "latent_map", "--identity_encoder", "clip", "--concat_identity", "false")
    run = Run(parse_config(tiny_flags(tmp_path, *FROZEN, *variant, "--warped", "0")))
    calls = []
    run.method.networks.image_encoder.register_forward_pre_hook(
        lambda module, args: calls.append(len(args[0]))
    )
    batches = [batch for batch, _ in zip(run._loader(), range(3), strict=False)]
    for batch in batches:
        latents = run.method._encode(batch)["identity"]
        _, tokens = run.method._frozen_identity(batch, latents)
        direct = run.method.networks.image_encoder(latents).last_hidden_state
        torch.testing.assert_close(tokens, direct, rtol=0, atol=1e-5)  # other kernels at another batch size
    assert calls.count(1) == 2
    assert calls.count(2) == len(batches)  # the direct ones


def test_under_augmentation_nothing_is_kept(tiny_flags, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run = Run(parse_config(tiny_flags(tmp_path, "--freeze_reference", "--augment")))
    assert run.method.identity_cache is None
    assert "--augment: reference features are computed at every step" in caplog.text
    assert not next(iter(run._loader()))["source_as_stored"].any()
    assert (
        Run(parse_config(tiny_flags(tmp_path, "--no_augment"))).method.identity_cache is None
    )  # it is trained


def test_distillation_encodes_a_photograph_once_too(tiny_flags, tmp_path):
    tiny_patch_pipeline(default_guidance_scale=2.0).save_pretrained(tmp_path / "teacher")
    distill = ("--objective", "distill", "--pretrained_model_name_or_path", str(tmp_path / "teacher"))
    more = (*distill, "--distill_teacher_steps", "4", "--no_augment", "--warped", "0")
    run = Run(parse_config(tiny_flags(tmp_path / "student", *more, "--max_train_steps", "3")))
    calls = count_encodings(run)
    run.train()
    assert calls == [1, 1]


def test_those_unused_for_longest_make_room(caplog):
    encoded = []

    def encode(latents):
        encoded.append(int(latents[0, 0, 0, 0]))
        return {"layer": latents.flatten(2)}, tokens

    tokens = torch.zeros(1, 1, 4)
    size = (16 + 4) * 4  # bytes of an entry
    with caplog.at_level("INFO"):
        cache = IdentityCache(encode, 2 * size + size // 2, photographs=7)
        for record in (1, 2, 1, 3, 1, 2, None, None):
            value = 9 if record is None else record
            features, _ = cache.identities([record], torch.full((1, 1, 4, 4), float(value)))
            assert (features["layer"] == value).all()
    assert encoded == [1, 2, 3, 2, 9, 9]
    assert (cache.hits, cache.misses) == (2, 6)
    assert caplog.text.count("room for 2 of 7") == 1


# --- The optimiser ---


def test_the_fused_optimiser_is_adamw(tiny_flags, tmp_path):
    """The same operations in one pass; what they round differs in the last bit of every step."""
    config = parse_config(tiny_flags(tmp_path, "--adam_beta2", "0.99"))
    run = Run(config)
    assert run.method.optimizer.param_groups[0]["fused"] is True
    plain = [torch.nn.Parameter(p.detach().clone()) for p in run.parameters]
    reference = torch.optim.AdamW(
        plain, lr=1e-3, betas=(0.9, 0.99), weight_decay=config.adam_weight_decay, eps=1e-8, foreach=False
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for p, q in zip(run.parameters, plain, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        run.method.optimizer.step()
        reference.step()
    for p, q in zip(run.parameters, plain, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)  # 1e-5 of a step


# --- Compilation ---


@pytest.fixture
def traced(monkeypatch):
    """Compilation without generated code: what is traced is run as it is, so no compiler is needed."""
    import torch._dynamo

    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    monkeypatch.setenv("CXX", sys.executable)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "more",
    [pytest.param((), id="full", marks=pytest.mark.slow), pytest.param(("--lora_rank", "2"), id="lora")],
)
def test_compiled_networks_are_one_graph_each_and_leave_no_trace(tiny_flags, tmp_path, traced, more):
    tiny_patch_pipeline().save_pretrained(tmp_path / "base")
    more = (*more, "--max_train_steps", "3", "--pretrained_model_name_or_path", str(tmp_path / "base"))
    train(parse_config(tiny_flags(tmp_path / "eager", *more)))
    assert not traced["stats"]
    train(parse_config(tiny_flags(tmp_path / "compiled", *more, "--compile")))
    assert traced["stats"]["unique_graphs"] == 2  # for three steps
    assert not traced["graph_break"]
    eager, fast = (log(tmp_path / name) for name in ("eager", "compiled"))
    assert [line["loss"] for line in fast] == pytest.approx([line["loss"] for line in eager], rel=1e-4)
    files = [*tmp_path.glob("compiled/**/*.safetensors"), *tmp_path.glob("eager/**/*.safetensors")]
    names = {folder: set() for folder in ("eager", "compiled")}
    for file in files:
        relative = file.relative_to(tmp_path)
        names[relative.parts[0]] |= {(relative.parts[1:], name) for name in load_file(file)}
    assert names["eager"] == names["compiled"]
    load_pipeline(tmp_path / "compiled", device="cpu")


def test_without_a_compiler_compile_says_so(tiny_flags, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"needs a C\+\+ compiler on a CPU, and there is no no-such"):
        train(parse_config(tiny_flags(tmp_path, "--compile")))


def test_a_failing_compilation_ends_in_one_line(tiny_flags, tmp_path, monkeypatch, traced):
    def backend(graph, inputs):
        raise RuntimeError("no room\nfor this graph")

    monkeypatch.setattr(compiled, "BACKEND", backend)
    with pytest.raises(TrainingError, match=r"train without --compile .*no room") as caught:
        train(parse_config(tiny_flags(tmp_path, "--compile")))
    assert "\n" not in str(caught.value)


# --- The log ---


def test_the_log_has_speed_and_memory(tiny_flags, tmp_path):
    started = time.perf_counter()
    flags = ("--max_train_steps", "6", "--logging_steps", "2", "--gradient_accumulation_steps", "2")
    train(parse_config(tiny_flags(tmp_path, *flags)))
    seconds = time.perf_counter() - started
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    images = 2 * 2 * 2  # a line: steps, micro-steps, pairs
    assert 0 < sum(images / line["images_per_second"] for line in lines) < seconds
    memory = [line["memory_mb"] for line in lines]
    assert memory == sorted(memory)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    assert memory[-1] <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6 * (1 + 1e-5)
    weights = sum(p.nbytes for p in load_pipeline(tmp_path, device="cpu").unet.parameters())
    assert memory[0] > weights / 1e6


def test_the_log_is_of_all_processes(sd_flags, tmp_path):
    """And data parallelism takes identities that were encoded outside of what it wraps."""
    flags = sd_flags(tmp_path, "--freeze_reference", "--train_batch_size=1")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for result in run_ranks(2, [ENTRY, *flags], environment):
        assert result.returncode == 0, result.stderr[-4000:]
    lines = log(tmp_path)
    assert [line["reference_hits"] + line["reference_misses"] for line in lines] == [2, 2, 2]
    assert 2 <= sum(line["reference_misses"] for line in lines) <= 4  # each process has its own
