"""Distillation: its formulas against the scheduler and the pipeline, and real runs of seconds."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from tiny_models import tiny_patch_pipeline, tiny_stable_diffusion
from warm import run_ranks, run_warm

from magicedit.errors import ModelError, TrainingError
from magicedit.models import encode_identity, load_pipeline
from magicedit.pipelines.heads import HeadOutput
from magicedit.train.config import parse_config
from magicedit.train.distill import (
    Teacher,
    clean_objective,
    ddim_step,
    implied_clean,
    plan_intervals,
    student_scheduler,
    taught_relation,
    to_clean,
)
from magicedit.train.loop import Run, train

ENTRY = str(Path(__file__).resolve().parents[2] / "train" / "train.py")
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- Formulas ---


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_a_step_is_that_of_the_scheduler(prediction_type):
    scheduler = student_scheduler(
        DDIMScheduler(**STABLE_DIFFUSION, prediction_type=prediction_type, set_alpha_to_one=False)
    )
    scheduler.set_timesteps(4)
    intervals = plan_intervals(scheduler, 2, 4)
    noisy, output = randn(1, 4, 8, 8), randn(1, 4, 8, 8, seed=1)
    for step, timestep in enumerate(scheduler.timesteps):
        interval, inner = divmod(step, 2)
        now, then = intervals.alphas[interval, inner : inner + 2].split(1)
        clean = to_clean(output, noisy, now, prediction_type)
        expected = scheduler.step(output, timestep, noisy)
        torch.testing.assert_close(clean, expected.pred_original_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            ddim_step(noisy, clean, now, then), expected.prev_sample, rtol=1e-5, atol=1e-5
        )


def test_the_implied_clean_sample_leads_where_two_steps_led():
    start, middle, end = torch.tensor([[0.05, 0.001], [0.3, 0.1], [0.8, 0.5]])  # two rows of three levels
    noisy, first, second = (randn(2, 3, 8, 8, seed=seed) for seed in range(3))
    arrived = ddim_step(ddim_step(noisy, first, start, middle), second, middle, end)
    implied = implied_clean(noisy, arrived, start, end)
    torch.testing.assert_close(ddim_step(noisy, implied, start, end), arrived, rtol=1e-5, atol=1e-5)
    assert (implied - second).abs().max() > 0.1  # it is not simply the last one
    torch.testing.assert_close(implied_clean(noisy, second, start, torch.ones(2)), second, rtol=0, atol=0)


@pytest.mark.parametrize("student_steps", [1, 2, 3, 4])
def test_intervals_start_where_a_call_of_the_student_does(student_steps):
    scheduler = student_scheduler(tiny_patch_pipeline().scheduler)
    intervals = plan_intervals(scheduler, student_steps, 4 * student_steps)
    scheduler.set_timesteps(student_steps)
    assert list(intervals.student_timesteps) == scheduler.timesteps.tolist()
    assert torch.equal(intervals.alphas[1:, 0], intervals.alphas[:-1, -1])
    assert intervals.alphas[-1, -1] == 1
    assert (intervals.alphas.diff(dim=1) > 0).all()
    assert intervals.index(scheduler.timesteps.flip(0)).tolist() == list(range(student_steps))[::-1]
    assert intervals.end_clean(torch.arange(student_steps)).tolist() == [False] * (student_steps - 1) + [True]


def test_the_clean_objective_is_the_larger_of_two_errors():
    """Of the picture and of the noise (Salimans & Ho 2022, section 4)."""
    alphas = torch.tensor([0.1, 0.9])
    noisy, clean, target = (randn(2, 4, 8, 8, seed=seed) for seed in range(3))
    signal, sigma = alphas.sqrt().view(-1, 1, 1, 1), (1 - alphas).sqrt().view(-1, 1, 1, 1)
    of_clean = (clean - target).pow(2).mean(dim=(1, 2, 3))
    noises = [(noisy - signal * x) / sigma for x in (clean, target)]
    of_noise = (noises[0] - noises[1]).pow(2).mean(dim=(1, 2, 3))
    assert of_clean[0] > of_noise[0]
    assert of_clean[1] < of_noise[1]
    expected = torch.maximum(of_clean, of_noise).mean()
    torch.testing.assert_close(clean_objective(clean, target, alphas), expected, rtol=1e-5, atol=0)


def test_movement_is_taught_where_it_is_seen_and_handed_on():
    mask_logits = torch.full((2, 1, 4, 8), -5.0)
    mask_logits[..., :2] = 5.0
    flow = torch.zeros(2, 2, 4, 8)
    flow[:, 0], flow[:, 1] = 0.5, 0.25
    relation = taught_relation(HeadOutput(randn(2, 3, 4, 8), mask_logits, flow), torch.tensor([False, True]))
    assert relation.flow[0].isnan().all()
    assert relation.mask[0].isnan().all()
    assert relation.flow[1, :, :2].isnan().all()
    assert (relation.flow[1, :, 2:] == torch.tensor([2.0, 0.5])).all()  # px, of 8 x 4
    assert torch.equal(relation.mask[1], torch.sigmoid(mask_logits[1, 0]))
    assert (relation.weight == 1).all()


# --- The teacher is the pipeline ---


@pytest.mark.parametrize("prediction", ["flow_mask_paint", "noise"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("encoder", ["linear-unet", "latent_map-clip"])
def test_a_lesson_over_all_steps_is_the_pipelines_own_edit(prediction, guidance, encoder):
    au_encoder, identity_encoder = encoder.split("-")
    pipeline = tiny_patch_pipeline(
        prediction=prediction, au_encoder=au_encoder, identity_encoder=identity_encoder
    )
    if prediction == "noise":
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, prediction_type="v_prediction"
        )
    faces, aus = 2, len(pipeline.action_units)
    noise, au_delta = randn(faces, 48, 8, 8), 3 * randn(faces, aus, seed=1)
    identity, condition = (randn(faces, 3, 32, 32, seed=seed).sigmoid() for seed in (2, 3))
    edited = pipeline(
        identity,
        condition,
        au_delta,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=noise,
        output_type="latent",
    )
    identity, condition = 2 * identity - 1, 2 * condition - 1
    latents = [pipeline.encode_images(x) for x in (identity, condition)]
    features, prompt_embeds = encode_identity(
        pipeline.reference_unet, pipeline.image_encoder, latents[0], pipeline.encode_prompt()
    )
    if pipeline.config.concat_identity:
        latents[1] = torch.cat([latents[1], latents[0]], dim=1)
    teacher = Teacher(pipeline, 1, 4, guidance, torch.device("cpu"))
    with torch.no_grad():  # what the student becomes is nothing to the teacher
        pipeline.unet.conv_out.weight.zero_()
    start = torch.zeros(faces, dtype=torch.long)
    lesson = teacher.teach(noise, start, identity, latents[1], prompt_embeds, au_delta, features)
    torch.testing.assert_close(lesson.clean, edited.images, rtol=0, atol=1e-5)
    if prediction == "flow_mask_paint":
        flow = taught_relation(lesson.head, torch.tensor([True] * faces)).flow
        seen = flow.isfinite()
        assert seen.float().mean() > 0.9
        torch.testing.assert_close(flow[seen], edited.change["flow"][seen], rtol=0, atol=1e-4)


def test_a_distilled_teacher_is_run_in_its_own_steps():
    pipeline = tiny_patch_pipeline()
    pipeline.register_to_config(distilled_steps=4)
    Teacher(pipeline, 2, 4, 1.0, torch.device("cpu"))
    with pytest.raises(ModelError, match="--distill_teacher_steps 4, not 8"):
        Teacher(pipeline, 2, 8, 1.0, torch.device("cpu"))


def test_a_teacher_needs_a_picture_in_its_noise():
    with pytest.raises(ModelError, match="predicts noise"):
        Teacher(tiny_patch_pipeline(prediction="noise"), 1, 4, 1.0, torch.device("cpu"))


# --- Runs ---


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tiny_patch_pipeline(default_guidance_scale=3.0).save_pretrained(folder)
    return folder


@pytest.fixture
def distill_flags(tiny_flags, teacher_folder):
    def flags(output_dir, *more):
        return tiny_flags(
            output_dir,
            *("--objective", "distill", "--pretrained_model_name_or_path", str(teacher_folder)),
            *("--distill_steps", "2", "--distill_teacher_steps", "4", "--checkpointing_steps", "0"),
            *more,
        )

    return flags


def log(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def learn(flags, steps):
    """A run whose student has seen the same two batches for `steps` steps, these, and its loss before and
    after on them: with ever new ones a random teacher's chaos takes long to learn."""
    run = Run(parse_config(flags))
    batches = [batch for batch, _ in zip(run._loader(), range(2), strict=False)]

    @torch.no_grad()
    def loss():
        return np.mean([float(next(run.method.losses(batch, run.networks))[1]) for batch in batches])

    before, endless = loss(), itertools.cycle(batches)
    for _ in range(steps):
        run._train_step(endless)
    return run, batches, before, loss()


