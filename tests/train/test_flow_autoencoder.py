"""The flow autoencoder: its loss terms; trained, resumed, edited with, interpolated, loaded elsewhere."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from dataset_rows import changed_rows
from safetensors.torch import load_file
from tiny_models import edited_film, evaluated, run_without_package, train_for
from warm import run_ranks

from magicedit import ExpressionEditor
from magicedit.action_units import EMOTIONS, NAMES
from magicedit.cli import main
from magicedit.data import prepare_dataset
from magicedit.data.description import DESCRIPTION_FILE
from magicedit.editor.between import _colours, _in_colours, interpolate_photographs
from magicedit.errors import ActionUnitError, DatasetError, MagicEditError, ModelError, TrainingError
from magicedit.models.face_model import FaceModel
from magicedit.models.folder import ModelFolder
from magicedit.pipelines.pipeline_flow_autoencoder import FlowDecoder, FlowEncoder, in_pixels, move
from magicedit.train import train as train_script
from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train
from magicedit.train.methods.flow_autoencoder import (
    Best,
    coherence,
    confidence_loss,
    known_flow,
    neighbours,
    reconstruction,
    soft_labels,
)

SETTINGS = {"channels": 16, "latent_size": 4, "confidence_channels": 4, "class_photographs": 2}
STOPPING = {"early_stopping_steps": 2, "early_stopping_pairs": 3}
FLAGS = ["--objective=flow-autoencoder", "--resolution=32", "--train_batch_size=2", "--warped=1", "--augment"]
FLAGS += ["--learning_rate=1e-2", "--lr_warmup_steps=0", "--validation_steps=0", "--logging_steps=1"]
FLAGS += ["--max_grad_norm=1e9"]


def config(data: Path, output: Path, *more: str, **settings):
    chosen = ",".join(f"{name}={value}" for name, value in (SETTINGS | STOPPING | settings).items())
    places = (f"--train_data_dir={data}", f"--output_dir={output}", f"--settings={chosen}")
    return parse_config([*FLAGS, *places, *more])


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(pairs_folder, tmp_path_factory):
    """Trained for a few steps."""
    output = tmp_path_factory.mktemp("flow")
    ours = {"relative": True, "known_flow_weight": 0.05}
    train(config(pairs_folder, output, "--max_train_steps=12", "--validation_steps=6", **ours))
    return output


# --- Loss terms ---------------------------------------------------------------------------------------------


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(2, 3, 9, 8, generator=generator) * 2 - 1 for _ in range(2)]


def test_reconstruction_is_the_squared_distance_of_a_picture(pictures):
    moved, target = pictures
    by_hand = [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in zip(
        moved.flatten(1).tolist(), target.flatten(1).tolist(), strict=True)]  # fmt: skip
    torch.testing.assert_close(reconstruction(moved, target), torch.tensor(by_hand))
    assert (reconstruction(torch.lerp(moved, target, 0.5), target) < reconstruction(moved, target)).all()
    assert not reconstruction(target, target).any()


def test_prior_is_the_divergence_to_a_standard_normal():
    """Against the mean of log q - log p over samples, and torch's own formula."""
    moments = torch.tensor([[0.5, -1.0, -0.4, 0.3]])[..., None, None]
    found = FlowEncoder.posterior(moments).kl()
    q = torch.distributions.Normal(torch.tensor([0.5, -1.0]), torch.tensor([-0.4, 0.3]).div(2).exp())
    p = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    torch.manual_seed(0)
    draws = q.sample((200_000,))
    sampled = (q.log_prob(draws) - p.log_prob(draws)).sum(1).mean()
    assert abs(float(found) - float(sampled)) < 0.02  # four standard errors
    torch.testing.assert_close(found, torch.distributions.kl_divergence(q, p).sum()[None])
    assert float(FlowEncoder.posterior(moments * 2).kl()) > float(found)
    assert float(FlowEncoder.posterior(moments * 0).kl()) == 0


