"""Attribute diffusion: its loss terms and samples; trained, resumed, sampled, edited with."""

import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from dataset_rows import changed_rows
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import load_file
from tiny_models import edited_film, run_without_package, train_for

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS, NAMES
from magicedit.cli import main
from magicedit.data.description import read_description
from magicedit.errors import DatasetError, ModelError, TrainingError
from magicedit.hub import license_of
from magicedit.models.face_model import FaceModel
from magicedit.models.folder import ModelFolder
from magicedit.pipelines.pipeline_attribute_diffusion import (
    AttributeDiffusionPipeline,
    AttributeEmbedding,
    combination_matrix,
)
from magicedit.request import Sampling
from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train
from magicedit.train.methods import attribute_diffusion as method_module
from magicedit.train.methods.attribute_diffusion import (
    MUSCLES,
    attribute_vocabulary,
    info_nce,
    noise_error,
    picture_error,
)

FLAGS = ["--objective=attribute-diffusion", "--resolution=32", "--block_out_channels=8,16"]
FLAGS += ["--layers_per_block=1", "--default_steps=2", "--train_batch_size=2", "--warped=1", "--augment"]
FLAGS += ["--learning_rate=3e-3", "--lr_warmup_steps=0", "--validation_steps=0", "--logging_steps=1"]
SETTINGS = {"feature_channels": 4, "predicts": "picture", "relative": True, "regions": True}


def config(data: Path, output: Path, *more: str, **settings):
    chosen = ",".join(f"{name}={value}" for name, value in (SETTINGS | settings).items())
    places = (f"--train_data_dir={data}", f"--output_dir={output}", f"--settings={chosen}")
    return parse_config([*FLAGS, *places, *more])


def make_pipeline(prediction: str = "epsilon", names: tuple[str, ...] = tuple(MUSCLES), **changes):
    """A tiny one that answers to attributes."""
    torch.manual_seed(5)
    vocabulary, combinations = attribute_vocabulary(names)
    unet = UNet2DModel(
        sample_size=32,
        in_channels=6,
        out_channels=3,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        class_embed_type="identity",
    )
    embedding = AttributeEmbedding(len(names), 32)
    torch.nn.init.normal_(unet.conv_out.weight, std=0.3)
    torch.nn.init.normal_(embedding.layers[2].weight, std=2.0)
    parts = {"unet": unet, "embedding": embedding, "scheduler": DDIMScheduler(prediction_type=prediction)}
    settings = {"resolution": 32, "combinations": combinations, "default_steps": 2, **vocabulary.to_index()}
    return AttributeDiffusionPipeline(**(parts | settings | changes))


@pytest.fixture(scope="module")
def pipeline():
    """Not to be changed."""
    return make_pipeline()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("attributes")
    make_pipeline("sample").save_pretrained(output)
    return output


@pytest.fixture
def crop():
    x = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
    return (np.sin(x * 9) + 1) / 2


@pytest.fixture
def labelled(pairs_folder, monkeypatch, tmp_path):
    """The dataset as if the first photograph of two showed Smiling, the second Bushy_Eyebrows."""

    def change(rows):
        for row, name in zip(rows, ("Smiling", "Bushy_Eyebrows"), strict=True):
            row["attributes"] = [name]

    def described(folder):
        return read_description(folder) | {"attributes": ["Smiling", "Bushy_Eyebrows", "Young"]}

    monkeypatch.setattr(method_module, "read_description", described)
    return changed_rows(pairs_folder, tmp_path / "labelled", change)


# --- Loss terms ---------------------------------------------------------------------------------------------


def pictures(count: int = 2):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(2, 3, 5, 4, generator=generator) * 2 - 1 for _ in range(count)]


def test_noise_error_is_the_weighted_mean_square():
    first, second = pictures()
    weight = torch.rand(2, 1, 5, 4, generator=torch.Generator().manual_seed(1))
    by_hand = [
        float(weight[n, 0, y, x] * (first - second)[n, c, y, x] ** 2) for n, c, y, x in np.ndindex(2, 3, 5, 4)
    ]
    assert float(noise_error(first, second, weight)) == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert noise_error(first.lerp(second, 0.5), second, weight) < noise_error(first, second, weight)


