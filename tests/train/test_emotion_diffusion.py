"""Emotion latent diffusion: its losses; both networks trained and resumed; inverted, edited with."""

import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from dataset_rows import changed_rows
from diffusers import AutoencoderKL, DDIMScheduler
from safetensors.torch import load_file
from tiny_models import edited_film, run_without_package, train_for

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS, NAMES, resolve_delta
from magicedit.cli import main
from magicedit.data import PairDataset, prepare_dataset
from magicedit.errors import ActionUnitError, DatasetError, MagicEditError, ModelError, TrainingError
from magicedit.models.emotion_diffusion import flow_between
from magicedit.models.face_model import FaceModel
from magicedit.models.folder import ModelFolder
from magicedit.pipelines.pipeline_emotion_diffusion import EmotionDiffusionPipeline, noise_grid
from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train
from magicedit.train.methods.emotion_diffusion import (
    ANY,
    CLASSES,
    EmotionPictures,
    emotion_vocabulary,
    reconstruction,
)
from magicedit.vocabulary import Vocabulary

FLAGS = ["--resolution=32", "--train_batch_size=2", "--learning_rate=3e-3", "--lr_warmup_steps=0"]
FLAGS += ["--validation_steps=0", "--validation_faces=1", "--logging_steps=1", "--augment"]
VAE = ["--objective=emotion-vae", "--settings=vae_channels=4,vae_levels=2"]
UNET = ["--objective=emotion-diffusion", "--block_out_channels=8,16", "--default_steps=4"]


@pytest.fixture(scope="module")
def data(closed_mouth, tmp_path_factory):
    """A face at rest, the same mirrored, and a smile, of three people."""
    astronaut = pytest.importorskip("skimage.data").astronaut()
    photographs = tmp_path_factory.mktemp("photographs")
    for name, picture in (("ann", closed_mouth), ("bob", closed_mouth[:, ::-1]), ("eve", astronaut)):
        (photographs / name).mkdir()
        PIL.Image.fromarray(np.ascontiguousarray(picture)).save(photographs / name / "one.png")
    output = tmp_path_factory.mktemp("datasets") / "three"
    prepare_dataset(photographs, output, size=64, progress=False)
    return output


@pytest.fixture(scope="module")
def vae(data, tmp_path_factory):
    """The folder of an autoencoder trained for a few steps."""
    output = tmp_path_factory.mktemp("vae")
    flags = [f"--train_data_dir={data}", f"--output_dir={output}", "--max_train_steps=4"]
    train(parse_config([*VAE, *FLAGS, *flags, "--validation_steps=4"]))
    return output


@pytest.fixture(scope="module")
def config(data, vae):
    """Makes configurations of the denoiser's runs."""

    def make(output: Path, *more: str, folder: Path = data):
        places = [f"--train_data_dir={folder}", f"--output_dir={output}"]
        places += [f"--pretrained_model_name_or_path={vae}"]
        return parse_config([*UNET, *FLAGS, *places, *more])

    return make


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    """A denoiser trained for a few steps, by which an emotion makes a difference."""
    output = tmp_path_factory.mktemp("run")
    train(config(output, "--max_train_steps=2", "--validation_steps=2"))
    pipeline = EmotionDiffusionPipeline.from_pretrained(output)
    torch.manual_seed(5)
    torch.nn.init.normal_(pipeline.unet.conv_out.weight, std=0.1)
    torch.nn.init.normal_(pipeline.unet.class_embedding.weight, std=4.0)
    responding = tmp_path_factory.mktemp("responding")
    pipeline.save_pretrained(responding)
    return responding


@pytest.fixture
def pipeline(folder):
    return EmotionDiffusionPipeline.from_pretrained(folder)


@pytest.fixture
def crop():
    x = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
    return (np.sin(x * 9) + 1) / 2


# --- Losses -------------------------------------------------------------------------------------------------


