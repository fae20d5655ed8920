"""docs/video.md says what benchmarks/video.json holds, and that holds what videos are to reach."""

import importlib.util
import json
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def benchmark():
    path = REPOSITORY / "benchmarks" / "video.py"
    spec = importlib.util.spec_from_file_location("video_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_file(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    page = (REPOSITORY / "docs" / "video.md").read_text()
    copy = tmp_path / "video.md"
    copy.write_text(page.replace("1.0", "9.9"))
    benchmark().fill(copy, json.loads((REPOSITORY / "benchmarks" / "video.json").read_text()))
    assert copy.read_text().replace("9.9", "1.0") == page


def test_what_was_measured_is_what_was_to_be_reached():
    measured = json.loads((REPOSITORY / "benchmarks" / "video.json").read_text())
    for part in measured.values():
        assert part["command"].startswith("python benchmarks/video.py")
        assert part["hardware"]["cores"] == 2
    long, short = measured["speed"]["long, fast"], measured["speed"]["short, fast"]
    assert long["frames_per_second"] > 4
    assert long["peak_rss_mb"] < 2000
    assert long["peak_rss_mb"] < 1.1 * short["peak_rss_mb"]
    assert long["frames"] == 8 * short["frames"]
    done = [row["ratio"] for row in measured["flicker"]["rows"] if row["smoothed"] == "both"]
    assert len(done) == 12
    assert max(done) < 1.2
    assert measured["resume"]["equal_decoded_frames"] == measured["resume"]["frames"]
