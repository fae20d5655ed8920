"""What the log says of speed: pictures a second, waiting for data, model FLOP utilisation."""

import json
import sys

import pytest
import torch
from tiny_models import tiny_patch_pipeline, tiny_stable_diffusion
from torch.utils.checkpoint import checkpoint

from magicedit.errors import TrainingError
from magicedit.train import compiled, throughput
from magicedit.train.config import parse_config
from magicedit.train.loop import Run, train
from magicedit.train.throughput import StepFlops, Throughput, peak_flops, published_peak, uncounted


def log(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


# --- FLOPs of a step ----------------------------------------------------------------------------------------


def flops_of(call, **options) -> int:
    with StepFlops(**options) as counter:
        call()
    return counter.total


def test_products_count_forward_and_backward():
    layer, rows = torch.nn.Linear(8, 16), torch.randn(4, 8, requires_grad=True)
    product = 2 * 4 * 8 * 16
    assert flops_of(lambda: layer(rows)) == product
    assert flops_of(lambda: layer(rows).sum().backward()) == 3 * product
    with torch.no_grad():
        assert flops_of(lambda: layer(rows)) == product
    queries = torch.randn(1, 2, 64, 16, requires_grad=True)
    attention = 2 * 2 * 2 * 64 * 64 * 16  # two products of two heads

    def attend():
        torch.nn.functional.scaled_dot_product_attention(queries, queries, queries).sum().backward()

    assert flops_of(attend) == attention * 7 // 2  # the backward pass makes five products


def test_what_checkpointing_repeats_is_not_work_of_the_model():
    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
    rows = torch.randn(4, 8, requires_grad=True)

    def plain():
        layers(rows).sum().backward()

    def repeating():
        checkpoint(layers, rows, use_reentrant=False).sum().backward()

    assert flops_of(repeating, recomputes=True) == flops_of(plain) == flops_of(plain, recomputes=True)
    assert flops_of(repeating) > flops_of(plain)


def test_what_a_cache_keeps_is_not_counted():
    layer, rows = torch.nn.Linear(8, 8), torch.randn(4, 8)

    def step(**options):
        with uncounted(**options):
            layer(rows)

    assert flops_of(step) == 0
    assert flops_of(lambda: step(really=False)) == flops_of(lambda: layer(rows)) > 0


def test_a_step_has_the_same_losses_while_it_is_counted(tiny_flags, tmp_path):
    steps = []
    for name in ("counted", "plain"):
        run = Run(parse_config(tiny_flags(tmp_path / name, "--max_train_steps", "1")))
        if name == "counted":
            with StepFlops() as counter:
                steps.append(run._train_step(run._batches()))
            assert counter.total > 0
        else:
            steps.append(run._train_step(run._batches()))
    assert steps[0] == steps[1]


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


def step_flops(run: Run) -> int:
    """As the loop counts those of a step."""
    recomputes = run.config.gradient_checkpointing
    with StepFlops(recomputes) as counter:
        run._train_step(run._batches())
    return counter.total


def test_the_count_is_of_the_work_not_of_how_it_is_done(pairs_folder, sd_folder, tmp_path):
    """Twice the pictures are twice the work; what is computed again is none, nor what a cache keeps."""

    def flops(name, *more):
        flags = [f"--pretrained_model_name_or_path={sd_folder}", f"--train_data_dir={pairs_folder}"]
        flags += [f"--output_dir={tmp_path / name}", "--resolution=64", "--validation_steps=0"]
        return step_flops(Run(parse_config([*flags, "--max_train_steps=1", "--train_batch_size=2", *more])))

    once = flops("once")
    assert flops("twice", "--gradient_accumulation_steps=2") == 2 * once
    # A backward pass that repeats layers projects the text for every picture, not once for all
    assert flops("repeated", "--gradient_checkpointing") == pytest.approx(once, rel=0.05)
    assert flops("frozen", "--freeze_reference", "--reference_cache_gb=0") < once
    assert flops("cached", "--freeze_reference") < flops("every", "--freeze_reference", "--augment")


def test_compiled_networks_are_counted_as_they_are_without(tiny_flags, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    monkeypatch.setenv("CXX", sys.executable)
    torch._dynamo.reset()
    tiny_patch_pipeline().save_pretrained(tmp_path / "base")
    base = ("--pretrained_model_name_or_path", str(tmp_path / "base"), "--train_batch_size=1")
    runs = [
        Run(parse_config(tiny_flags(tmp_path / name, *base, "--max_train_steps=1", *more)))
        for name, more in (("eager", ()), ("compiled", ("--compile",)))
    ]
    before = [parameter.grad for parameter in runs[1].parameters]
    assert runs[1]._compiled_flops() == step_flops(runs[0])
    assert [parameter.grad for parameter in runs[1].parameters] == before == [None] * len(before)
    torch._dynamo.reset()


# --- The clock ----------------------------------------------------------------------------------------------


def test_shares_are_of_the_time_of_training_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])

    def work(seconds):
        now[0] += seconds

    def batches():
        for number in range(4):
            work(1.0)
            yield number

    peaks = []
    speed = Throughput(batches(), images=6, peak=lambda: peaks.append(work(7.0)) or 100.0, flops=50)
    for _ in range(2):
        with speed.step():
            next(speed.batches)
            work(3.0)
        with speed.paused():  # such as a preview
            work(20.0)
    assert speed.values() == {"images_per_second": 6 * 2 / 8, "data_share": 2 / 8, "mfu": 50 * 2 / 8 / 100}
    with speed.step():
        next(speed.batches)
    assert speed.values() == {"images_per_second": 6.0, "data_share": 1.0, "mfu": 0.5}
    assert len(peaks) == 1


def test_the_log_has_utilisation_of_the_stated_peak(tiny_flags, tmp_path):
    """It and pictures a second differ by a step's FLOPs a picture, divided by the peak: always the same."""
    flags = ("--max_train_steps=4", "--logging_steps=2", "--peak_tflops=0.02", "--validation_steps=3")
    train(parse_config(tiny_flags(tmp_path / "run", *flags)))
    flops = step_flops(Run(parse_config(tiny_flags(tmp_path / "again", *flags))))
    lines = [line for line in log(tmp_path / "run") if "mfu" in line]
    assert [line["step"] for line in lines] == [2, 4]
    for line in lines:
        assert line["mfu"] / line["images_per_second"] == pytest.approx(flops / 2 / 0.02e12, rel=1e-4)
        assert 0 < line["data_share"] < 1


# --- The peak -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_published_peaks_are_found_by_the_drivers_names(name, half):
    assert published_peak(name).half == half


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "",
    ],
)
def test_slices_and_lesser_versions_have_none(name):
    assert published_peak(name) is None


def test_an_unknown_device_is_measured(caplog):
    with caplog.at_level("INFO"):
        found = peak_flops(torch.device("cpu"), torch.float32)
    assert found > 1e8
    assert "measured by products of 1024 x 1024 float32; state the peak with --peak_tflops" in caplog.text
    assert peak_flops(torch.device("cpu"), torch.float32, stated=2.5) == 2.5e12


def test_a_peak_of_nothing_is_refused(tiny_flags, tmp_path):
    with pytest.raises(TrainingError, match=r"--peak_tflops must be above 0, or none, got 0"):
        parse_config(tiny_flags(tmp_path, "--peak_tflops=0"))