def test_coherence_is_the_sum_over_neighbours_of_like_colour(pictures):
    target, flow, scale = pictures[0], pictures[1][:, :2] * 3, 0.7
    height, width = target.shape[-2:]
    by_hand = torch.zeros(2, dtype=torch.float64)
    for picture in range(2):
        for y in range(height):
            for x in range(width):
                for v in range(max(y - 3, 0), min(y + 4, height)):
                    for u in range(max(x - 3, 0), min(x + 4, width)):
                        colour = (target[picture, :, y, x] - target[picture, :, v, u]).double().pow(2).sum()
                        moved = (flow[picture, :, y, x] - flow[picture, :, v, u]).double().pow(2).sum()
                        by_hand[picture] += torch.exp(-colour / scale) * moved
    torch.testing.assert_close(coherence(flow, target, scale).double(), by_hand, rtol=1e-4, atol=0)


def test_coherence_lets_a_flow_break_where_the_colour_does():
    target = torch.ones(1, 3, 8, 8)
    target[..., 4:] = -1
    along, across = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    along[:, 0, :, 4:], across[:, 0, 4:] = 1, 1
    assert float(coherence(along, target, 0.1)) < 1e-3 * float(coherence(across, target, 0.1))
    assert float(coherence(torch.full_like(along, 2.5), target, 0.1)) == 0  # all move together


def test_every_pair_of_neighbours_comes_once():
    numbers = torch.arange(12 * 11.0).view(1, 1, 12, 11)
    pairs = [
        pair
        for ends in neighbours(numbers)
        for pair in zip(*(end.flatten().tolist() for end in ends), strict=True)
    ]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    centre = 6 * 11 + 5
    assert sum(centre in pair for pair in pairs) == 48


def test_known_flow_is_the_distance_where_movement_is_known():
    flow = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    known = torch.randn(2, 5, 4, 2, generator=torch.Generator().manual_seed(1)) * 3
    known[0, 1, 2, 0] = known[1, 4] = torch.nan
    weight = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(2))
    by_hand = [0.0, 0.0]
    for picture, y, x in np.ndindex(2, 5, 4):
        distance = float((flow[picture, :, y, x] - known[picture, y, x]).norm())
        if np.isfinite(distance):
            by_hand[picture] += float(weight[picture, y, x]) * (np.hypot(distance, 0.1) - 0.1)
    torch.testing.assert_close(known_flow(flow, known, weight), torch.tensor(by_hand, dtype=torch.float32))
    nearer = torch.lerp(flow, torch.nan_to_num(known).permute(0, 3, 1, 2), 0.5)
    assert (known_flow(nearer, known, weight) < known_flow(flow, known, weight)).all()
    nearer.requires_grad_()
    known_flow(nearer, known, weight).sum().backward()
    assert torch.isfinite(nearer.grad).all()


def test_soft_labels_and_their_cross_entropy(pictures):
    moved, target = pictures
    labels = soft_labels(moved, target, 0.8)
    y, x = 4, 3
    distance = sum(float(target[1, c, y, x] - moved[1, c, y, x]) ** 2 for c in range(3))
    assert float(labels[1, y, x]) == pytest.approx(np.exp(-distance / 0.8), rel=1e-5)
    assert (soft_labels(target, target, 0.8) == 1).all()
    logits = torch.randn(labels.shape, generator=torch.Generator().manual_seed(1))
    p, t = logits.double().sigmoid(), labels.double()
    by_hand = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    assert float(confidence_loss(logits, labels)) == pytest.approx(float(by_hand), rel=1e-5)
    best = confidence_loss(torch.logit(labels.clamp(1e-6, 1 - 1e-6)), labels)
    assert float(best) < float(confidence_loss(logits, labels))


def test_the_loss_is_the_weighted_sum_and_each_optimizer_has_its_own(pairs_folder, tmp_path):
    run = Run(config(pairs_folder, tmp_path, "--max_train_steps=3", "--au_dropout=0", known_flow_weight=0.5))
    samples = run.method.samples()
    batch = torch.utils.data.default_collate([samples[n] for n in range(2)])
    torch.nn.init.normal_(run.method.autoencoder.decoder.out.weight, std=0.01)
    (name, loss, parts), (second, _, _) = run.method.losses(batch, run.networks)
    assert (name, second) == ("autoencoder", "confidence")
    expected = parts["reconstruction"] + 0.003 * parts["prior"] + 0.001 * parts["coherence"]
    expected = expected + 0.5 * parts["known_flow"]
    torch.testing.assert_close(loss, expected)
    assert all(float(part.detach()) > 0 for part in parts.values())
    run.train()
    lines = log_of(tmp_path)
    assert {"autoencoder_prior", "autoencoder_coherence", "confidence_loss", "confidence_label"} <= set(
        lines[0]
    )