def test_the_autoencoders_loss_is_absolute_error_and_weighted_divergence(data, tmp_path):
    flags = [f"--train_data_dir={data}", f"--output_dir={tmp_path}", "--au_dropout=0"]
    run = Run(parse_config([*VAE[:1], f"{VAE[1]},kl_weight=0.5", *FLAGS, *flags]))
    samples = run.method.samples()
    batch = torch.utils.data.default_collate([samples[n] for n in range(2)])
    ((name, loss, parts),) = run.method.losses(batch, run.networks)
    vae = run.method.vae
    moments = vae.quant_conv(vae.encoder(batch["picture"]))
    mean, log_variance = moments.chunk(2, dim=1)
    again = vae.decode(mean + (log_variance / 2).exp() * batch["noise"]).sample
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    p = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    divergence = torch.distributions.kl_divergence(q, p).sum() / len(mean)
    error = sum((a - b).abs().sum() for a, b in zip(again, batch["picture"], strict=True)) / again.numel()
    torch.testing.assert_close(parts["reconstruction"], error)
    torch.testing.assert_close(parts["divergence"], divergence)
    torch.testing.assert_close(loss, error + 0.5 * divergence)
    nearer = torch.lerp(again, batch["picture"], 0.5)
    assert reconstruction(nearer, batch["picture"]) < error
    further = torch.distributions.kl_divergence(torch.distributions.Normal(2 * mean, q.scale), p).sum()
    assert further / len(mean) > divergence
    assert name == "vae"


class Answer(torch.nn.Module):
    """A denoiser that answers with a share of the right velocity, which it gets told."""

    def __init__(self, velocity: torch.Tensor, share: float):
        super().__init__()
        self.sample = velocity * share

    def forward(self, noisy, timesteps, class_labels):
        self.noisy, self.labels = noisy, class_labels
        return self


def test_the_denoisers_loss_is_the_squared_error_of_the_velocity(config, tmp_path):
    """Against the schedule's own formulas; near clean latents the weight of a squared error is at most 4."""
    method = Run(config(tmp_path)).method
    samples = method.samples()
    batch = torch.utils.data.default_collate([samples[n] for n in range(4)])
    batch["timestep"] = torch.tensor([900, 500, 20, 0])
    clean, noise, scheduler = method._latents(batch), batch["noise"], method.pipeline.scheduler
    variance = (1 - scheduler.alphas_cumprod[batch["timestep"]]).double()
    velocity = scheduler.get_velocity(clean, noise, batch["timestep"])
    losses = {}
    for share in (1.0, 0.5, 0.0):
        answer = Answer(velocity, share)
        ((name, loss, _),) = method.losses(batch, {"unet": answer})
        losses[share] = float(loss)
        torch.testing.assert_close(answer.noisy, scheduler.add_noise(clean, noise, batch["timestep"]))
        assert answer.labels.tolist() == batch["emotion"].tolist()
    weights = variance * (1 / variance).clamp(max=4)
    assert ((weights < 1) == torch.tensor([False, False, True, True])).all()
    expected = (velocity.double().pow(2).mean((1, 2, 3)) * weights).mean()
    assert losses[0.0] == pytest.approx(float(expected), rel=1e-4)
    assert losses[1.0] < 1e-8 < losses[0.5] < losses[0.0]
    assert name == "unet"


