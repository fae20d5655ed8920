"""GANimation with AdaIN: its loss terms; trained, resumed, transferred, edited with, loaded elsewhere."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_models import run_without_package, train_for
from warm import run_ranks

from magicedit import ExpressionEditor
from magicedit.action_units import NAMES
from magicedit.cli import main
from magicedit.data.description import DESCRIPTION_FILE
from magicedit.errors import DatasetError, ModelError, TrainingError
from magicedit.models.face_model import FaceModel
from magicedit.models.folder import ModelFolder
from magicedit.pipelines.pipeline_ganimation import (
    GANimationCritic,
    GANimationGenerator,
    GANimationPipeline,
    LabelEmbedding,
    compose,
)
from magicedit.train import train as train_script
from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train
from magicedit.train.methods.ganimation import (
    GANimation,
    attention_cost,
    criticism,
    cycle,
    expression,
    gradient_norms,
    gradient_penalty,
    known_target,
)

SETTINGS = {"channels": 4, "blocks": 1, "style_size": 8, "critic_channels": 4, "critic_steps": 2}
OURS = {"relative": True, "residual": True, "known_target_weight": 10}
FLAGS = ["--objective=ganimation", "--resolution=32", "--train_batch_size=2", "--warped=1", "--augment"]
FLAGS += ["--learning_rate=3e-3", "--lr_warmup_steps=0", "--validation_steps=0", "--logging_steps=1"]
FLAGS += ["--adam_beta1=0.5", "--max_grad_norm=1e9"]


def config(data: Path, output: Path, *more: str, **settings):
    chosen = ",".join(f"{name}={value}" for name, value in (SETTINGS | settings).items())
    places = (f"--train_data_dir={data}", f"--output_dir={output}", f"--settings={chosen}")
    return parse_config([*FLAGS, *places, *more])


@pytest.fixture(scope="module")
def folder(pairs_folder, tmp_path_factory):
    """Trained for a few steps."""
    output = tmp_path_factory.mktemp("ganimation")
    flags = ("--max_train_steps=3", "--validation_steps=3", "--validation_faces=1")
    train(config(pairs_folder, output, *flags, **OURS))
    return output


@pytest.fixture(scope="module")
def responding(folder, tmp_path_factory):
    """The tiny model with a last filter that answers to labels."""
    pipeline = GANimationPipeline.from_pretrained(folder)
    torch.manual_seed(5)
    with torch.no_grad():
        pipeline.generator.out.weight.normal_()
    output = tmp_path_factory.mktemp("responding")
    pipeline.save_pretrained(output)
    return str(output)


# --- Networks -----------------------------------------------------------------------------------------------


def test_the_picture_is_colour_where_attention_is_and_the_source_elsewhere():
    source, colour = torch.rand(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    attention = torch.zeros(1, 1, 4, 4)
    attention[..., :2], attention[..., 2] = 1, 0.25
    edited = compose(source, attention, colour)
    assert torch.equal(edited[..., :2], colour[..., :2])
    assert torch.equal(edited[..., 3], source[..., 3])
    torch.testing.assert_close(edited[..., 2], 0.25 * colour[..., 2] + 0.75 * source[..., 2])


def test_labels_adapt_the_instance_norms():
    """Against the formula of AdaIN, channel by channel."""
    torch.manual_seed(0)
    norm = GANimationGenerator(2, 1, 5).residual_blocks[0].norm1
    features, style = torch.randn(2, 8, 6, 6) * 3 + 1, torch.randn(2, 5)
    found = norm(features, style)
    scale, shift = (style @ norm.linear.weight.T + norm.linear.bias).chunk(2, dim=1)
    for picture, channel in np.ndindex(2, 8):
        values = features[picture, channel]
        plain = (values - values.mean()) / values.var(correction=0).sqrt()
        expected = (1 + scale[picture, channel]) * plain + shift[picture, channel]
        torch.testing.assert_close(found[picture, channel], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_the_generator_starts_at_the_source_if_residual(residual):
    torch.manual_seed(0)
    generator, source = GANimationGenerator(4, 1, 8, residual), torch.rand(1, 3, 16, 16) * 2 - 1
    attention, colour = generator(source, torch.randn(1, 8))
    assert attention.shape == (1, 1, 16, 16)
    assert 0 < attention.min()
    assert attention.max() < 1
    assert torch.equal(colour, source) == residual
    torch.nn.init.normal_(generator.out.weight, std=0.1)
    first, second = (generator(source, torch.full((1, 8), value))[1] for value in (-1.0, 1.0))
    assert float((first - second).abs().max()) > 1e-3
    if not residual:
        assert float(first.abs().max()) <= 1


def test_any_label_size_fits():
    for labels in (1, 17):
        embedding, generator = LabelEmbedding(labels, 8), GANimationGenerator(2, 1, 8)
        label = torch.eye(labels)[:1] / 5
        attention, _ = generator(torch.rand(1, 3, 8, 8), embedding(label))
        assert attention.shape == (1, 1, 8, 8)
        assert float((embedding(label) - embedding(label * 0)).norm()) > 0.05
        realness, read = GANimationCritic(8, 2, labels)(torch.rand(3, 3, 8, 8))
        assert (realness.shape, read.shape) == ((3, 2, 2), (3, labels))


# --- Loss terms ---------------------------------------------------------------------------------------------


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(2, 3, 5, 4, generator=generator) * 2 - 1 for _ in range(2)]


def test_criticism_is_how_much_more_real_the_edits_look():
    real, fake = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    by_hand = [
        sum(f) / 4 - sum(r) / 4
        for r, f in zip(real.flatten(1).tolist(), fake.flatten(1).tolist(), strict=True)
    ]
    torch.testing.assert_close(criticism(real, fake), torch.tensor(by_hand))
    assert (criticism(real, fake + 1) > criticism(real, fake)).all()  # taken in more: worse
    assert not criticism(real, real).any()


def test_gradient_norms_are_those_of_finite_differences():
    torch.manual_seed(1)
    critic, pictures = GANimationCritic(8, 2, 3).double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    found = gradient_norms(critic, pictures)
    with torch.no_grad():
        for number in range(2):
            squares = 0.0
            for place in np.ndindex(3, 8, 8):
                ends = []
                for step in (1e-6, -1e-6):
                    moved = pictures[number : number + 1].clone()
                    moved[(0, *place)] += step
                    ends.append(float(critic(moved)[0].mean()))
                squares += ((ends[0] - ends[1]) / 2e-6) ** 2
            assert float(found[number]) == pytest.approx(squares**0.5, rel=1e-4)
    found.sum().backward()  # once more, by the weights
    assert critic.trunk[0].weight.grad.any()


def test_gradient_penalty_pulls_norms_to_one():
    norms = torch.tensor([0.0, 0.5, 1.0, 3.0])
    assert gradient_penalty(norms).tolist() == [1.0, 0.25, 0.0, 4.0]


def test_expression_is_the_mean_squared_error_of_labels():
    found, wanted = torch.tensor([[0.0, 1.0], [0.2, 0.2]]), torch.tensor([[0.5, 0.0], [0.2, 0.2]])
    torch.testing.assert_close(expression(found, wanted), torch.tensor([(0.25 + 1.0) / 2, 0.0]))
    assert float(expression(found.lerp(wanted, 0.5), wanted)[0]) < float(expression(found, wanted)[0])


def test_cycle_is_the_mean_absolute_difference(pictures):
    first, second = pictures
    by_hand = [np.abs(a - b).mean() for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    torch.testing.assert_close(cycle(first, second), torch.tensor(by_hand))
    assert (cycle(first.lerp(second, 0.5), second) < cycle(first, second)).all()


def test_known_target_is_the_mean_squared_difference_where_a_target_is_known(pictures):
    first, second = pictures
    by_hand = np.square((first[0] - second[0]).numpy()).mean()
    known = torch.tensor([1.0, 0.0])
    torch.testing.assert_close(known_target(first, second, known), torch.tensor([by_hand, 0.0]))
    nearer = known_target(first.lerp(second, 0.5), second, known)
    assert float(nearer[0]) < float(known_target(first, second, known)[0])


def test_attention_costs_its_variation_and_its_norm():
    attention = torch.rand(2, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    for picture, found in enumerate(attention_cost(attention, 0.5)):
        mask, variation = attention[picture, 0], 0.0
        for y, x in np.ndindex(4, 3):
            variation += float((mask[y + 1, x] - mask[y, x]) ** 2) if y < 3 else 0
            variation += float((mask[y, x + 1] - mask[y, x]) ** 2) if x < 2 else 0
        assert float(found) == pytest.approx(0.5 * variation + float(mask.pow(2).sum()) ** 0.5, rel=1e-5)
    even = torch.full_like(attention, 0.5)
    assert float(attention_cost(even, 100.0)[0]) == pytest.approx(0.5 * 12**0.5)  # no variation
    assert (attention_cost(even / 2, 0.5) < attention_cost(even, 0.5)).all()


def test_every_loss_is_the_weighted_sum_of_its_terms(pairs_folder, tmp_path):
    """In both kinds of labels, with the terms computed again from the networks and the batch."""
    for relative in (False, True):
        weights = {"expression_weight": 7, "cycle_weight": 5, "attention_weight": 3, "known_target_weight": 2}
        settings = weights | {"gradient_penalty_weight": 11, "relative": relative}
        run = Run(config(pairs_folder, tmp_path, "--au_dropout=0", **settings))
        method, samples = run.method, run.method.samples()
        batch = torch.utils.data.default_collate([samples[n] for n in range(2)])
        (one, first, parts), (two, _, _), (three, last, made) = method.losses(batch, run.networks)
        assert (one, two, three) == ("critic", "critic", "generator")
        torch.testing.assert_close(first, parts["realness"] + 11 * parts["penalty"] + 7 * parts["expression"])
        expected = made["realness"] + 7 * made["expression"] + 5 * made["cycle"]
        torch.testing.assert_close(last, expected + 3 * made["attention"] + 2 * made["known_target"])

        update = {name: values[:, 1] for name, values in batch.items()}  # the last one's
        change = update["wanted"] - update["own"]
        assert torch.allclose(change, update["given"], atol=1e-6) == relative
        edits, critic = method.edits, method.judged.critic
        with torch.no_grad():
            edited, attention = edits.edit(update["source"], update["given"])
            back = -update["given"] if relative else update["own"]
            returned, second = edits.edit(edited, back)
            realness, read = critic(edited)
            own = critic(update["source"])[1] if relative else 0
        error = read - own - (change if relative else update["wanted"])
        torch.testing.assert_close(made["realness"].detach(), -realness.mean())
        torch.testing.assert_close(made["expression"].detach(), error.square().mean())
        torch.testing.assert_close(made["cycle"].detach(), F.l1_loss(returned, update["source"]))
        torch.testing.assert_close(made["known_target"].detach(), F.mse_loss(edited, update["target"]))
        costs = [mask.flatten(1).norm(dim=1) for mask in (attention, second)]
        assert float(made["attention"].detach()) == pytest.approx(float(sum(costs).mean()), rel=1e-2)


def test_samples_carry_their_labels(pairs_folder, tmp_path):
    """Those of the records, and of what they are warped by."""
    samples = Run(config(pairs_folder, tmp_path, "--au_dropout=0")).method.samples()
    sample, pairs = samples[3], samples.pairs
    for k, n in enumerate((6, 7)):  # two updates of the critic a step
        draw, pair = pairs.pair(n), pairs[n]
        assert torch.equal(sample["source"][k], pair["source"])
        own = pairs.records[draw.source].action_units + draw.source_command
        np.testing.assert_allclose(sample["own"][k] * 5, own, atol=1e-5)
        np.testing.assert_allclose(sample["wanted"][k] * 5, own + draw.au_delta, atol=1e-5)
        assert float(sample["warped"][k]) == 1
        assert 0 <= float(sample["share"][k]) < 1
    assert sample["share"][0] != sample["share"][1]


# --- Training -----------------------------------------------------------------------------------------------


def test_training_brings_edits_nearer_to_their_targets(pairs_folder, tmp_path):
    """By the same pairs before and after; at first an edit is its source."""
    flags = ("--max_train_steps=60", "--au_dropout=0", "--learning_rate=1e-2", "--train_batch_size=4")
    ours = OURS | {"critic_steps": 1, "known_target_weight": 2000, "expression_weight": 1}
    run = Run(config(pairs_folder, tmp_path, *flags, **ours))
    batch = torch.utils.data.default_collate([run.method.samples()[n] for n in range(8)])

    def distance() -> float:
        with torch.no_grad():
            edited, _ = run.method.edits.edit(batch["source"][:, 0], batch["given"][:, 0])
        return float((edited - batch["target"][:, 0]).square().mean())

    before = distance()
    run.train()
    assert distance() < before


def test_the_critic_is_updated_more_often(folder):
    state = json.loads((folder / "training.json").read_text())
    assert state == {"generator_steps": 3, "critic_steps": 6, "pairs_seen": 12}
    checkpoint = folder / "checkpoint-3"
    for name, count in (("critic", 6), ("generator", 3)):
        steps = [v for k, v in load_file(checkpoint / f"{name}_optimizer.safetensors").items() if "step" in k]
        assert {float(step) for step in steps} == {count}
    line = json.loads((folder / "train_log.jsonl").read_text().splitlines()[-1])
    assert {"critic_penalty", "critic_expression", "generator_cycle", "generator_attention"} <= set(line)


def test_resume_equals_uninterrupted(pairs_folder, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    flags = ("--max_train_steps=4", "--use_ema")
    train(config(pairs_folder, straight, *flags))
    run = Run(config(pairs_folder, resumed, *flags, "--checkpointing_steps=2"))
    train_for(3, run)  # the checkpoint is of the second step
    train(config(pairs_folder, resumed, *flags, "--resume_from_checkpoint=latest"))
    files = sorted((straight / "checkpoint-4").glob("*.safetensors"))
    assert {file.stem for file in files} >= {"critic", "generator", "critic_optimizer", "generator_optimizer"}
    for file in files:
        first, second = load_file(file), load_file(resumed / "checkpoint-4" / file.name)
        assert first.keys() == second.keys()
        assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []
    assert not torch.equal(
        load_file(straight / "checkpoint-4" / "generator.safetensors")["generator.out.weight"],
        load_file(resumed / "checkpoint-2" / "generator.safetensors")["generator.out.weight"],
    )


@pytest.mark.slow
def test_two_processes_train_together(pairs_folder, tmp_path):
    """The gradient penalty differentiates twice, also where gradients are averaged over processes."""
    chosen = ",".join(f"{name}={value}" for name, value in SETTINGS.items())
    places = [f"--train_data_dir={pairs_folder}", f"--output_dir={tmp_path}", "--max_train_steps=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for done in run_ranks(2, [train_script.__file__, *FLAGS, *places, f"--settings={chosen}"], environment):
        assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "training.json").read_text())["pairs_seen"] == 16


def test_another_label_size_needs_another_embedding_only(folder, pairs_folder, tmp_path):
    settings = f"--settings=transfer_from={folder},critic_steps=1,action_units=AU12 AU26"
    flags = [*FLAGS, f"--train_data_dir={pairs_folder}", f"--output_dir={tmp_path}", "--max_train_steps=2"]
    train(parse_config([*flags, settings]))
    assert ModelFolder.find(tmp_path).action_units == ("AU12", "AU26")
    before, after = (GANimationPipeline.from_pretrained(place) for place in (folder, tmp_path))
    for name, tensor in before.generator.state_dict().items():
        assert torch.equal(tensor, after.generator.state_dict()[name])
    assert after.embedding.config.labels == after.critic.config.labels == 2
    assert after.config.relative
    assert not torch.equal(before.critic.trunk[0].weight, after.critic.trunk[0].weight)  # goes on learning
    torch.manual_seed(0)
    new = before.with_labels("AU12,AU26")
    assert new.critic.trunk is before.critic.trunk
    steps = load_file(tmp_path / "checkpoint-2" / "generator_optimizer.safetensors")
    assert len([name for name in steps if name.endswith("exp_avg")]) == len(list(new.embedding.parameters()))


# --- Bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        (["--resolution=48"], {}, "resolution must be a power of two from 8 on, got 48; see --resolution"),
        ([], {"chanels": 8}, "has no settings chanels; it has action_units, relative"),
        ([], {"blocks": "many"}, "settings blocks must be of type int"),
        ([], {"critic_steps": 0}, "settings critic_steps must be at least 1"),
        ([], {"cycle_weight": -1}, "settings cycle_weight must be 0 or more"),
        ([], {"action_units": "AU12 AU13"}, "--warped .* none for AU13; set --warped to 0"),
        (["--warped=0"], {"action_units": "AU12 AU13"}, "has labels of AU1, .*not of AU13; prepare it again"),
        ([], {"transfer_from": "nowhere"}, "settings channels is that of transfer_from; leave it out"),
        (["--lora_rank=4"], {}, "ganimation does not use --lora_rank"),
        (["--mixed_precision=fp16"], {}, "needs --mixed_precision bf16 or no"),
        (["--lr_scheduler=cosine"], {}, "--lr_scheduler must be constant"),
    ],
)
def test_bad_settings_are_refused_before_the_first_step(pairs_folder, tmp_path, flags, settings, message):
    with pytest.raises((TrainingError, DatasetError), match=message) as raised:
        GANimation(config(pairs_folder, tmp_path, *flags, **settings), None)
    assert "\n" not in str(raised.value)


def test_transfers_that_do_not_fit_are_refused(folder, pairs_folder, tmp_path):
    flags = [*FLAGS, f"--train_data_dir={pairs_folder}", f"--output_dir={tmp_path}"]
    with pytest.raises(TrainingError, match=r"transfer_from: .* is not a pipeline folder"):
        Run(parse_config([*flags, f"--settings=transfer_from={tmp_path}"]))
    with pytest.raises(TrainingError, match="needs --resolution 32, got 16"):
        Run(parse_config([*flags, f"--settings=transfer_from={folder}", "--resolution=16"]))


def test_data_that_do_not_fit_are_refused_before_the_first_step(pairs_folder, tmp_path):
    with pytest.raises(DatasetError, match="is not a prepared dataset"):
        Run(config(tmp_path, tmp_path / "out"))
    copy = tmp_path / "data"
    copy.mkdir()
    (copy / "data").symlink_to(pairs_folder / "data")
    description = json.loads((pairs_folder / DESCRIPTION_FILE).read_text())
    names = ["smile", *NAMES[1:]]  # the labels of another tool
    (copy / DESCRIPTION_FILE).write_text(json.dumps(description | {"action_units": names}))
    with pytest.raises(TrainingError, match=r"--warped .* none for smile"):
        GANimation(config(copy, tmp_path / "out"), None)
    assert GANimation(config(copy, tmp_path / "out", "--warped=0"), None).vocabulary == tuple(names)


# --- What comes of it ---------------------------------------------------------------------------------------


def test_a_trained_folder_has_its_vocabulary_card_and_preview(folder):
    found = ModelFolder.find(folder)
    assert (found.action_units, found.resolution) == (NAMES, 32)
    preview = np.asarray(PIL.Image.open(folder / "previews" / "step-0000003.png"))
    assert preview.shape == (2 * 32, 8 * 32, 3)  # a face and its attention, by seven requests
    card = (folder / "README.md").read_text()
    assert "2 photographs of 1 person. Licence: not stated" in card
    (command,) = (line for line in card.splitlines() if line.startswith("accelerate launch"))
    again = parse_config([*shlex.split(command)[3:], f"--output_dir={folder}"])
    assert again.settings == {name: str(value) for name, value in (SETTINGS | OURS).items()}


def test_labels_are_variations_or_added_to_what_the_critic_reads(responding):
    relative = GANimationPipeline.from_pretrained(responding)
    absolute = GANimationPipeline(**relative.components, resolution=32, action_units=",".join(NAMES))
    source, request = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), np.eye(12)[6] * 4
    pictures = relative.pictures(source)
    labels = relative.labels(pictures, request)
    np.testing.assert_allclose(labels, np.tile(np.eye(12)[6] * 0.8, (2, 1)), atol=1e-6)
    read = relative.critic(pictures)[1].detach()
    torch.testing.assert_close(absolute.labels(pictures, request).detach(), read + labels)
    output = relative(source, request, output_type="pt")
    assert output.attention.shape == (2, 32, 32)
    expected = compose(pictures, output.attention[:, None], output.colour)
    torch.testing.assert_close(output.images, (expected / 2 + 0.5).clamp(0, 1))
    assert float((absolute(source, request, output_type="pt").images - output.images).abs().max()) > 1e-3
    with pytest.raises(ValueError, match=r"au_delta must have shape \(2, 12\), got \(2, 3\)"):
        relative(source, np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"source must be RGB of 32 x 32 px, got \(1, 3, 16, 16\)"):
        relative(source[:1, :, ::2, ::2], request)


def test_labels_are_interpolated_linearly(responding):
    pipeline = GANimationPipeline.from_pretrained(responding)
    source = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    smile, frown = np.eye(12)[6] * 4, np.eye(12)[2] * 3
    frames = pipeline.interpolate(source, smile, frown, [0, 0.25, 1], output_type="pt").images
    for frame, request in zip(frames, (smile, 0.75 * smile + 0.25 * frown, frown), strict=True):
        torch.testing.assert_close(frame, pipeline(source, request, output_type="pt").images[0])


def test_it_is_edited_with(responding, astronaut):
    editor = ExpressionEditor.from_pretrained(responding)
    assert isinstance(editor.changer.model, FaceModel)
    result = editor.edit(astronaut, add="AU12=4", measure=False)
    edited, (face,) = np.asarray(result.image), result.faces
    x0, y0, x1, y1 = (int(edge) for edge in face.box)
    assert (edited != astronaut)[y0:y1, x0:x1].any()
    assert (edited[:20] == astronaut[:20]).all()
    assert (np.asarray(editor.edit(astronaut, add="AU12=0", measure=False).image) == astronaut).all()
    results = editor.sweep(astronaut, "AU4", 0, 4, 3, measure=False)
    assert (np.asarray(results[1].image) != np.asarray(results[2].image)).any()


def test_pictures_of_several_faces_are_those_of_each(responding, astronaut):
    editor = ExpressionEditor.from_pretrained(responding)
    model, (face,) = editor.changer.model, editor.measure(astronaut)
    pictures = (astronaut, astronaut[:, ::-1].copy())
    faces = [editor.changer.cut(pixels, face).encoded for pixels in pictures]
    requests = [np.eye(12, dtype=np.float32)[k] * 3 for k in (6, 2)]
    together = model.change(faces, requests, editor.sampling())
    for encoded, request, picture in zip(faces, requests, together, strict=True):
        (alone,) = model.change([encoded], [request], editor.sampling())
        assert np.abs(alone.astype(int) - picture).max() <= 1
        assert np.abs(picture / 255 - encoded.crop).max() > 0.02  # not the crop itself
    assert model.is_current(faces[0])
    before = model.fingerprint()
    assert before == ExpressionEditor.from_pretrained(responding).changer.model.fingerprint()
    with torch.no_grad():
        model.pipeline.generator.out.bias.fill_(float("nan"))
    assert not model.is_current(faces[0])
    assert model.fingerprint() != before
    with pytest.raises(ModelError, match="not finite"):
        model.change(faces[:1], requests[:1], editor.sampling())


def test_a_photograph_is_reenacted_with_it(responding, astronaut, tmp_path):
    pytest.importorskip("av")
    from magicedit.video import Video, save_film

    photo, driving, output = (tmp_path / name for name in ("photo.png", "driving.mp4", "alive.mp4"))
    PIL.Image.fromarray(astronaut).save(photo)
    smiling = ExpressionEditor.from_pretrained("mini").edit(astronaut, add="AU4=4", measure=False).image
    save_film([PIL.Image.fromarray(astronaut), smiling], driving, 0.1)
    command = ["reenact", "--source", str(photo), "--driving", str(driving), "-o", str(output)]
    assert main([*command, "--model", responding]) == 0
    frames = list(Video(output).frames())
    assert len(frames) == 2


def test_a_trained_folder_works_without_the_package(responding, tmp_path):
    """diffusers alone gives the same picture as our own loader."""
    script = """
    import sys
    import numpy as np
    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
    crop = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
    np.save(sys.argv[2], pipeline(crop, np.eye(12)[6] * 4, output_type="np").images)
    """
    run_without_package(script, Path(responding), tmp_path / "there.npy", work=tmp_path)
    crop = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
    here = GANimationPipeline.from_pretrained(responding)(crop, np.eye(12)[6] * 4, output_type="np").images
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), here, atol=1e-5)
    assert np.abs(here - crop).max() > 0.01


def test_folders_that_do_not_fit_are_refused(responding, tmp_path):
    pipeline = GANimationPipeline.from_pretrained(responding)
    parts = pipeline.components
    with pytest.raises(ValueError, match="must have one size, got \\[2, 12\\]"):
        GANimationPipeline(**parts, resolution=32, action_units="AU1,AU2")
    with pytest.raises(ValueError, match="the critic's resolution is 32, not 64"):
        GANimationPipeline(**parts, resolution=64, action_units=",".join(NAMES))
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline, not a GANimationPipeline"):
        GANimationPipeline.from_pretrained(tmp_path)