def test_gradients_are_clipped_by_value(pairs_folder, tmp_path):
    run = Run(config(pairs_folder, tmp_path, "--max_train_steps=1", max_grad_value=0.25))
    out = run.method.autoencoder.decoder.out
    out.bias.grad = torch.tensor([7.0, -0.125])
    seen = []
    optimizer = run.optimizers["autoencoder"]
    optimizer.register_step_pre_hook(lambda *_: seen.append(out.bias.grad.clone()))
    optimizer.step()
    assert seen[0].tolist() == [0.25, -0.125]


def test_training_lowers_the_loss(pairs_folder, tmp_path):
    """By the losses of the same batches before and after, the learned flow being that of a warp."""
    flags = ("--max_train_steps=30", "--au_dropout=0", "--learning_rate=3e-3")
    run = Run(config(pairs_folder, tmp_path, *flags, relative=True, known_flow_weight=0.05))
    before = run.method._validation_loss()
    run.train()
    assert json.loads((tmp_path / "training.json").read_text())["validation_reconstruction"] < before


def test_relative_flows_depend_on_the_difference_of_latents_alone():
    torch.manual_seed(0)
    source, latent, own = torch.rand(1, 3, 16, 16), torch.randn(1, 4), torch.randn(1, 4)
    shift = torch.randn(1, 4)
    for relative in (False, True):
        decoder = FlowDecoder(16, 8, 4, relative).eval()
        torch.nn.init.normal_(decoder.out.weight)
        flow, shifted = decoder(source, latent, own), decoder(source, latent + shift, own + shift)
        assert torch.allclose(flow, shifted, atol=1e-5) == relative
        assert torch.equal(flow, decoder(source, latent, own + shift)) != relative


# --- Early stopping -----------------------------------------------------------------------------------------


def test_training_ends_early_with_the_best_weights(pairs_folder, tmp_path, monkeypatch):
    run = Run(config(pairs_folder, tmp_path, "--max_train_steps=40", early_stopping_patience=2))
    losses = iter([5.0, 3.0, 4.0, 3.5, 9.0])
    best = {}

    def loss():
        value = next(losses)
        if value == 3.0:
            best.update({n: t.clone() for n, t in run.method.autoencoder.state_dict().items()})
        return value

    monkeypatch.setattr(run.method, "_validation_loss", loss)
    run.train()
    assert run.step == 9  # checks before steps 3, 5, 7 and 9: the second was the best
    stored = load_file(tmp_path / "encoder" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, best[f"encoder.{name}"]) for name, tensor in stored.items())
    now = run.method.autoencoder.encoder.state_dict()
    assert not torch.equal(stored["moments.weight"], now["moments.weight"])
    assert json.loads((tmp_path / "training.json").read_text())["validation_reconstruction"] == 3.0


def test_best_keeps_copies():
    network = torch.nn.Linear(2, 1)
    best = Best(network=torch.nn.Linear(2, 1))
    best.offer(2.0, {"network": network})
    with torch.no_grad():
        network.weight.zero_()
    best.offer(float("nan"), {"network": network})  # no improvement
    assert best.networks["network"].weight.any()
    assert (float(best.loss), int(best.stale)) == (2.0, 1)
    assert not any(parameter.requires_grad for parameter in best.parameters())


def test_without_early_stopping_the_last_weights_are_the_result(pairs_folder, tmp_path):
    train(config(pairs_folder, tmp_path, "--max_train_steps=3", "--use_ema", early_stopping_patience=0))
    stored = load_file(tmp_path / "encoder" / "diffusion_pytorch_model.safetensors")
    last = load_file(tmp_path / "checkpoint-3" / "autoencoder.safetensors")
    assert not torch.equal(stored["moments.weight"], last["encoder.moments.weight"])  # the average
    assert stored["trunk.norms.0.running_mean"].any()


