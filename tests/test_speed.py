"""The yardstick computes the same numbers the long way, counts are right, and bad runs are refused."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from tiny_models import tiny_patch_pipeline

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import counting  # noqa: E402
import edit_speed  # noqa: E402
import pairs  # noqa: E402
import speed  # noqa: E402
import speed_counts  # noqa: E402
import yardstick  # noqa: E402
from naive import NaiveNetworks, NaiveSystem  # noqa: E402
from proxy import FULL, PROXY, TINY, make_pipeline, random_au_deltas, random_faces  # noqa: E402
from training_step import training_batch, training_losses  # noqa: E402

from magicedit.pipelines.reference_attention import ReferenceAttnProcessor, transformer_blocks  # noqa: E402

TOLERANCE = 1e-5  # relative, float32: what the issue asks for


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(TINY)


def noise(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- The yardstick ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faces", [1, 2])
@pytest.mark.parametrize("output_type", ["latent", "pt"])
def test_naive_equals_ours(pipeline, faces, output_type):
    """Six guided steps through a scheduler, from pictures to latents and to pictures."""
    (image, condition), au_delta = random_faces(TINY, faces), random_au_deltas(faces, pipeline)
    naive = NaiveSystem(pipeline)(
        image, condition, au_delta, 6, 3.0, generator=noise(), output_type=output_type
    )
    ours = pipeline(
        image,
        condition,
        au_delta,
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=noise(),
        output_type=output_type,
    ).images
    assert naive.shape == ours.shape
    assert naive.std() > 0.05
    assert speed.relative_difference(ours, naive) <= TOLERANCE


def test_naive_equals_ours_with_scaled_noise():
    """Euler's initial noise and model inputs are scaled."""
    pipeline = make_pipeline(TINY)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    (image, condition), au_delta = random_faces(TINY), random_au_deltas(1, pipeline)
    naive = NaiveSystem(pipeline)(image, condition, au_delta, 4, generator=noise(), output_type="latent")
    ours = speed.edit_face(pipeline, image, condition, au_delta, "4", generator=noise(), output_type="latent")
    assert speed.relative_difference(ours, naive) <= TOLERANCE


def test_the_reference_matters_to_naive(pipeline):
    """Without the reference, or with another face's, the numbers are others by far more than rounding."""
    (images, conditions), au_delta = random_faces(TINY, 2), random_au_deltas(1, pipeline)
    naive = NaiveSystem(pipeline)

    def run(face: int, **more):
        return naive(
            images[face : face + 1],
            conditions[:1],
            au_delta,
            4,
            generator=noise(),
            output_type="latent",
            **more,
        )

    expected = run(0)
    assert speed.relative_difference(run(0, reference=False), expected) > 100 * TOLERANCE
    assert speed.relative_difference(run(1), expected) > 100 * TOLERANCE


