"""The campaign of attacks, its short form: everything that is tried holds."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import campaign  # noqa: E402  from benchmarks/


@pytest.mark.parametrize("section", campaign.names())
def test_attacks_hold(section):
    row = campaign.run_section(f"attacks.{section}", campaign.SEED, short=True)
    assert row["tried"] > 0
    assert row["failures"] == {}


def test_what_does_not_hold_is_counted(tmp_path, monkeypatch):
    """Errors, wrong results, dead processes, and attacks that take too long, each; the next one is tried."""
    (tmp_path / "hostile.py").write_text(
        "import os, time\n"
        "from attacks import Attack, typed\n"
        "TITLE = 'Hostile'\n"
        "def attacks(seed, short):\n"
        "    return [\n"
        "        Attack('held', lambda folder: None),\n"
        "        Attack('wrong', lambda folder: 'it opened'),\n"
        "        Attack('error', lambda folder: 1 / 0),\n"
        "        Attack('untyped', lambda folder: typed(lambda: int('x'))),\n"
        "        Attack('exit', lambda folder: typed(lambda: exit(1))),\n"
        "        Attack('dead', lambda folder: os._exit(3)),\n"
        "        Attack('late', lambda folder: time.sleep(60), seconds=0.05),\n"
        "        Attack('memory', lambda folder: bytearray(100_000_000) and None, megabytes=50),\n"
        "        Attack('held too', lambda folder: None),\n"
        "    ]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    row = campaign.run_section("hostile", 0, short=True)
    assert (row["title"], row["tried"], row["held"]) == ("Hostile", 9, 2)
    assert set(row["failures"]) == {"wrong", "error", "untyped", "exit", "dead", "late", "memory"}