def test_resume_equals_uninterrupted(pairs_folder, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(config(pairs_folder, straight, "--max_train_steps=7", "--lr_scheduler=cosine"))
    run = Run(
        config(
            pairs_folder, resumed, "--max_train_steps=7", "--lr_scheduler=cosine", "--checkpointing_steps=3"
        )
    )
    train_for(4, run)  # the checkpoint is of the third step
    train(config(pairs_folder, resumed, "--max_train_steps=7", "--lr_scheduler=cosine",
                 "--resume_from_checkpoint=latest"))  # fmt: skip
    for file in sorted((straight / "checkpoint-7").glob("*.safetensors")):
        first, second = load_file(file), load_file(resumed / "checkpoint-7" / file.name)
        assert first.keys() == second.keys()
        assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []
    assert float(load_file(straight / "checkpoint-7" / "best.safetensors")["loss"]) < float("inf")


@pytest.mark.slow
def test_two_processes_end_together(pairs_folder, tmp_path):
    """A module in which nothing is trained, the best weights, is no hindrance; no check is ever better."""
    flags = [f"--train_data_dir={pairs_folder}", f"--output_dir={tmp_path}", "--max_train_steps=9"]
    settings = SETTINGS | STOPPING | {"early_stopping_steps": 1, "early_stopping_patience": 2}
    chosen = ",".join(f"{name}={value}" for name, value in settings.items())
    # At this rate nothing moves, and a loss that equals the first is not better
    command = [train_script.__file__, *FLAGS, *flags, f"--settings={chosen}", "--learning_rate=1e-30"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for done in run_ranks(2, command, environment):
        assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "training.json").read_text())["optimiser_steps"] < 9


# --- Bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        (["--resolution=48"], {}, "resolution must be 4 times a power of two"),
        ([], {"channels": 18}, "channels must be a multiple of 4"),
        ([], {"chanels": 8}, "has no settings chanels; it has channels, latent_size"),
        ([], {"latent_size": "many"}, "settings latent_size must be of type int"),
        ([], {"latent_size": 0}, "latent_size must be at least 1"),
        ([], {"prior_weight": -1}, "prior_weight must be 0 or more"),
        ([], {"confidence_scale": 0}, "confidence_scale must be above 0"),
        ([], {"class_means": "wishes"}, "class_means must be muscles or labels"),
        (
            [],
            {"class_means": "labels"},
            r"photographs with AU\d+ at 2.5 or more .*class means by labels need both",
        ),
        (["--lora_rank=4"], {}, "flow-autoencoder does not use --lora_rank"),
        (["--use_ema"], {}, "use_ema and early stopping exclude each other"),
    ],
)
def test_bad_settings_are_refused_before_the_first_step(pairs_folder, tmp_path, flags, settings, message):
    with pytest.raises(TrainingError, match=message) as raised:
        Run(config(pairs_folder, tmp_path, *flags, **settings))
    assert "\n" not in str(raised.value)


def test_data_that_do_not_fit_are_refused_before_the_first_step(pairs_folder, tmp_path):
    with pytest.raises(DatasetError, match="is not a prepared dataset"):
        Run(config(tmp_path, tmp_path / "out"))
    with pytest.raises(DatasetError, match=r"crops .* have 64 px, too few for resolution 128"):
        Run(config(pairs_folder, tmp_path / "out", "--resolution=128"))
    copy = tmp_path / "data"
    copy.mkdir()
    (copy / "data").symlink_to(pairs_folder / "data")
    description = json.loads((pairs_folder / DESCRIPTION_FILE).read_text())

    def described(**changes):
        (copy / DESCRIPTION_FILE).write_text(json.dumps(description | changes))

    described(action_units=["smile", "frown"])
    with pytest.raises(DatasetError, match="has labels of smile, frown, not of AU1"):
        Run(config(copy, tmp_path / "out"))
    described(landmarks="ibug68")
    with pytest.raises(TrainingError, match="class means by muscles need MediaPipe's 478 landmarks"):
        Run(config(copy, tmp_path / "out", "--warped=0"))