def test_exchanged_twins_are_noised_from_each_other(config, tmp_path):
    """Each shall become what its own class says; only twins of one photograph are exchanged."""
    method = Run(config(tmp_path, "--settings=counterfactual=0.5")).method
    samples = method.samples()
    batch = torch.utils.data.default_collate([samples[n] for n in range(80)])
    clean, seen = method._latents(batch), method._seen(method._latents(batch), batch)
    exchanged = 0
    for n in range(0, 80, 2):
        of_one = batch["place"][n, 0] == batch["place"][n + 1, 0] and ANY not in batch["emotion"][n : n + 2]
        swapped = bool(of_one) and float(batch["exchanged"][n]) < 0.5
        order = [n + 1, n] if swapped else [n, n + 1]
        assert torch.equal(seen[n : n + 2], clean[order])
        exchanged += swapped
    assert 8 <= exchanged <= 28
    answer = Answer(torch.zeros_like(clean), 1.0)
    list(method.losses(batch, {"unet": answer}))
    noisy = method.pipeline.scheduler.add_noise(seen, batch["noise"], batch["timestep"])
    torch.testing.assert_close(answer.noisy, noisy)
    estimates = {}
    for name, latents in (("own", clean), ("twin", seen)):  # of answers that know the right latents
        alphas = method.pipeline.scheduler.alphas_cumprod[batch["timestep"]].view(-1, 1, 1, 1)
        right = (alphas.sqrt() * noisy - latents) / (1 - alphas).sqrt()
        ((_, loss, _),) = method.losses(batch, {"unet": Answer(right, 1.0)})
        estimates[name] = float(loss)
    assert estimates["own"] < 1e-6 < estimates["twin"]
    method.settings = replace(method.settings, counterfactual=0.0)
    assert torch.equal(method._seen(clean, batch), clean)


def test_cached_latents_are_those_of_the_pictures(config, tmp_path):
    now, once = (Run(config(tmp_path / v, f"--cache_latents={v}")).method for v in ("false", "true"))
    for n in range(5):
        decoded, named = (torch.utils.data.default_collate([m.samples()[n]]) for m in (now, once))
        assert "picture" in decoded
        assert "picture" not in named
        torch.testing.assert_close(now._latents(decoded), once._latents(named), rtol=0, atol=1e-5)
    assert len(once._encoded) > 1


def test_training_lowers_the_loss(config, tmp_path):
    """Of the same batches, before and after."""
    run = Run(config(tmp_path, "--max_train_steps=40"))
    samples = run.method.samples()
    batch = torch.utils.data.default_collate([samples[n] for n in range(1000, 1024)])

    def loss():
        with torch.no_grad():
            ((_, value, _),) = run.method.losses(batch, run.networks)
        return float(value)

    before = loss()
    run.train()
    assert loss() < 0.9 * before


# --- Samples ------------------------------------------------------------------------------------------------


def test_neighbouring_samples_share_photograph_noise_and_timestep(config, tmp_path):
    samples = Run(config(tmp_path, "--au_dropout=0")).method.samples()
    shared = 0
    for n in range(0, 40, 2):
        first, second = samples[n], samples[n + 1]
        assert torch.equal(first["noise"], second["noise"])
        assert first["timestep"] == second["timestep"]
        assert first["emotion"] != second["emotion"]
        shared += first["place"][0] == second["place"][0]
    assert shared >= 15  # else one of them is a real smile
    assert {int(samples[n]["emotion"]) for n in range(40)} == set(range(len(CLASSES)))
    assert not torch.equal(samples[0]["noise"], samples[2]["noise"])


def test_photographs_at_rest_are_warped_and_smiles_are_happiness(config, tmp_path):
    pictures = Run(config(tmp_path)).method.pictures
    names = [Path(record.source).parent.name for record in pictures.pairs.records]
    rng = np.random.default_rng(0)
    drawn = {emotion: {pictures.draw(rng, rng, emotion) for _ in range(30)} for emotion in (0, 1, 3, ANY)}
    resting, smiling = (
        {n for n, name in enumerate(names) if (name == "eve") == own} for own in (False, True)
    )
    assert drawn[0] == {(n, 0) for n in resting}
    assert drawn[1] == {(n, 1) for n in resting} | {(n, 0) for n in smiling}
    assert drawn[3] == {(n, 3) for n in resting}
    assert drawn[ANY] == {(n, 0) for n in (*resting, *smiling)}
    plain, warped = pictures.picture(0, 0), pictures.picture(0, 3)
    assert (plain - warped).abs().max() > 0.3
    assert torch.equal(pictures.picture(0, 3, mirrored=True), warped.flip(-1))