def test_picture_error_weighs_clean_timesteps_up_to_four():
    clean, target = pictures()
    alphas, weight = torch.tensor([0.5, 0.99]), torch.ones(2, 1, 5, 4)
    squares = (clean - target).numpy().astype(float) ** 2
    by_hand = (squares[0].mean() * 2 + squares[1].mean() * 4) / 2
    assert float(picture_error(clean, target, alphas, weight)) == pytest.approx(by_hand, rel=1e-5)
    nearer = picture_error(clean.lerp(target, 0.5), target, alphas, weight)
    assert nearer < picture_error(clean, target, alphas, weight)


def test_info_nce_compares_with_the_sources_of_other_people():
    generator = torch.Generator().manual_seed(0)
    edits, sources = (
        torch.nn.functional.normalize(torch.randn(4, 6, generator=generator), dim=1) for _ in range(2)
    )
    people = torch.tensor([0, 1, 1, 2])
    found = info_nce(edits, sources, people, 0.2)
    for i in range(4):
        others = [j for j in range(4) if j == i or people[j] != people[i]]
        terms = {j: np.exp(float(edits[i] @ sources[j]) / 0.2) for j in others}
        assert float(found[i]) == pytest.approx(-np.log(terms[i] / sum(terms.values())), rel=1e-4)
    assert info_nce(sources, sources, people, 0.2).mean() < found.mean()
    exchanged = info_nce(sources[[3, 0, 0, 1]], sources, people, 0.2)
    assert exchanged.mean() > info_nce(sources, sources, people, 0.2).mean()


@pytest.mark.parametrize("predicts", ["noise", "picture"])
def test_the_loss_is_error_and_weighted_contrast(predicts, pairs_folder, tmp_path):
    """Of an answer that is given: what the network sees, and what becomes of its answer."""
    settings = {"predicts": predicts, "contrastive_weight": 0.3, "temperature": 0.5}
    method = Run(config(pairs_folder, tmp_path, **settings)).method
    samples = method.samples()
    batch = torch.utils.data.default_collate([samples[n] for n in range(3)])
    batch["person"] = torch.arange(3)
    features = [torch.nn.functional.normalize(torch.rand(3, 5) - 0.3, dim=1) for _ in range(2)]
    answer = torch.rand_like(batch["source"])
    seen = []

    def network(*inputs):
        seen.extend(inputs)
        return answer, *features

    ((name, loss, parts),) = method.losses(batch, {"denoiser": network})
    noisy, source, timesteps, attributes, alphas = seen
    scheduler = method.pipeline.scheduler
    torch.testing.assert_close(noisy, scheduler.add_noise(batch["target"], batch["noise"], timesteps))
    assert torch.equal(source, batch["source"])
    assert torch.equal(attributes, batch["attributes"])
    torch.testing.assert_close(alphas, scheduler.alphas_cumprod[batch["timestep"]])
    if predicts == "noise":
        error = noise_error(answer, batch["noise"], batch["weight"])
    else:
        error = picture_error(answer, batch["target"], alphas, batch["weight"])
    contrast = (alphas * info_nce(*features, batch["person"], 0.5)).mean()
    torch.testing.assert_close(parts["error"], error)
    torch.testing.assert_close(loss, error + 0.3 * contrast)
    assert name == "denoiser"


