"""Key frames: where the model runs, and the changes in between."""

import numpy as np
import pytest
from conftest import write_video
from test_edit import SMILE, maker

from magicedit.change import Change
from magicedit.errors import VideoError
from magicedit.video import KeyFrames, VideoSettings
from magicedit.video.keyframes import KeyedChanges
from magicedit.video.settings import DEFAULTS
from magicedit.video.writing import Encoding

# Whether it is drawn on every frame, without the model
CONTROLS = {"AU12": False, "AU12L": False, "AU5": False, "AU43": True, "AU43R": True, "head_yaw": True}


def constant(value: float, size: int = 2) -> Change:
    shapes = (size, size, 2), (size, size), (size, size, 3)
    return Change(*(np.full(shape, value, np.float32) for shape in shapes))


def run(keyed: KeyedChanges, times, values, present=None, first: int = 0) -> tuple[list[int], dict]:
    """Key frames and filled flows of a batch whose change and whose one landmark are `values`."""
    runs = {i: 0 for i in range(len(times)) if present is None or present[i]}
    positions = {i: keyed.settings.position(np.full((1, 2), values[i]), np.zeros(1)) for i in runs}
    keys = keyed.plan(0, runs, times, positions)
    changes = {i: constant(values[i]) for i in keys}
    filled = keyed.fill(0, runs, times, positions, changes)
    return keys, {first + i: change.flow[0, 0, 0] for i, change in filled.items()}


def test_key_frames_are_so_far_apart_where_nothing_bends():
    keys = KeyFrames(most=4).choose(range(17), np.zeros((17, 3)))
    assert keys == [0, 4, 8, 12, 16]
    assert KeyFrames(most=1).choose(range(5), np.zeros((5, 3))) == [0, 1, 2, 3, 4]


def test_a_frame_beyond_the_tolerance_is_a_key_frame():
    path = np.zeros((9, 2))
    path[3] = 1.6
    assert KeyFrames(most=8).choose(range(9), path) == [0, 2, 3, 4, 8]
    path[3] = 0.9
    assert KeyFrames(most=8).choose(range(9), path) == [0, 8]
    assert KeyFrames(most=8).choose([0, 1, 9], np.array([[0.0], [9.0], [81.0]])) == [0, 2]  # straight in time


def test_settings_that_choose_no_frames_are_refused():
    for wrong in ({"most": 0}, {"landmarks": 0.0}, {"request": float("nan")}):
        with pytest.raises(VideoError, match="at least 1 and tolerances above 0"):
            KeyFrames(**wrong)


def test_changes_between_key_frames_are_interpolated_in_time():
    times, values = [0.0, 0.1, 0.4, 0.5], [1.0, 1.0, 1.0, 2.0]
    keys, flows = run(KeyedChanges(KeyFrames(landmarks=10.0)), times, values)
    assert keys == [0, 3]
    assert [*flows.values()] == pytest.approx([1.0, 1.2, 1.8, 2.0])


def test_batches_continue_from_the_key_frame_before_also_after_a_stop():
    settings = KeyFrames(landmarks=10.0)
    whole = KeyedChanges(settings)
    run(whole, [0.0, 0.1], [0.0, 1.0])
    resumed = KeyedChanges(settings)
    resumed.restore(whole.state())
    for keyed in (whole, resumed):
        keys, flows = run(keyed, [0.2, 0.3, 0.4], [5.0, 5.0, 4.0])
        assert keys == [2]
        assert [*flows.values()] == pytest.approx([2.0, 3.0, 4.0])


def test_nothing_is_interpolated_across_a_gap():
    keyed = KeyedChanges(KeyFrames(landmarks=10.0))
    keys, flows = run(keyed, [0, 1, 2, 3, 4, 5], [0.0, 9.0, 0.0, 0.0, 6.0, 8.0], [1, 1, 1, 0, 1, 1])
    assert keys == [0, 2, 4, 5]
    assert flows == {0: 0.0, 1: 0.0, 2: 0.0, 4: 6.0, 5: 8.0}
    assert run(keyed, [6, 7], [1.0, 1.0], [0, 1])[0] == [1]
    assert run(keyed, [8, 9, 10], [1.0, 1.0, 1.0])[0] == [2]


def test_a_film_of_key_frames_looks_like_one_of_every_frame(tmp_path, editor, moving):
    source = write_video(tmp_path / "in.mp4", moving(16))
    frames, runs = {}, {}
    for most in (1, 4):
        made = maker(editor, source, tmp_path, SMILE)
        made.keyed = KeyedChanges(KeyFrames(most=most))
        asked, changes = [], made.changes
        made.changes = lambda cuts, requests, asked=asked, changes=changes: (
            asked.extend(requests) or changes(cuts, requests)
        )
        frames[most] = np.array([planes for _, planes in made.frames(0)], int)
        runs[most] = len(asked)
    assert runs[1] == 16
    assert runs[4] < 10
    unedited = np.array([planes for _, planes in maker(editor, source, tmp_path, {}).frames(0)], int)
    off = np.abs(frames[1] - frames[4])
    assert 0 < off.mean() < 0.05 * np.abs(frames[1] - unedited).mean()


def test_what_is_drawn_on_every_frame_needs_no_key_frames(tmp_path, editor, moving):
    made = maker(editor, write_video(tmp_path / "in.mp4", moving(2)), tmp_path, SMILE)
    drawn = {name: np.array_equal(made.position({name: 5.0}), made.position({})) for name in CONTROLS}
    assert drawn == CONTROLS


def test_the_quality_decides_what_is_not_set():
    for quality, preset, most in (
        ("fast", "veryfast", 4), ("live", "veryfast", 4),
        ("balanced", "fast", 1), ("exact", "fast", 1), (None, "fast", 1),
    ):  # fmt: skip
        settings = DEFAULTS.resolved(quality)
        assert (settings.encoding.preset, settings.key_frames.most) == (preset, most)
    own = VideoSettings(encoding=Encoding(preset="slow"), key_frames=KeyFrames(most=2)).resolved("fast")
    assert (own.encoding.preset, own.key_frames.most) == ("slow", 2)