def test_dropped_emotions_have_a_class_of_their_own(config, tmp_path):
    samples = Run(config(tmp_path, "--au_dropout=1")).method.samples()
    assert {int(samples[n]["emotion"]) for n in range(8)} == {ANY}


def test_labelled_emotions_are_used_as_they_are(data, config, tmp_path, monkeypatch):
    def change(rows):
        for row, name in zip(rows, ("neutral", "happiness", "fear"), strict=True):
            row["emotion"] = name

    labelled = changed_rows(data, tmp_path / "labelled", change)
    with pytest.raises(
        TrainingError, match="is labelled sadness, surprise, anger, disgust; prepare a dataset"
    ):
        Run(config(tmp_path, "--settings=emotions=labels", f"--train_data_dir={labelled}"))
    pairs = PairDataset(labelled, warped=1.0, resolution=32)
    monkeypatch.setattr("magicedit.train.methods.emotion_diffusion.CLASSES", ("neutral", "happiness", "fear"))
    pictures = EmotionPictures(pairs, "labels")
    rng = np.random.default_rng(0)
    assert [pictures.draw(rng, rng, emotion) for emotion in range(3)] == [(0, 0), (1, 0), (2, 0)]


# --- Resuming and results -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vae", "unet"])
def test_resume_equals_uninterrupted(kind, config, data, tmp_path):
    def make(output, *more):
        more = ["--max_train_steps=5", "--use_ema", "--lr_scheduler=cosine", *more]
        if kind == "unet":
            return config(output, *more)
        return parse_config([*VAE, *FLAGS, f"--train_data_dir={data}", f"--output_dir={output}", *more])

    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(make(straight))
    train_for(3, Run(make(resumed, "--checkpointing_steps=2")))  # the checkpoint is of the second step
    train(make(resumed, "--resume_from_checkpoint=latest"))
    for file in sorted((straight / "checkpoint-5").glob("*.safetensors")):
        first, second = load_file(file), load_file(resumed / "checkpoint-5" / file.name)
        assert first.keys() == second.keys()
        assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


def test_latents_of_the_autoencoder_have_unit_spread(vae, data, config, tmp_path):
    method = Run(config(tmp_path)).method
    latents = torch.cat([method._latents({"place": torch.tensor([[0, e, 0], [1, e, 1]])}) for e in range(7)])
    assert 0.7 < float(latents.std()) < 1.4
    assert abs(float(latents.mean())) < 0.3
    assert sorted(path.name for path in (vae / "previews").iterdir()) == ["step-0000004.png"]


def test_a_trained_folder_has_its_vocabulary_and_card(config, tmp_path, monkeypatch):
    pushed = {}
    monkeypatch.setattr(
        "magicedit.train.publish.push_folder",
        lambda folder, name, **options: pushed.update({"folder": folder, "name": name, **options}),
    )
    flags = ["--max_train_steps=1", "--push_to_hub", "--hub_model_id=ann/joy", "--data_license=CC0"]
    flags += ["--settings=noise_level=0.4", "--default_guidance_scale=2.5"]
    train(config(tmp_path, *flags, "--use_ema", "--validation_steps=1"))
    found = ModelFolder.find(tmp_path)
    assert found.action_units == (*EMOTIONS,)
    assert found.action_units["happiness"].kind == "emotion"
    assert found.action_units["happiness"].range == (-6.25, 6.25)
    settings = EmotionDiffusionPipeline.from_pretrained(tmp_path).config
    assert (settings.default_noise_level, settings.default_steps, settings.default_guidance_scale) == (
        0.4,
        4,
        2.5,
    )
    assert len(list((tmp_path / "previews").iterdir())) == 1
    assert pushed == {"folder": tmp_path, "name": "ann/joy", "private": False, "token": None}
    card = (tmp_path / "README.md").read_text()
    assert "3 photographs of 3 people. Licence: CC0" in card
    (command,) = (line for line in card.splitlines() if line.startswith("accelerate launch"))
    again = parse_config([*shlex.split(command)[3:], f"--output_dir={tmp_path}"])
    assert again.settings == {"noise_level": "0.4"}