@pytest.mark.parametrize("predicts", ["noise", "picture"])
def test_the_network_compares_features_of_the_clean_picture(predicts, pairs_folder, tmp_path):
    method = Run(config(pairs_folder, tmp_path, predicts=predicts)).method
    network, pipeline = method.network, method.pipeline
    torch.nn.init.normal_(network.unet.conv_out.weight, std=0.1)
    source, noisy = (torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(2))
    asked = torch.rand(1, len(MUSCLES))
    alphas = pipeline.scheduler.alphas_cumprod[torch.tensor([400])]
    with torch.no_grad():
        found, edits, sources = network(noisy, source, torch.tensor([400]), asked, alphas)
        clean = pipeline.estimate(noisy, source, 400, asked)
        torch.testing.assert_close(edits, network.features(clean), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sources, network.features(source))
    if predicts == "picture":
        torch.testing.assert_close(found.clamp(-1, 1), clean)
    else:
        again = alphas.sqrt() * clean + (1 - alphas).sqrt() * found
        inside = clean.abs() < 1
        torch.testing.assert_close(again[inside], noisy[inside], rtol=1e-4, atol=1e-4)


# --- Samples ------------------------------------------------------------------------------------------------


def test_warps_show_what_their_vectors_say(pairs_folder, tmp_path, monkeypatch):
    """The command of a warp is that of its attributes; without some, source and target are one."""
    samples = Run(config(pairs_folder, tmp_path, "--au_dropout=0.3")).method.samples()
    draws = []
    sample = samples.pairs.sample
    monkeypatch.setattr(samples.pairs, "sample", lambda draw: draws.append(draw) or sample(draw))
    kinds = set()
    for n in range(30):
        vector = samples[n]["attributes"].numpy()
        command = sum((NAMES.vector(MUSCLES[a]) * v for a, v in zip(MUSCLES, vector, strict=True)), 0)
        draw = draws[-1]
        np.testing.assert_allclose(draw.target_command - draw.source_command, command, atol=1e-5)
        assert draw.dropped == (not vector.any())
        reverse = bool(draw.source_command.any())
        assert draw.dropped or (vector.min() < 0) == reverse
        kinds.add("dropped" if draw.dropped else "reverse" if reverse else "forward")
    assert kinds == {"dropped", "reverse", "forward"}
    first, again = samples[4], samples[4]
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_real_pairs_tell_their_labels(labelled, tmp_path):
    flags = ("--warped=0", "--au_dropout=0")
    relative = Run(config(labelled, tmp_path, *flags, regions=False)).method.samples()
    assert relative.attributes == ("Smiling", "Bushy_Eyebrows", "Young")
    found = {tuple(relative[n]["attributes"].tolist()) for n in range(12)}
    assert found == {(1, -1, 0), (-1, 1, 0)}
    assert torch.equal(relative[0]["weight"], torch.ones(1, 32, 32))
    absolute = Run(config(labelled, tmp_path, *flags, relative=False)).method.samples()
    told = np.array([absolute[n]["attributes"].tolist() for n in range(40)])
    assert set(told[:, 2]) == {-1, 0}  # nobody is young
    assert set(told[:, 0]) == {-1, 0, 1}
    assert 0.3 < (told == 0).mean() < 0.7
    dropped = Run(config(labelled, tmp_path, "--warped=0", "--au_dropout=1")).method.samples()[3]
    assert not dropped["attributes"].any()
    assert torch.equal(dropped["source"], dropped["target"])


def test_labels_and_warps_train_together(labelled, tmp_path):
    train(config(labelled, tmp_path, "--max_train_steps=2", "--warped=0.5", relative=False))
    assert ModelFolder.find(tmp_path).action_units == ("Smiling", "Bushy_Eyebrows", "Young", "happiness")


# --- Training -----------------------------------------------------------------------------------------------


def test_training_lowers_the_loss(pairs_folder, tmp_path):
    run = Run(config(pairs_folder, tmp_path, "--max_train_steps=30", predicts="noise"))
    samples = run.method.samples()
    batch = torch.utils.data.default_collate([samples[n] for n in range(1000, 1016)])

    def loss():
        with torch.no_grad():
            ((_, value, _),) = run.method.losses(batch, run.networks)
        return float(value)

    before = loss()
    run.train()
    assert loss() < 0.8 * before