def test_naive_computes_the_long_way(pipeline):
    """2N queries, both halves through the output projection, text projected in each step, two branches even
    for an edit of zero, the ID encoder on a doubled batch to its end."""
    system = NaiveSystem(pipeline)
    networks, seen = system.networks, {}

    def watch(name, module):
        module.register_forward_hook(
            lambda _, args, output: seen.setdefault(name, []).append(tuple(output.shape))
        )

    block = transformer_blocks(networks.denoiser)["down_blocks.0.attentions.0.transformer_blocks.0"]
    watch("query", block.attn1.to_q)
    watch("projected", block.attn1.to_out[0])
    watch("text", block.attn2.to_k)
    watch("encoder's end", networks.id_encoder.conv_out)
    image, condition = random_faces(TINY)
    system(image, condition, torch.zeros(1, 12), 3, generator=noise())
    tokens = (TINY.resolution // 8) ** 2
    assert seen["query"] == seen["projected"] == [(2, 2 * tokens, 16)] * 3
    assert seen["text"] == [(2, TINY.text_tokens, 16)] * 3
    assert seen["encoder's end"] == [(2, 4, 8, 8)]


def test_naive_shares_weights_and_leaves_the_pipeline_alone(pipeline):
    networks = NaiveNetworks(pipeline)
    theirs, ours = dict(networks.denoiser.named_parameters()), dict(pipeline.unet.named_parameters())
    assert theirs.keys() == ours.keys()
    assert all(theirs[name] is ours[name] for name in ours)
    for block in transformer_blocks(pipeline.unet).values():
        assert isinstance(block.attn1.processor, ReferenceAttnProcessor)
        assert not block.norm1._forward_pre_hooks


def test_naive_refuses_other_models():
    with pytest.raises(ValueError, match="predicts the noise of a VAE's latents"):
        NaiveSystem(tiny_patch_pipeline())
    with pytest.raises(ValueError, match="more channels"):
        NaiveNetworks(tiny_patch_pipeline(concat_identity=True))


def test_training_has_the_same_loss_and_gradients():
    """Naive, exact, and the denoiser's part of exact with cached features."""
    pipeline = make_pipeline(TINY)
    batch = training_batch(TINY, pipeline.scheduler, 2, 12, torch.device("cpu"))
    found = {}
    for name, (loss, parameters) in training_losses(pipeline, batch, torch.float32).items():
        value = loss()
        value.backward()
        gradients = {key: x.grad.clone() for key, x in pipeline.unet.named_parameters() if x.grad is not None}
        found[name] = (float(value.detach()), gradients, sum(x.grad is not None for x in parameters))
        for unet in (pipeline.unet, pipeline.reference_unet):
            unet.zero_grad(set_to_none=True)
    loss, gradients, _ = found["naive"]
    for name in ("exact", "cached"):
        assert found[name][0] == pytest.approx(loss, rel=TOLERANCE)
        for key, gradient in gradients.items():
            # A sum over tokens and layers in another order: ten times the rounding of one result
            assert speed.relative_difference(found[name][1][key], gradient) <= 10 * TOLERANCE, key
    assert found["exact"][2] == found["naive"][2] > found["cached"][2] == len(gradients)


# --- Counting -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [FULL, PROXY], ids=["full", "proxy"])
def test_flop_ratio(size):
    """The naive branch costs 1.324 of the cached one, at full size and at the proxy's."""
    found = speed_counts.branch_flops(size)
    assert found["naive"] / found["cached"] == pytest.approx(1.324, abs=0.005)
    assert found["naive"] > found["trimmed"] > found["cached"]
    if size is FULL:
        for name in ("naive", "trimmed", "cached"):
            stated = speed_counts.ISSUE_TFLOP[f"{name} branch"]
            assert found[name] / 1e12 == pytest.approx(stated, abs=0.0005)
        encoder = "ID encoder, batch 1, cut off"
        assert found[encoder] / 1e12 == pytest.approx(speed_counts.ISSUE_TFLOP[encoder], abs=0.005)


def test_edits_add_up():
    """Hand-made costs, in which each figure has its own decimal place."""
    cost = {
        "naive step": 10.0,
        "guided step": 4.0,
        "single step": 2.0,
        "projections": 1.0,
        "ID encoder, batch 2, whole": 30.0,
        "ID encoder, batch 1, cut off": 9.0,
        "VAE encode": 100.0,
        "VAE decode": 1000.0,
        "tiny decode": 50.0,
    }
    found = speed_counts.edits_from(cost)
    assert found == {
        "50 guided steps, naive": 1730.0,
        "50 guided steps, exact": 1410.0,
        "10 guided steps": 1250.0,
        "10 steps, half of them guided": 1240.0,
        "4 steps, guidance in the weights": 1218.0,
        "4 steps, tiny decoder": 268.0,
        "4 steps, tiny decoder, each of 25 AUs": 66.4,
    }


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta")


def test_the_meter_counts_what_pytorch_counts():
    pipeline = make_pipeline(TINY, device="meta")
    networks = NaiveNetworks(pipeline)
    prompt = meta(1, TINY.text_tokens, TINY.text_width)

    def run():
        features = networks.encode_identity(meta(2, 4, 8, 8), prompt)
        networks.predict_noise(
            meta(2, 4, 8, 8), meta(2, 4, 8, 8), torch.zeros((), device="meta"), prompt, meta(2, 12), features
        )

    meter = speed_counts.metered(run)
    with torch.no_grad():
        assert meter.flops == counting.flops(run) > 0
    assert meter.live == 0
    assert 0 < meter.peak < meter.bytes


def test_the_meter_sees_what_is_alive():
    with counting.Meter() as meter:
        first = meta(1000)
        del first
        second = meta(500)
        third = second + second  # the most: 1000 values, at 4 bytes
        view = third.view(50, 10).t()
        del second, third
        assert (meter.live, meter.peak) == (2000, 4000)
        view.mul_(2)
        assert meter.live == 2000
    assert [(o.name, o.bytes) for o in meter.operators] == [("add", 6000), ("mul_", 2000)]


def test_attention_is_one_operator_and_keeps_no_matrix():
    query = torch.empty(1, 2, 64, 8, device="meta", requires_grad=True)
    key = torch.empty(1, 2, 128, 8, device="meta", requires_grad=True)
    with counting.Meter() as meter:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, key)
        assert out.shape == query.shape
        assert meter.peak == out.numel() * 4
        out.sum().backward()
    work = {o.name: o.flops for o in meter.operators}
    assert work["attention"] == 4 * 2 * 64 * 128 * 8
    assert work["attention backward"] == 2.5 * work["attention"]
    assert key.grad.shape == key.shape