def test_another_autoencoder_can_be_used(config, data, tmp_path):
    """Such as Stable Diffusion's, whose latents have 8 px; here a tiny one with its layout."""
    other = AutoencoderKL(block_out_channels=(4, 4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 4,
                          up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=2)  # fmt: skip
    other.save_pretrained(tmp_path / "sd" / "vae")
    train(
        config(tmp_path / "run", "--max_train_steps=1", f"--pretrained_model_name_or_path={tmp_path / 'sd'}")
    )
    assert EmotionDiffusionPipeline.from_pretrained(tmp_path / "run").unet.config.sample_size == 4


# --- Bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--settings=emotions=wishes"], "settings emotions must be muscles or labels"),
        (["--settings=noise_level=1.5"], "noise_level must be from 0 to 1"),
        (["--settings=counterfactual=-0.1"], "counterfactual must be from 0 to 1"),
        (["--snr_gamma=2"], "emotion-diffusion does not use --snr_gamma"),
        (["--settings=kl_weight=-1"], "kl_weight must be 0 or more"),
        (["--settings=vae_channels=0"], "vae_channels must be at least 1"),
        (["--settings=emotions=labels"], r"is labelled neutral, happiness, .*--format affectnet"),
        (["--resolution=34"], "resolution must be a multiple of 4"),
        (["--lora_rank=4"], "emotion-diffusion does not use --lora_rank"),
        (["--pretrained_model_name_or_path=none"], "needs an autoencoder"),
        (["--pretrained_model_name_or_path=/nowhere"], "/nowhere has no autoencoder in a folder vae"),
        (["--objective=emotion-vae"], "emotion-vae does not use --pretrained_model_name_or_path"),
        (
            ["--objective=emotion-vae", "--pretrained_model_name_or_path=none", "--resolution=33"],
            "multiple of 4",
        ),
    ],
)
def test_bad_settings_are_refused_before_the_first_step(config, tmp_path, flags, message):
    with pytest.raises(TrainingError, match=message) as raised:
        Run(config(tmp_path, *flags))
    assert "\n" not in str(raised.value)


def test_data_without_a_face_at_rest_are_refused(config, pairs_folder, tmp_path):
    with pytest.raises(TrainingError, match=r"no photograph of .* is at rest"):
        Run(config(tmp_path, folder=pairs_folder))
    with pytest.raises(DatasetError, match="is not a prepared dataset"):
        Run(config(tmp_path, folder=tmp_path))


# --- Inversion and denoising --------------------------------------------------------------------------------