def test_resume_equals_uninterrupted(pairs_folder, tmp_path):
    def make(output, *more):
        return config(
            pairs_folder, output, "--max_train_steps=4", "--use_ema", "--lr_scheduler=cosine", *more
        )

    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(make(straight))
    train_for(3, Run(make(resumed, "--checkpointing_steps=2")))  # the checkpoint is of the second step
    train(make(resumed, "--resume_from_checkpoint=latest"))
    for file in sorted((straight / "checkpoint-4").glob("*.safetensors")):
        first, second = load_file(file), load_file(resumed / "checkpoint-4" / file.name)
        assert first.keys() == second.keys()
        assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


def test_a_trained_folder_has_its_vocabulary_and_card(pairs_folder, tmp_path):
    flags = ["--max_train_steps=1", "--validation_steps=1", "--validation_faces=1", "--data_license=CC0"]
    flags.append("--license=cc-by-4.0")
    train(config(pairs_folder, tmp_path, *flags, "--default_guidance_scale=1.2", noise_level=0.9))
    found = ModelFolder.find(tmp_path)
    assert found.action_units == (*MUSCLES, *EMOTIONS)
    assert found.action_units["Smiling"].kind == "attribute"
    assert found.action_units["Smiling"].range == (-6.25, 6.25)
    settings = AttributeDiffusionPipeline.from_pretrained(tmp_path).config
    assert (settings.default_noise_level, settings.default_steps, settings.default_guidance_scale) == (
        *(0.9, 2),
        1.2,
    )
    assert len(list((tmp_path / "previews").iterdir())) == 1
    card = (tmp_path / "README.md").read_text()
    assert "Licence: CC0" in card
    assert license_of(card) == {"license": "cc-by-4.0"}
    assert "The weights are under cc-by-4.0." in card
    (command,) = (line for line in card.splitlines() if line.startswith("accelerate launch"))
    again = parse_config([*shlex.split(command)[3:], f"--output_dir={tmp_path}"])
    assert again.settings["predicts"] == "picture"


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        ([], {"predicts": "wishes"}, "settings predicts must be noise or picture"),
        ([], {"contrastive_weight": -1}, "contrastive_weight must be 0 or more"),
        ([], {"temperature": 0}, "temperature must be above 0"),
        ([], {"feature_channels": 0}, "feature_channels must be at least 1"),
        ([], {"noise_level": 1.5}, "noise_level must be from 0 to 1"),
        ([], {"attributes": "Young"}, "--warped 1 needs attributes that muscles can show"),
        ([], {"attributes": "Smiling Young"}, "no warp shows Young, only Smiling"),
        (["--warped=0.5"], {}, "is not labelled with attributes; .*--format celeba"),
        (["--resolution=33"], {}, "resolution must be a multiple of 2"),
        (["--lora_rank=4"], {}, "attribute-diffusion does not use --lora_rank"),
    ],
)
def test_bad_settings_are_refused_before_the_first_step(pairs_folder, tmp_path, flags, settings, message):
    with pytest.raises(TrainingError, match=message) as raised:
        Run(config(pairs_folder, tmp_path, *flags, **settings))
    assert "\n" not in str(raised.value)


def test_attributes_and_data_must_exist(labelled, tmp_path):
    with pytest.raises(TrainingError, match="is not labelled with Bald; it has Smiling"):
        Run(config(labelled, tmp_path, "--warped=0", attributes="Bald"))
    with pytest.raises(DatasetError, match="is not a prepared dataset"):
        Run(config(tmp_path, tmp_path))