def test_roofline():
    device = counting.Device("test", bfloat16=100.0, tf32=10.0, bandwidth=5.0, source="")
    operators = [
        counting.Operator("bound by arithmetic", 1000, 10, torch.bfloat16),
        counting.Operator("bound by memory", 0, 20, torch.bfloat16),
        counting.Operator("the same in TF32", 1000, 10, torch.float32),
    ]
    assert counting.roofline_seconds(operators, device) == pytest.approx(10 + 4 + 100)


# --- Timing -------------------------------------------------------------------------------------------------


def test_passes_go_forwards_and_backwards():
    order = []

    def arm(name, seconds):
        def run():
            order.append(name)
            return seconds

        return run

    arms = {"naive": arm("naive", 3.0), "fast": arm("fast", 1.0)}
    seconds = pairs.interleave(arms, 15, repeated="fast")
    assert order[:2] == ["naive", "fast"]  # warming up
    assert order[2:8] == ["fast", "naive", "fast", "fast", "naive", "fast"]
    assert {len(values) for values in seconds.values()} == {16}
    found = pairs.compare(seconds, "naive", "fast")
    assert found["ratios"]["fast"]["median"] == 3.0
    assert found["control"]["median"] == 1.0
    assert found["control"]["of"] == "fast"
    order.clear()
    pairs.interleave({"a": arm("a", 1.0), "b": arm("b", 1.0)}, 16, warmup=0)
    assert order[:6] == ["a", "b", "a", "a", "b", "a"]


def test_a_drift_of_the_machine_cancels():
    """A machine that slows by 1 % a run: forwards the later arm looks slow, backwards the earlier one."""
    clock = iter(1.01**n for n in range(1000))
    arms = {"naive": lambda: 2 * next(clock), "fast": lambda: next(clock)}
    found = pairs.compare(pairs.interleave(arms, 20), "naive")
    assert found["control"]["median"] == pytest.approx(1, abs=0.001)
    assert found["ratios"]["fast"]["median"] == pytest.approx(2, abs=0.001)


def test_too_few_passes_are_refused():
    with pytest.raises(ValueError, match="15 passes or more, got 14"):
        pairs.interleave({"a": lambda: 1.0}, 14)


@pytest.mark.parametrize(("factor", "kept"), [(1.0, True), (1.029, True), (1.04, False), (0.96, False)])
def test_a_run_with_a_bad_control_is_discarded(factor, kept):
    seconds = {"naive": [factor] * 16, "fast": [0.5] * 16, pairs.CONTROL: [1.0] * 16}
    if kept:
        assert pairs.compare(seconds, "naive")["pairs"] == 16
    else:
        with pytest.raises(pairs.DiscardedRun, match="the same code against itself"):
            pairs.compare(seconds, "naive")


def test_a_control_that_is_no_number_is_discarded():
    with pytest.raises(pairs.DiscardedRun):
        pairs.check_control([float("nan")] * 16)


def test_interval_of_the_median():
    """Binomial order statistics give the median of 101 values an interval of ranks 41 to 61 at 95 %."""
    values = np.random.default_rng(1).permutation(101)
    low, high = pairs.median_interval(values)
    assert low == pytest.approx(40, abs=2)
    assert high == pytest.approx(60, abs=2)
    assert pairs.median_interval([2.0] * 15) == (2.0, 2.0)
    assert pairs.median_interval(values) == (low, high)  # seeded


