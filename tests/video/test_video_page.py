"""benchmarks/video.json holds what videos are to reach; that docs/video.md says it, test_readme.py checks."""

import json
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


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