# --- Sampling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_steps_are_those_of_the_scheduler(prediction):
    """Against diffusers' own DDIM; a predicted picture is the UNet's output added to the source."""
    pipeline = make_pipeline(prediction)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=True)
    scheduler.set_timesteps(3)
    source, noise = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    asked = torch.zeros(2, len(MUSCLES))
    asked[0, 0], asked[1, 3] = 1.0, -0.5
    ours = pipeline.sample(source, asked, noise, 1.0, 3, 1.0)
    theirs = scheduler.add_noise(source, noise, torch.tensor([999, 999]))
    with torch.no_grad():
        for timestep in pipeline.timesteps(1.0, 3):
            inputs = torch.cat([theirs, source], dim=1)
            output = pipeline.unet(inputs, timestep, class_labels=pipeline.embedding(asked)).sample
            output = output + source if prediction == "sample" else output
            step = scheduler.step(output, timestep, theirs, eta=0, use_clipped_model_output=True)
            theirs = step.prev_sample
    torch.testing.assert_close(ours, step.pred_original_sample, rtol=1e-3, atol=1e-3)
    assert (ours - source).abs().mean() > 0.05


def test_timesteps_fall_from_the_noise_level(pipeline):
    assert pipeline.timesteps(1.0, 3) == [999, 666, 333]
    assert pipeline.timesteps(0.5, 2) == [500, 250]
    assert pipeline.timesteps(0.0, 5) == []


def test_guidance_moves_away_from_no_request(pipeline):
    source, noise = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) - 0.5
    asked = torch.eye(len(MUSCLES))[:1]
    one = pipeline.sample(source, asked, noise, 0.3, 1, 1.0)
    none = pipeline.sample(source, 0 * asked, noise, 0.3, 1, 1.0)
    guided = pipeline.sample(source, asked, noise, 0.3, 1, 1.7)
    torch.testing.assert_close(guided, (none + 1.7 * (one - none)).clamp(-1, 1), rtol=1e-4, atol=1e-4)
    assert (one - none).abs().max() > 0.05


def test_requests_are_shares_and_combinations_of_attributes(pipeline):
    names = pipeline.config.action_units.split(",")
    delta = np.zeros(len(names), np.float32)
    delta[names.index("Smiling")] = 2.5
    delta[names.index("sadness")] = -5.0
    (found,) = pipeline.attributes(delta, 1).tolist()
    told = dict(zip(MUSCLES, found, strict=True))
    assert told.pop("Smiling") == 0.5
    assert told.pop("Raised_Inner_Eyebrows") == told.pop("Lowered_Mouth_Corners") == -1.0
    assert not any(told.values())
    with pytest.raises(ValueError, match="combinations name joy, b; the controls are a, c"):
        combination_matrix(["a", "c"], {"joy": {"b": 1.0}})