# --- Rows ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch):
    """Two passes whatever the control says: what is tested is the row, not the time."""
    monkeypatch.setattr(pairs, "FEWEST_PASSES", 2)
    monkeypatch.setattr(pairs, "CONTROL_TOLERANCE", float("inf"))
    return {"size": "tiny", "passes": 2}


@pytest.mark.parametrize(
    ("row", "changes", "arms"),
    [
        ("step", {"batch": 2}, {"naive", "exact"}),
        ("edit", {"settings": ("2",), "naive_steps": 4}, {"naive", "2"}),
        (
            "edit",
            {"variants": 3, "at_once": 2, "naive_steps": 3},
            {"naive", *speed.EDIT_SETTINGS, "sweep fast", "sweep distilled-fast"},
        ),
        ("train", {"batch": 2}, {"naive", "exact", "cached"}),
    ],
)
def test_rows_are_well_formed(hurried, row, changes, arms):
    setup = speed.Setup(**hurried, **changes)
    found = speed.ROWS[row](setup)
    assert found["kind"] == "measured"
    assert set(found["seconds"]) == arms | {pairs.CONTROL}
    assert set(found["ratios"]) == arms - {"naive"}
    assert min(min(s["all"]) for s in found["seconds"].values()) > 0
    assert found["size"] == "tiny"
    json.dumps(found)
    if "2" in arms:  # two steps of four, each at less than naive's cost
        assert found["tflop"]["2"] < 0.75 * found["tflop"]["naive"]
    assert speed.Setup(**changes).key(row).startswith(row)


def test_keys_of_set_ups_differ():
    keys = {
        speed.Setup(**changes).key("step")
        for changes in ({}, {"size": "full"}, {"device": "cuda"}, {"batch": 8}, {"settings": ("10",)})
    }
    assert keys == {"step", "step-full", "step-cuda", "step-batch8", "step-10"}


def test_a_wrong_fast_path_is_no_row(hurried, monkeypatch):
    """Where the numbers differ, there is nothing to compare."""
    right = speed.edit_face
    monkeypatch.setattr(speed, "edit_face", lambda *args, **more: right(*args, **more) * 1.001)
    with pytest.raises(SystemExit, match="must agree within 1e-05"):
        speed.step_row(speed.Setup(**hurried))


def test_settings(pipeline):
    assert speed.chosen(pipeline, "live") == (pipeline, {"quality": "live"})
    exact = {"quality": "exact", "num_inference_steps": 7, "guidance_scale": speed.GUIDANCE}
    assert speed.chosen(pipeline, "7") == (pipeline, exact)
    student, arguments = speed.chosen(pipeline, "distilled-balanced")
    assert student.unet is pipeline.unet
    assert student.sampling(**arguments).steps == speed_counts.DISTILLED_STEPS
    assert student.sampling(**arguments).guidance_scale == 1.0


def test_a_discarded_run_writes_nothing(tmp_path, monkeypatch, capsys):
    """Rows with a good control are merged beside what is there, the others leave it as it is."""
    output, control = tmp_path / "speed.json", 1.0
    output.write_text('{"other": {"kept": true}}')

    def row(setup):
        return pairs.compare(
            {"naive": [2.0] * 16, "exact": [1.0] * 16, pairs.CONTROL: [2.0 * control] * 16}, "naive"
        )

    monkeypatch.setitem(speed.ROWS, "step", row)
    monkeypatch.setattr(sys, "argv", ["benchmarks/speed.py", "step", "-o", str(output)])
    speed.main()
    written = json.loads(output.read_text())
    assert written["other"] == {"kept": True}
    assert written["step"]["ratios"]["exact"]["median"] == 2.0
    assert written["step"]["command"] == "python benchmarks/speed.py step -o speed.json"
    assert written["step"]["threads"] == torch.get_num_threads()

    control = 1.1
    before = output.read_bytes()
    with pytest.raises(SystemExit) as error:
        speed.main()
    assert error.value.code == speed.DISCARDED
    assert output.read_bytes() == before
    assert "Nothing is written" in capsys.readouterr().err


# --- What people wait for, and the published system's code --------------------------------------------------


def test_photographs_show_as_many_faces_as_they_say():
    from magicedit.faces import load_backend

    photograph = np.asarray(edit_speed.PHOTOGRAPHS["nine_1536.png"]())
    assert len(load_backend("mediapipe").detect(photograph)) == 9