def test_steps_are_those_of_the_scheduler(pipeline):
    """Denoising against diffusers' own DDIM, on timesteps that both have."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, set_alpha_to_one=False)
    scheduler.set_timesteps(10)
    timesteps = scheduler.timesteps.tolist()  # 900, 800, ... 0
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    weights = torch.eye(8)[[2, 5]]
    ours, theirs = pipeline.walk(latents, timesteps, weights), latents
    with torch.no_grad():
        for timestep in timesteps[:-1]:
            output = pipeline.unet(theirs, timestep, class_labels=torch.tensor([2, 5])).sample
            theirs = scheduler.step(output, timestep, theirs, eta=0).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_inversion_undoes_denoising_under_the_same_emotion_only(pipeline):
    """The more steps, the better; another emotion leads elsewhere."""
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    source, target = pipeline.class_weights(np.eye(6)[0] * 5, 1)
    errors = {}
    for steps in (5, 40):
        edited, again = pipeline.edit(latents, source, target, 0.6, steps, 1.0)
        errors[steps] = float((again - latents).pow(2).mean().sqrt())
    assert errors[40] < 0.5 * errors[5]
    assert errors[40] < 0.1
    assert float((edited - latents).pow(2).mean().sqrt()) > 2 * errors[40]


def test_guidance_moves_from_the_source_to_the_target(pipeline):
    """One step by hand, for two faces of different emotions."""
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    asked = np.zeros((2, 6), np.float32)
    asked[0, 0], asked[0, 3], asked[1, 1], asked[1, 4] = 5, 2, -5, 5
    source, target = pipeline.class_weights(asked, 2)
    assert source.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose(target[0], [-0.4, 1, 0, 0, 0.4, 0, 0, 0], atol=1e-6)
    grid, guidance = noise_grid(0.5, 1, 1000), 2.5
    edited, again = pipeline.edit(latents, source, target, 0.5, 1, guidance)

    def output(z, timestep, face, weights):
        with torch.no_grad():
            parts = [pipeline.unet(z, timestep, class_labels=torch.tensor([c])).sample for c in range(8)]
        return sum(float(weights[face, c]) * part for c, part in enumerate(parts))

    cumulative = pipeline.scheduler.alphas_cumprod.double()
    for face in range(2):
        z = latents[face : face + 1].double()
        for here, there, scale in ((grid[0], grid[1], 0.0), (grid[1], grid[0], guidance)):
            low = output(z.float(), here, face, source).double()
            high = output(z.float(), here, face, target).double()
            velocity = low + scale * (high - low)
            a, b = cumulative[here], cumulative[there]
            clean, noise = a.sqrt() * z - (1 - a).sqrt() * velocity, (1 - a).sqrt() * z + a.sqrt() * velocity
            z = b.sqrt() * clean + (1 - b).sqrt() * noise
        torch.testing.assert_close(edited[face : face + 1].double(), z, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(edited, again, atol=1e-2)


def test_a_request_of_zero_is_a_round_trip_at_any_guidance_and_noise_zero_changes_nothing(pipeline, crop):
    nothing = pipeline(crop, np.zeros(6), guidance_scale=7.0, output_type="np")
    np.testing.assert_array_equal(nothing.images, nothing.round_trips)
    happy = pipeline(crop, np.eye(6)[0] * 5, noise_level=0.7, output_type="np")
    assert np.abs(happy.images - happy.round_trips).max() > 0.01
    still = pipeline(crop, np.eye(6)[0] * 5, noise_level=0.0, output_type="np")
    with torch.no_grad():
        latents = pipeline.encode(pipeline.pictures(crop))
        decoded = pipeline.image_processor.postprocess(pipeline.decode(latents), output_type="np")
    np.testing.assert_allclose(still.round_trips, decoded, atol=0.02)
    unknown = pipeline(crop, np.eye(6)[0] * 5, noise_level=0.7, source_is_known=False, output_type="np")
    assert np.abs(unknown.round_trips - happy.round_trips).max() > 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_level": 1.01}, "noise_level must be a number from 0 to 1, got 1.01"),
        ({"noise_level": float("nan")}, "noise_level must be a number from 0 to 1"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"au_delta": np.zeros(5)}, r"au_delta must have shape \(1, 6\)"),
        ({"au_delta": np.full(6, np.nan)}, "au_delta must be finite"),
        ({"source": np.zeros((1, 16, 32, 3), np.float32)}, "source must be RGB of 32 x 32 px"),
    ],
)
def test_bad_calls_are_refused(pipeline, crop, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**({"source": crop, "au_delta": np.zeros(6)} | arguments))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_units": "happiness"}, "action_units names 1 emotions, so unet needs 3 classes"),
        ({"resolution": 64}, "latents of 64 px have 32 a side, unet takes 16"),
        ({"scheduler": DDIMScheduler()}, "prediction_type must be v_prediction, got epsilon"),
        ({"default_noise_level": 2}, "noise_level must be a number from 0 to 1"),
        ({"vae": AutoencoderKL(block_out_channels=(32, 32), latent_channels=3,
                               down_block_types=("DownEncoderBlock2D",) * 2,
                               up_block_types=("UpDecoderBlock2D",) * 2)},
         "unet takes 4 channels, vae has 3"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(pipeline, changes, message):
    parts = pipeline.components | {"resolution": 32, "action_units": ",".join(EMOTIONS)}
    with pytest.raises(ValueError, match=message):
        EmotionDiffusionPipeline(**(parts | changes))


# --- As a model of faces ------------------------------------------------------------------------------------


def test_it_is_edited_with(folder, closed_mouth):
    editor = ExpressionEditor.from_pretrained(folder)
    model = editor.changer.model
    assert isinstance(model, FaceModel)
    steps = []
    result = editor.edit(closed_mouth, add="happiness=5", measure=False, on_step=steps.append)
    assert steps == list(range(8))
    assert model.steps(None, None) == 8
    edited, (face,) = np.asarray(result.image), result.faces
    x0, y0, x1, y1 = (int(edge) for edge in face.box)
    assert (edited != closed_mouth)[y0:y1, x0:x1].any()
    assert (edited[:4] == closed_mouth[:4]).all()
    same = editor.edit(closed_mouth, emotion="happiness", measure=False)
    assert (np.asarray(same.image) == edited).all()
    for other in ({"noise_level": 0.9}, {"guidance": 1.0}, {"steps": 2}):
        changed = editor.edit(closed_mouth, add="happiness=5", measure=False, **other)
        assert (np.asarray(changed.image) != edited).any(), other
    zero = editor.edit(closed_mouth, add="happiness=5", measure=False, noise_level=0.0)
    assert np.abs(np.asarray(zero.image).astype(int) - closed_mouth).max() <= 3
    assert (np.asarray(editor.edit(closed_mouth, add="anger=0", measure=False).image) == closed_mouth).all()
    with pytest.raises(ActionUnitError, match="did you mean happiness"):
        editor.edit(closed_mouth, add="hapiness=5")
    with pytest.raises(ActionUnitError, match="AU12"):
        editor.edit(closed_mouth, add="AU12=3")
    with pytest.raises(MagicEditError, match=r"noise level must be a number from 0 to 1, got 1\.2"):
        editor.edit(closed_mouth, add="happiness=5", noise_level=1.2)


def test_changes_of_several_faces_are_those_of_each(folder, closed_mouth):
    editor = ExpressionEditor.from_pretrained(folder)
    model, (face,) = editor.changer.model, editor.measure(closed_mouth)
    cuts = [editor.changer.cut(pixels, face) for pixels in (closed_mouth, closed_mouth[:, ::-1].copy())]
    requests, settings = [np.eye(6, dtype=np.float32)[k] * 5 for k in (0, 3)], editor.sampling()
    faces = [cut.encoded for cut in cuts]
    together = model.change(faces, requests, settings)
    for encoded, request, change in zip(faces, requests, together, strict=True):
        (alone,) = model.change([encoded], [request], settings)
        assert np.abs(alone.flow - change.flow).mean() < 0.02
        assert np.abs(change.flow).max() > 0.05
    (nothing,) = model.change(faces[:1], [np.zeros(6, np.float32)], settings)
    assert np.abs(nothing.flow).max() == 0
    assert model.is_current(faces[0])
    with torch.no_grad():
        model.pipeline.vae.quant_conv.bias.add_(0.1)
    assert not model.is_current(faces[0])
    with torch.no_grad():
        model.pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        model.change(faces[:1], requests[:1], settings)


def test_the_fingerprint_is_of_weights_settings_and_vocabulary(folder, tmp_path):
    first = ExpressionEditor.from_pretrained(folder).changer.model.fingerprint()
    assert first == ExpressionEditor.from_pretrained(folder).changer.model.fingerprint()
    pipeline = EmotionDiffusionPipeline.from_pretrained(folder)
    settings = {name: pipeline.config[name] for name in ("resolution", "action_units", "controls")}
    other = EmotionDiffusionPipeline(**pipeline.components, **settings, default_noise_level=0.3)
    other.save_pretrained(tmp_path)
    assert first != ExpressionEditor.from_pretrained(tmp_path).changer.model.fingerprint()


def test_the_flow_between_pictures_is_how_far_one_moved():
    """A soft blob that moves by three pixels to the right was read three pixels to the left."""
    y, x = np.mgrid[:32, :32]

    def blob(centre):
        return np.repeat(np.exp(-((x - centre) ** 2 + (y - 16) ** 2) / 30)[None] * 1.8 - 0.9, 3, 0).astype(
            np.float32
        )

    flow = flow_between(blob(18), blob(15))
    assert flow.shape == (32, 32, 2)
    assert flow[16, 17] == pytest.approx([-3, 0], abs=0.6)
    assert np.abs(flow_between(blob(15), blob(15))).max() == 0


def test_emotions_ask_for_units_where_a_model_has_them():
    """A model of both keeps to the units, one of emotions alone gets its own control."""
    both = Vocabulary((*NAMES.controls, *emotion_vocabulary().controls))
    assert resolve_delta(None, emotion="anger:0.5", names=emotion_vocabulary()) == {"anger": 2.5}
    assert "AU4" in resolve_delta(None, emotion="anger", names=both)
    assert "anger" not in resolve_delta(None, emotion="anger", names=both)
    with pytest.raises(ActionUnitError, match="anger needs AU"):
        resolve_delta(None, emotion="anger", names=["AU12"])


def test_the_commands_know_it(folder, closed_mouth, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    PIL.Image.fromarray(closed_mouth).save(photo)
    model = ["--model", str(folder)]
    edit = ["edit", str(photo), "-o", str(tmp_path / "o.png"), *model, "--no-measure", "--overwrite"]
    assert main([*edit, "--au", "happiness=5", "--noise-level", "0.6"]) == 0
    assert main([*edit, "--emotion", "sadness:0.5"]) == 0
    assert main([*edit, "--au", "happiness=5", "--noise-level", "2"]) == 2
    assert "the noise level must be a number from 0 to 1, got 2" in capsys.readouterr().err
    sweep = ["sweep", str(photo), "--au", "surprise", "--from", "0", "--to", "5", "--pictures", "2"]
    assert main([*sweep, "-o", str(tmp_path / "sweep.png"), *model]) == 0
    table = tmp_path / "table.csv"
    table.write_text("photo,emotion,noise_level\nphoto.png,fear,0.4\n")
    batch = ["edit", str(tmp_path), "--manifest", str(table), "-o", str(tmp_path / "out"), *model]
    assert main([*batch, "--no-measure"]) == 0
    assert "noise_level" in (tmp_path / "out" / "edits.jsonl").read_text()
    edited_film(closed_mouth, tmp_path, "--emotion", "anger", "--steps", "1", *model, frames=2)


def test_a_trained_folder_works_without_the_package(folder, crop, tmp_path):
    """diffusers alone gives the same picture as our own loader."""
    script = """
    import sys
    import numpy as np
    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
    crop = np.load(sys.argv[2])
    np.save(sys.argv[3], pipeline(crop, np.eye(6)[2] * 5, noise_level=0.7, output_type="np").images)
    """
    np.save(tmp_path / "crop.npy", crop)
    run_without_package(script, folder, tmp_path / "crop.npy", tmp_path / "there.npy", work=tmp_path)
    here = EmotionDiffusionPipeline.from_pretrained(folder)
    images = here(crop, np.eye(6)[2] * 5, noise_level=0.7, output_type="np").images
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), images, atol=1e-5)
    assert np.abs(images - here(crop, np.zeros(6), output_type="np").images).max() > 0.01