def test_early_stopping_needs_a_validation_split(astronaut, tmp_path):
    (tmp_path / "photos" / "ann").mkdir(parents=True)
    PIL.Image.fromarray(astronaut).save(tmp_path / "photos" / "ann" / "one.png")
    prepare_dataset(tmp_path / "photos", tmp_path / "data", size=64, progress=False)
    with pytest.raises(DatasetError, match="no split 'validation'"):
        Run(config(tmp_path / "data", tmp_path / "out"))
    Run(config(tmp_path / "data", tmp_path / "out", early_stopping_patience=0))


# --- What comes of it ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def responding(folder, tmp_path_factory):
    """The tiny model with class means far apart and a decoder that answers to them."""
    from magicedit.pipelines.pipeline_flow_autoencoder import FlowAutoencoderPipeline

    pipeline = FlowAutoencoderPipeline.from_pretrained(folder)
    torch.manual_seed(5)
    with torch.no_grad():
        pipeline.decoder.out.weight.normal_(std=0.4)
        pipeline.classes.target.copy_(pipeline.classes.source + torch.randn_like(pipeline.classes.target))
    output = tmp_path_factory.mktemp("responding")
    pipeline.save_pretrained(output)
    return str(output)


def test_a_trained_folder_has_its_vocabulary_class_means_and_previews(folder):
    found = ModelFolder.find(folder)
    assert found.action_units == (*NAMES, *EMOTIONS)
    assert found.action_units["happiness"].kind == "emotion"
    assert found.resolution == 32
    classes = load_file(folder / "classes" / "diffusion_pytorch_model.safetensors")
    assert classes["steps"].tolist() == [5.0] * 18
    distances = (classes["target"] - classes["source"]).norm(dim=1)
    assert (distances > 0).all()
    assert sorted(path.name for path in (folder / "previews").iterdir()) == [
        "step-0000006.png",
        "step-0000012.png",
    ]
    assert json.loads((folder / "training.json").read_text())["pairs_seen"] == 24


def test_the_card_states_data_and_command_and_is_pushed(pairs_folder, tmp_path, monkeypatch):
    pushed = {}
    monkeypatch.setattr(
        "magicedit.train.publish.push_folder",
        lambda folder, name, **options: pushed.update({"folder": folder, "name": name, **options}),
    )
    flags = ("--max_train_steps=1", "--push_to_hub", "--hub_model_id=ann/flow", "--data_license=CC0")
    train(config(pairs_folder, tmp_path, *flags))
    assert pushed == {"folder": tmp_path, "name": "ann/flow", "private": False, "token": None}
    card = (tmp_path / "README.md").read_text()
    assert "2 photographs of 1 person. Licence: CC0" in card
    (command,) = (line for line in card.splitlines() if line.startswith("accelerate launch"))
    again = parse_config([*shlex.split(command)[3:], f"--output_dir={tmp_path}"])
    assert again.settings == {name: str(value) for name, value in (SETTINGS | STOPPING).items()}


def test_class_means_by_labels(pairs_folder, tmp_path):
    """Against the means of the encoder's own latents, where labels are written by hand."""
    given = {"light.png": 0.0, "dark.png": 4.0}

    def change(rows):
        for row in rows:
            row["action_units"] = [given[Path(row["source"]).name]] * len(NAMES)

    data = changed_rows(pairs_folder, tmp_path / "data", change)
    run = Run(config(data, tmp_path, "--max_train_steps=1", class_means="labels", early_stopping_patience=0))
    run.train()
    assert ModelFolder.find(tmp_path).action_units == NAMES
    classes = load_file(tmp_path / "classes" / "diffusion_pytorch_model.safetensors")
    encoder = run.method.autoencoder.encoder.eval()
    for index, record in enumerate(run.method.pairs.records):
        row = "source" if Path(record.source).name == "light.png" else "target"
        with torch.no_grad():
            own = encoder.latent(run.method.pairs.record_images(index)[0][None])[0]
        torch.testing.assert_close(classes[row], own.expand(12, -1), rtol=1e-4, atol=1e-5)
    assert classes["steps"].tolist() == [4.0] * 12