def test_a_command_has_its_own_peak_of_memory(tmp_path):
    """Not that of the process that started it, which the kernel would report."""
    here = np.ones(200_000_000, np.uint8)  # bytes
    figures = edit_speed.run_command([sys.executable, "-S", "-c", "b'x' * 50_000_000"], BENCHMARKS, tmp_path)
    assert 50 < figures["peak_mb"] < 200 == here.nbytes / 1e6
    assert 0 < figures["seconds"] < 5
    failing = [sys.executable, "-S", "-c", "raise SystemExit('no such thing')"]
    with pytest.raises(SystemExit, match="no such thing"):
        edit_speed.run_command(failing, BENCHMARKS, tmp_path)


def test_a_checkout_is_imported_whole(tmp_path):
    """With its own pipelines/ and train/, not those that are installed."""
    checkout = tmp_path / "checkout"
    for name in ("magicedit", "pipelines", "train"):
        (checkout / name).mkdir(parents=True)
        (checkout / name / "__init__.py").write_text(f"what = {name!r}")
    folder = edit_speed.importable(checkout, tmp_path / "before")
    code = (
        "import magicedit as m, magicedit.pipelines as p, magicedit.train as t; print(m.what, p.what, t.what)"
    )
    command = {"args": [sys.executable, "-c", code], "env": edit_speed.environment(folder), "cwd": tmp_path}
    done = subprocess.run(**command, capture_output=True, text=True)
    assert done.stdout.split() == ["magicedit", "pipelines", "train"], done.stderr


def test_the_yardstick_names_what_it_needs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks/yardstick.py", "--published", str(tmp_path)])
    with pytest.raises(SystemExit):
        yardstick.main()
    assert "must be a checkout of MagicFace, with mgface/pipelines_mgface" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["edit_speed", "yardstick"])
def test_committed_lines_follow_from_their_runs(name):
    for row in committed(name).values():
        assert row["command"].startswith(f"python benchmarks/{name}.py")
        assert row["date"]
        assert row["hardware"]["cores"]
        assert row["versions"]["torch"]
        if "ratios" in row:
            assert abs(row["control"]["median"] - 1) <= pairs.CONTROL_TOLERANCE
            seconds = {arm: about["all"] for arm, about in row["seconds"].items()}
            for arm, found in row["ratios"].items():
                ratios = [a / b for a, b in zip(seconds[row["baseline"]], seconds[arm], strict=True)]
                assert found["median"] == pytest.approx(statistics.median(ratios), rel=1e-3)
    assert "/tmp" not in json.dumps(committed(name))


def committed(name: str = "speed") -> dict:
    return json.loads((BENCHMARKS / f"{name}.json").read_text())


def test_committed_rows_say_how_they_came_about():
    for row in committed().values():
        assert row["kind"] in ("measured", "counted", "simulated")
        assert row["command"].startswith("python benchmarks/speed.py")
        assert row["date"]
        assert row["hardware"]["cores"]
        assert row["versions"]["torch"]
        assert row["threads"]
    assert "/tmp" not in json.dumps(committed())


def test_committed_ratios_follow_from_their_times():
    for row in committed().values():
        if "ratios" not in row or row["kind"] != "measured":
            continue
        seconds = {name: about["all"] for name, about in row["seconds"].items()}
        assert row["pairs"] == len(seconds[row["baseline"]]) >= pairs.FEWEST_PASSES
        assert abs(row["control"]["median"] - 1) <= pairs.CONTROL_TOLERANCE
        for name, found in row["ratios"].items():
            ratios = [a / b for a, b in zip(seconds[row["baseline"]], seconds[name], strict=True)]
            assert found["median"] == pytest.approx(statistics.median(ratios), rel=1e-3)
            assert found["low"] <= found["median"] <= found["high"]


def test_committed_counts_agree_with_the_issue():
    """All that the issue states, to its own last digit; none of it is copied into the counted figures."""
    row = committed()["flops"]
    assert set(row["tflop"]) >= set(speed_counts.ISSUE_TFLOP)
    assert row["differs_from_the_issue"] == {}
    for name, stated in speed_counts.ISSUE_TFLOP.items():
        decimals = len(str(stated).partition(".")[2])
        assert abs(row["tflop"][name] - stated) <= 0.5 * 10**-decimals + 1e-9, name