def test_a_student_learns(distill_flags, tmp_path):
    more = ("--train_batch_size", "4", "--flow_weight", "1", "--au_dropout", "0")
    _, _, before, after = learn(distill_flags(tmp_path, *more), steps=40)
    assert after < 0.25 * before


def test_guidance_is_baked_in(distill_flags, tmp_path):
    """Without guidance of its own, the student of a guided teacher moves as that does, not as the unguided
    one; and the other way round."""
    flows = {}
    for name, guidance in (("guided", "3"), ("unguided", "1")):
        flags = distill_flags(
            tmp_path / name,
            *("--distill_steps", "1", "--distill_teacher_steps", "2", "--distill_guidance", guidance),
            *("--flow_weight", "1", "--train_batch_size", "4", "--au_dropout", "0", "--warped", "1"),
        )
        run, batches, _, _ = learn(flags, steps=40)
        faces = {key: torch.cat([batch[key] for batch in batches]) for key in ("source", "condition")}
        au_delta, noise = (torch.cat([batch[key] for batch in batches]) for key in ("au_delta", "noise"))

        def edit(pipeline, steps, scale, faces=faces, au_delta=au_delta, noise=noise):
            call = (*((faces[key] + 1) / 2 for key in faces), au_delta, steps, scale)
            return pipeline(*call, latents=noise).change["flow"]

        flows[f"{name} student"] = edit(run.method.pipeline, 1, 1.0)
        run.method.pipeline.unet = run.method.teacher.unet
        flows[f"{name} teacher"] = edit(run.method.pipeline, 2, float(guidance))
    apart = (flows["guided teacher"] - flows["unguided teacher"]).norm()
    for name in ("guided", "unguided"):
        assert (flows[f"{name} student"] - flows[f"{name} teacher"]).norm() < 0.3 * apart