def test_noise_zero_and_no_request(pipeline, crop):
    """At noise 0 the source stays; a request of nothing is what is kept; the generator decides the noise."""
    count = len(pipeline.config.action_units.split(","))
    still = pipeline(crop, np.eye(count)[0] * 5, noise_level=0.0, output_type="np").images
    np.testing.assert_allclose(still, crop, atol=1e-5)
    runs = [
        pipeline(
            crop, np.eye(count)[k] * 5 * k, generator=torch.Generator().manual_seed(seed), output_type="np"
        )
        for k, seed in ((0, 1), (1, 1), (1, 1), (1, 2))
    ]
    np.testing.assert_array_equal(runs[0].images, runs[0].kept)
    assert np.abs(runs[1].images - runs[1].kept).max() > 0.01
    np.testing.assert_array_equal(runs[1].images, runs[2].images)
    assert np.abs(runs[1].images - runs[3].images).max() > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise_level": 1.01}, "noise_level must be a number from 0 to 1, got 1.01"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"au_delta": np.zeros(5)}, r"au_delta must have shape \(1, 17\)"),
        ({"au_delta": np.full(17, np.nan)}, "au_delta must be finite"),
        ({"source": np.zeros((1, 16, 32, 3), np.float32)}, "source must be RGB of 32 x 32 px"),
    ],
)
def test_bad_calls_are_refused(pipeline, crop, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**({"source": crop, "au_delta": np.zeros(17)} | arguments))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": AttributeEmbedding(3, 32)}, "names 11 attributes, embedding takes 3"),
        ({"resolution": 64}, "pictures of 64 px and 6 channels, got 32 px and 6"),
        ({"scheduler": DDIMScheduler(prediction_type="v_prediction")}, "epsilon or sample, got v_prediction"),
        ({"default_noise_level": 2}, "noise_level must be a number from 0 to 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline(**changes)


# --- As a model of faces ------------------------------------------------------------------------------------


def test_it_is_edited_with(folder):
    model = ExpressionEditor.from_pretrained(folder).changer.model
    assert isinstance(model, FaceModel)
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    faces = [model.encode(crop, None) for crop in crops]
    requests = [model.vocabulary.vector({name: 5.0}) for name in ("Smiling", "anger")]
    together = model.change(faces, requests, Sampling(seed=3))
    for face, request, found in zip(faces, requests, together, strict=True):
        (alone,) = model.change([face], [request], Sampling(seed=3))
        assert np.abs(alone.astype(int) - found).max() <= 1
        assert (alone.shape, alone.dtype) == ((32, 32, 3), np.uint8)
    (other,) = model.change(faces[:1], requests[:1], Sampling(seed=4))
    assert np.abs(other.astype(int) - together[0]).max() > 2
    (still,) = model.change(faces[:1], requests[:1], Sampling(noise_level=0.0))
    assert np.abs(still.astype(int) - crops[0]).max() <= 1
    assert (model.steps(None, None), model.steps(7, None)) == (2, 7)
    assert model.is_current(faces[0])
    with torch.no_grad():
        model.pipeline.unet.conv_out.bias.fill_(float("nan"))
    assert not model.is_current(faces[0])
    with pytest.raises(ModelError, match="not finite"):
        model.change(faces[:1], requests[:1], Sampling())


def test_the_fingerprint_is_of_weights_settings_and_vocabulary(folder, tmp_path):
    first = ExpressionEditor.from_pretrained(folder).changer.model.fingerprint()
    assert first == ExpressionEditor.from_pretrained(folder).changer.model.fingerprint()
    make_pipeline("sample", default_guidance_scale=3.0).save_pretrained(tmp_path)
    assert first != ExpressionEditor.from_pretrained(tmp_path).changer.model.fingerprint()


def test_the_commands_know_it(folder, closed_mouth, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    PIL.Image.fromarray(closed_mouth).save(photo)
    model = ["--model", str(folder)]
    edit = ["edit", str(photo), "-o", str(tmp_path / "o.png"), *model, "--no-measure", "--overwrite"]
    assert main([*edit, "--au", "Smiling=4", "--noise-level", "0.8", "--steps", "3"]) == 0
    assert main([*edit, "--emotion", "happiness"]) == 0
    assert main([*edit, "--au", "AU12=3"]) == 2
    assert "AU12" in capsys.readouterr().err
    sweep = ["sweep", str(photo), "--au", "surprise", "--from", "0", "--to", "5", "--pictures", "2"]
    assert main([*sweep, "-o", str(tmp_path / "sweep.png"), *model]) == 0
    edited_film(closed_mouth, tmp_path, "--emotion", "anger", "--steps", "1", *model, frames=2)


def test_a_trained_folder_works_without_the_package(folder, crop, tmp_path):
    """diffusers alone gives the same picture as our own loader."""
    script = """
    import sys
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
    noise = torch.Generator().manual_seed(0)
    output = pipeline(np.load(sys.argv[2]), np.eye(17)[0] * 5, generator=noise, output_type="np")
    np.save(sys.argv[3], output.images)
    """
    np.save(tmp_path / "crop.npy", crop)
    run_without_package(script, folder, tmp_path / "crop.npy", tmp_path / "there.npy", work=tmp_path)
    here = AttributeDiffusionPipeline.from_pretrained(folder)
    noise = torch.Generator().manual_seed(0)
    output = here(crop, np.eye(17)[0] * 5, generator=noise, output_type="np")
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), output.images, atol=1e-5)
    assert np.abs(output.images - output.kept).max() > 0.01