def test_it_is_edited_with(responding, astronaut):
    editor = ExpressionEditor.from_pretrained(responding)
    model = editor.changer.model
    assert isinstance(model, FaceModel)
    result = editor.edit(astronaut, add="happiness=5", measure=False)
    (face,) = result.faces
    edited = np.asarray(result.image)
    x0, y0, x1, y1 = (int(edge) for edge in face.box)
    assert (edited != astronaut)[y0:y1, x0:x1].any()
    assert (edited[:20] == astronaut[:20]).all()
    assert (np.asarray(editor.edit(astronaut, add="AU12=3", measure=False).image) != edited).any()
    assert (np.asarray(editor.edit(astronaut, add="AU12=0", measure=False).image) == astronaut).all()
    with pytest.raises(ActionUnitError, match="did you mean happiness"):
        editor.edit(astronaut, add="hapiness=5")
    results = editor.sweep(astronaut, "surprise", 0, 4, 3, measure=False)
    assert (np.asarray(results[0].image) == astronaut).all()
    assert (np.asarray(results[1].image) != np.asarray(results[2].image)).any()


def test_flows_of_several_faces_are_those_of_each(responding, astronaut):
    editor = ExpressionEditor.from_pretrained(responding)
    model, (face,) = editor.changer.model, editor.measure(astronaut)
    cuts = [editor.changer.cut(pixels, face) for pixels in (astronaut, astronaut[:, ::-1].copy())]
    requests = [np.eye(18, dtype=np.float32)[k] * 3 for k in (6, 12)]
    settings = editor.sampling()
    faces = [cut.encoded for cut in cuts]
    together = model.change(faces, requests, settings)
    for encoded, request, change in zip(faces, requests, together, strict=True):
        (alone,) = model.change([encoded], [request], settings)
        np.testing.assert_allclose(alone.flow, change.flow, atol=1e-4)
        assert np.abs(change.flow).max() > 1e-3
    (nothing,) = model.change(faces[:1], [np.zeros(18, np.float32)], settings)
    assert np.abs(nothing.flow).max() == 0
    assert model.is_current(faces[0])
    with torch.no_grad():
        model.pipeline.encoder.moments.bias.add_(0.1)
    assert not model.is_current(faces[0])
    with torch.no_grad():
        model.pipeline.decoder.out.bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        model.change(faces[:1], requests[:1], settings)


def test_the_fingerprint_is_of_weights_and_vocabulary(responding, folder):
    first, second = (ExpressionEditor.from_pretrained(f).changer.model for f in (responding, str(folder)))
    assert first.fingerprint() == ExpressionEditor.from_pretrained(responding).changer.model.fingerprint()
    assert first.fingerprint() != second.fingerprint()


def test_the_commands_know_it(responding, astronaut, tmp_path):
    photo = tmp_path / "photo.png"
    PIL.Image.fromarray(astronaut).save(photo)
    out = ["-o", str(tmp_path / "o.png"), "--model", responding]
    assert main(["edit", str(photo), *out, "--au", "happiness=5"]) == 0
    assert (
        main(["edit", str(photo), *out[:1], str(tmp_path / "e.png"), *out[2:], "--emotion", "happiness"]) == 0
    )

    mirrored = tmp_path / "mirrored.png"
    PIL.Image.fromarray(astronaut[:, ::-1].copy()).save(mirrored)
    between = ["interpolate", str(photo), str(mirrored), "--both", "--pictures", "3", "--model", responding]
    assert main([*between, "-o", str(tmp_path / "strip.png")]) == 0
    assert PIL.Image.open(tmp_path / "strip.png").width > 3 * 512
    assert main([*between, "--match-colours", "-o", str(tmp_path / "between.gif")]) == 0
    assert main([*(x for x in between if x != "--both"), "--match-colours", "-o", out[1]]) == 2
    keys = ["--key", "0:AU26=0", "--key", "0.3:AU26=2"]
    edited_film(astronaut, tmp_path, *keys, "--model", responding)
    assert len(evaluated(f"flow={responding}", astronaut, tmp_path)) == 2