def test_the_result_says_what_it_is(distill_flags, teacher_folder, tmp_path):
    more = ("--max_train_steps", "2", "--validation_steps", "2")
    train(parse_config(distill_flags(tmp_path, *more)))
    config = load_pipeline(tmp_path, device="cpu").config
    assert (config.default_steps, config.default_guidance_scale, config.distilled_steps) == (2, 1.0, 2)
    card = (tmp_path / "README.md").read_text()
    assert (
        f"in 2 steps without guidance it reproduces what its teacher, `{teacher_folder.name}`, does in 4"
        in card
    )
    assert "with guidance 3 " in card
    assert "--objective distill" in card
    assert [p.name for p in (tmp_path / "previews").iterdir()] == ["step-0000002.png"]
    assert json.loads((tmp_path / "train_config.json").read_text())["distill_guidance"] == 3.0

    again = ("--pretrained_model_name_or_path", str(tmp_path), "--max_train_steps", "1")
    with pytest.raises(ModelError, match="itself distilled, to 2 steps"):
        train(parse_config(distill_flags(tmp_path / "again", *again)))
    halved = ("--distill_steps", "1", "--distill_teacher_steps", "2")
    train(parse_config(distill_flags(tmp_path / "again", *again, *halved)))
    assert load_pipeline(tmp_path / "again", device="cpu").config.distilled_steps == 1


