"""The plan of `benchmarks/plan.py` by hand, from costs of single items that are round."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import plan  # noqa: E402

STEP = {"tflop": {"sd15": 5.0, "sd15-lora": 4.0}, "encoding_tflop": 1.0, "weights": 10**9}
ITEMS = {"prepare_seconds": 0.064, "bytes": 80_000, "pair_seconds": 0.01}
MEMORY = {"sd15": {"reserved_mb": 40_000}, "sd15-lora": {"reserved_mb": 10_000}}


def test_totals_by_hand():
    total = plan.plan(STEP, ITEMS, MEMORY)
    assert total["prepare_seconds"] == pytest.approx(1000)  # a million, 64 ms each, on 64 cores
    assert total["dataset_bytes"] == 80e9
    assert total["latent_bytes"] == 1e6 * 131_072  # two of 4 x 64 x 64 numbers of 4 bytes
    assert total["pairs"] == 6_400_000
    assert total["flops"] == 32e18
    assert total["A100_fast_seconds"] == pytest.approx(32e18 / (312e12 * 0.4 * 8))
    assert total["H100_slow_seconds"] == pytest.approx(32e18 / (989.4e12 * 0.25 * 8))
    assert total["H100_cores"] == pytest.approx(989.4e12 * 0.4 * 8 / 5e12 * 0.01)
    assert total["checkpoint_bytes"] == 16e9
    assert total["sharded_bytes"] == 40e9 - 20e9 * 7 / 8
    assert total["lora_fast_seconds"] == pytest.approx(50_000 * 8 * 4e12 / (165.2e12 * 0.4))


def test_the_scale_is_that_of_the_recipes():
    from magicedit.train.config import parse_config
    from magicedit.train.throughput import published_peak

    named = ["--pretrained_model_name_or_path=-", "--train_data_dir=-"]
    full, lora = (parse_config(["--config", name, *named]) for name in ("sd15", "sd15-lora"))
    assert (full.max_train_steps, full.train_batch_size) == (plan.STEPS, plan.BATCH)
    assert full.gradient_accumulation_steps == 1
    assert lora.max_train_steps == plan.LORA["steps"]
    assert lora.train_batch_size * lora.gradient_accumulation_steps == plan.LORA["pairs"]
    names = {
        "A100": "NVIDIA A100-SXM4-80GB",
        "H100": "NVIDIA H100 80GB HBM3",
        "RTX 4090": "NVIDIA GeForce RTX 4090",
    }
    peaks = {name: published_peak(long).half * 1e12 for name, long in names.items()}
    assert peaks == {**plan.PEAKS, plan.LORA["device"]: plan.LORA["peak"]}


def test_the_table_names_every_cost():
    table = plan.plan_table({"step": STEP, "items": ITEMS}, MEMORY)
    assert "| prepare 1,000,000 photographs on 64 cores | 17 min | 64 ms of one core a photograph" in table
    assert "| dataset at 512 px | 80 GB | 80 kB a photograph |" in table
    assert "| training on 8 A100 | 9 h to 14 h | assumed: 25% to 40% of 312 TFLOP/s |" in table
    assert "without them (`--no_cache_latents`) a pair costs 3.0 TFLOP more" in table


def test_committed_costs_say_where_they_come_from():
    content = json.loads((BENCHMARKS / "plan.json").read_text())
    for row, kind in (("step", "counted"), ("items", "measured")):
        assert content[row]["kind"] == kind
        assert content[row]["command"].startswith(f"python benchmarks/plan.py {row}")
        assert content[row]["hardware"]["cores"]