def test_colours_are_brought_together(astronaut):
    """A darker, warmer picture in the colours of the first is the first, but for rounding and clipping."""
    warm = (astronaut * (0.6, 0.5, 0.35)).astype(np.uint8)
    found = _in_colours(warm, _colours(warm), _colours(astronaut)).astype(float)
    assert np.abs(found - astronaut).mean() < 0.3 * np.abs(warm.astype(float) - astronaut).mean()
    assert np.abs(_in_colours(warm, _colours(warm), _colours(warm)).astype(int) - warm).max() <= 1


def test_photographs_are_interpolated(responding, astronaut):
    editor = ExpressionEditor.from_pretrained(responding)
    dark = (astronaut * 0.6).astype(np.uint8)
    frames = [
        np.asarray(frame).astype(float)
        for frame in interpolate_photographs(editor, astronaut, dark, 5, size=96)
    ]
    assert [frame.shape for frame in frames] == [(96, 96, 3)] * 5
    (face,) = editor.measure(astronaut)
    from magicedit.faces import align, crop_face

    assert (frames[0] == crop_face(astronaut, align(face, 32).scaled(96))).all()
    assert frames[0].mean() > frames[2].mean() > frames[4].mean()

    matched = [
        np.asarray(frame).astype(float)
        for frame in interpolate_photographs(editor, astronaut, dark, 5, size=96, match_colours=True)
    ]
    for end in (0, 4):
        assert (matched[end] == frames[end]).all()
    # At a quarter of the way both crops have three quarters of the first one's light, whatever their shares
    light = [frame.mean() for frame in matched]
    assert light == pytest.approx(np.linspace(light[0], light[4], 5).tolist(), abs=5)
    assert not (matched[1] == frames[1]).all()

    assert len(interpolate_photographs(editor, astronaut, dark, 2)) == 2
    with pytest.raises(MagicEditError, match="at least 2 frames"):
        interpolate_photographs(editor, astronaut, dark, 1)
    with pytest.raises(ModelError, match="mini cannot interpolate photographs"):
        interpolate_photographs(ExpressionEditor.from_pretrained("mini"), astronaut, dark)


def test_a_trained_folder_works_without_the_package(responding, tmp_path):
    """diffusers alone gives the same picture as our own loader."""
    from magicedit.pipelines.pipeline_flow_autoencoder import FlowAutoencoderPipeline

    script = """
    import sys
    import numpy as np
    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
    crop = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
    np.save(sys.argv[2], pipeline(crop, np.eye(18)[6] * 4, output_type="np").images)
    """
    run_without_package(script, Path(responding), tmp_path / "there.npy", work=tmp_path)
    crop = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
    here = FlowAutoencoderPipeline.from_pretrained(responding)(
        crop, np.eye(18)[6] * 4, output_type="np"
    ).images
    np.testing.assert_allclose(np.load(tmp_path / "there.npy"), here, atol=1e-5)
    assert np.abs(here - crop).max() > 0.01


def test_moving_reads_pixels_bilinearly():
    """Against cv2, whose grid is pixels."""
    import cv2

    source = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    flow = torch.rand(1, 2, 12, 16, generator=torch.Generator().manual_seed(1)) * 0.6 - 0.3
    pixels = in_pixels(flow)[0].numpy()
    y, x = np.mgrid[:12, :16].astype(np.float32)
    moved = cv2.remap(
        source[0].permute(1, 2, 0).numpy(),
        x + pixels[..., 0],
        y + pixels[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    # OpenCV rounds places to 1/32 px
    assert np.abs(move(source, flow)[0].permute(1, 2, 0).numpy() - moved).max() < 0.04
    assert torch.equal(move(source, flow * 0), source) or F.l1_loss(move(source, flow * 0), source) < 1e-6
    broken = flow.clone()
    broken[0, 0, 3, 4] = torch.inf
    assert int(move(source, broken).isnan().sum()) == 3