@pytest.mark.parametrize("encoder", ["linear-unet", "latent_map-clip"])
def test_nothing_but_the_denoiser_changes(distill_flags, tmp_path, encoder):
    au_encoder, identity_encoder = encoder.split("-")
    teacher = tiny_patch_pipeline(au_encoder=au_encoder, identity_encoder=identity_encoder)
    teacher.save_pretrained(tmp_path / "teacher")
    more = ("--pretrained_model_name_or_path", str(tmp_path / "teacher"), "--max_train_steps", "2")
    run = Run(parse_config(distill_flags(tmp_path / "student", *more)))
    run.train()
    before = load_file(tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(
        torch.equal(tensor, run.method.teacher.unet.state_dict()[name]) for name, tensor in before.items()
    )
    for part in ("unet", "reference_unet", "image_encoder", "au_map"):
        files = list((tmp_path / "teacher" / part).glob("*.safetensors"))
        for file in files:
            old, new = load_file(file), load_file(tmp_path / "student" / part / file.name)
            moved = {name for name, tensor in old.items() if not torch.equal(tensor, new[name])}
            # With one zero token for a text, some of the denoiser's layers have no effect
            assert len(moved) > 0.8 * len(old) if part == "unet" else not moved, part
    named = dict(run.method.networks.named_parameters())
    assert {name.split(".")[0] for name, p in named.items() if p.requires_grad} == {"unet"}


def test_an_interrupted_distillation_ends_bit_equal(distill_flags, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    more = ("--lr_scheduler", "constant", "--train_batch_size", "3")
    train(parse_config(distill_flags(straight, *more, "--max_train_steps", "4")))
    train(parse_config(distill_flags(resumed, *more, "--max_train_steps", "2")))
    again = ("--max_train_steps", "4", "--resume_from_checkpoint", "latest")
    train(parse_config(distill_flags(resumed, *more, *again)))
    file = Path("unet") / "diffusion_pytorch_model.safetensors"
    first, second = load_file(straight / file), load_file(resumed / file)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert {line["step"] for line in log(resumed)} == {1, 2, 3, 4}


def test_a_distillation_is_not_continued_as_another(distill_flags, tmp_path):
    train(parse_config(distill_flags(tmp_path, "--max_train_steps", "1")))
    again = ("--max_train_steps", "2", "--resume_from_checkpoint", "latest")
    for name, value in (
        *(("distill_steps", "1"), ("distill_teacher_steps", "8"), ("distill_guidance", "2")),
        ("objective", "pairs"),
    ):
        with pytest.raises(TrainingError, match=f"other settings: .*{name}"):
            train(parse_config(distill_flags(tmp_path, *again, f"--{name}", value)))
    for part in ("unet", "reference_unet"):
        other = tiny_patch_pipeline(default_guidance_scale=3.0)
        with torch.no_grad():
            getattr(other, part).conv_in.bias[-1] += 1e-6
        other.save_pretrained(tmp_path / part)
        flags = distill_flags(tmp_path, *again, "--pretrained_model_name_or_path", str(tmp_path / part))
        with pytest.raises(TrainingError, match="another teacher"):
            train(parse_config(flags))
    train(parse_config(distill_flags(tmp_path, *again, "--distill_guidance", "3")))  # as the default was


def test_two_processes_distill(distill_flags, tmp_path):
    flags = distill_flags(tmp_path, "--max_train_steps", "2", "--train_batch_size", "1")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for result in run_ranks(2, [ENTRY, *flags], environment):
        assert result.returncode == 0, result.stderr[-4000:]
    state = json.loads((tmp_path / "checkpoint-2" / "state.json").read_text())
    assert (state["world_size"], state["samples_seen"]) == (2, 4)


@pytest.mark.parametrize("more", [(), ("--lora_rank=2", "--merge")], ids=["full", "lora"])
def test_stable_diffusion_layout_is_distilled(pairs_folder, tmp_path, more):
    """A noise predictor with VAE and cached latents, whose scheduler starts elsewhere."""
    base = tiny_stable_diffusion(tmp_path / "sd")
    common = [
        *(f"--train_data_dir={pairs_folder}", "--resolution=64", "--train_batch_size=2"),
        *("--validation_steps=0", "--lr_warmup_steps=0", "--checkpointing_steps=0", "--logging_steps=1"),
    ]
    teacher = [f"--pretrained_model_name_or_path={base}", f"--output_dir={tmp_path / 'teacher'}"]
    train(parse_config([*common, *teacher, "--max_train_steps=1", "--learning_rate=1e-3"]))
    student = [
        *(f"--pretrained_model_name_or_path={tmp_path / 'teacher'}", f"--output_dir={tmp_path / 'student'}"),
        *("--objective=distill", "--distill_steps=2", "--distill_teacher_steps=4", "--max_train_steps=2"),
        *("--learning_rate=1e-3", *more),
    ]
    train(parse_config([*common, *student]))
    pipeline = load_pipeline(tmp_path / "student", device="cpu")
    assert pipeline.config.distilled_steps == 2
    assert type(pipeline.scheduler) is DDIMScheduler
    pipeline.scheduler.set_timesteps(2)
    assert pipeline.scheduler.timesteps.tolist() == [999, 499]
    before = load_file(tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors")
    after = pipeline.unet.state_dict()
    attention = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight"
    assert not torch.equal(before[attention], after[attention])
    assert torch.equal(
        before["mid_block.resnets.0.conv1.weight"], after["mid_block.resnets.0.conv1.weight"]
    ) == bool(more)

    untrained = [f"--pretrained_model_name_or_path={base}", f"--output_dir={tmp_path / 'none'}"]
    with pytest.raises(ModelError, match="trained editing pipeline"):
        train(parse_config([*common, *untrained, "--objective=distill"]))


def test_a_non_finite_lesson_changes_nothing(distill_flags, tmp_path):
    run = Run(parse_config(distill_flags(tmp_path, "--max_train_steps", "3")))
    with torch.no_grad():
        run.method.teacher.unet.conv_out.bias.fill_(torch.nan)
    before = [p.detach().clone() for p in run.parameters]
    assert run._train_step(iter(run._loader())) is None
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--objective", "copy"), "objective must be pairs or distill or flow-autoencoder"),
        (("--distill_steps", "5"), "distill_steps must be 1 to 4"),
        (("--distill_teacher_steps", "7"), "a multiple of --distill_steps 2"),
        (("--distill_teacher_steps", "0"), "distill_teacher_steps"),
        (("--distill_guidance", "0"), "distill_guidance must be above 0"),
        (("--distill_guidance", "nan"), "distill_guidance must be a finite number"),
        (("--pretrained_model_name_or_path", "none"), "needs a teacher"),
        (("--refine",), "refine must be off"),
        (("--objective", "pairs", "--distill_guidance", "2"), "add that"),
    ],
)
def test_settings_that_do_not_fit(distill_flags, tmp_path, more, message):
    with pytest.raises(TrainingError, match=message):
        parse_config(distill_flags(tmp_path, *more))


def test_more_teacher_steps_than_timesteps(distill_flags, tmp_path):
    with pytest.raises(ModelError, match="at most 1000"):
        Run(parse_config(distill_flags(tmp_path, "--distill_teacher_steps", "1002")))


def test_a_bad_setting_ends_with_one_line_and_2(distill_flags, tmp_path):
    result = run_warm(
        [ENTRY, *distill_flags(tmp_path, "--distill_steps", "3")], os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("train.py: error: --distill_teacher_steps")
    assert "Traceback" not in result.stderr
