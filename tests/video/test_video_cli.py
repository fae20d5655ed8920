"""`magicedit video` and `reenact` on the command line: results on stdout, one line for what is wrong."""

import json

import numpy as np
import pytest
from conftest import SIDE, read_pictures, write_video
from PIL import Image

from magicedit.cli import main
from magicedit.cli.video import ProgressLine, clock
from magicedit.models import PatchModelConfig, create_patch_pipeline
from magicedit.video import Progress


@pytest.fixture(scope="module")
def folder(tmp_path_factory, moving, portrait):
    """clip.mp4, photo.png, curve.csv and a film without a face."""
    folder = tmp_path_factory.mktemp("cli")
    write_video(folder / "clip.mp4", moving(4), sound="aac")
    write_video(folder / "empty.mp4", [np.full((SIDE, SIDE, 3), 120, np.uint8)] * 3)
    Image.fromarray(portrait).save(folder / "photo.png")
    (folder / "curve.csv").write_text("time,AU12,AU4\n0,-3,0\n0.1,-3,2\n")
    return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_video_as_json(capsys):
    words = ("video", "clip.mp4", "-o", "out.mp4", "--curve", "curve.csv", "--au", "AU1=1", "--json")
    code, out, err = run(capsys, *words)
    assert code == 0, err
    report = json.loads(out)
    assert report["frames"] == 4
    assert report["faces"][0]["frames"] == 4
    assert report["flicker"]["pairs"] == 3
    assert report["flicker"]["ratio"] > 0
    assert "looking for faces" in err
    assert "editing: 4 frames" in err
    assert len(read_pictures("out.mp4")) == 4


def test_units_are_the_models_own_whatever_its_name(folder, monkeypatch, capsys):
    """A model named like the embedded one, which has a unit that `mini` does not have and lacks others."""
    config = PatchModelConfig(action_units=("AU12", "AU7"), block_out_channels=(16, 32), resolution=64)
    create_patch_pipeline(config, seed=1).save_pretrained(folder / "mini-of-mine")
    monkeypatch.setattr("magicedit.cli.common.load_editor", lambda *_: pytest.fail("the model was loaded"))
    words = ("video", "clip.mp4", "-o", "other.mp4", "--model", "mini-of-mine", "--au")
    code, _, err = run(capsys, *words, "AU4=1")
    assert code == 2
    assert "AU4 (brow lowerer) is measured but cannot be edited here; did you mean AU7" in err
    with pytest.raises(pytest.fail.Exception, match="the model was loaded"):
        run(capsys, *words, "AU7=1")


def test_an_empty_request_is_said_before_the_work(monkeypatch, capsys):
    monkeypatch.setattr("magicedit.cli.common.load_editor", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(pytest.fail.Exception, match="the model was loaded"):
        run(capsys, "video", "clip.mp4", "-o", "other.mp4", "--quiet")
    told = "warning: nothing is requested (--au, --set, --emotion, --expression, --neutral, --curve, --key)"
    assert capsys.readouterr().err.startswith(told)


def test_reenact_as_text(capsys):
    words = (
        "reenact",
        "--source",
        "photo.png",
        "--driving",
        "clip.mp4",
        "-o",
        "alive.mp4",
        "--quality",
        "live",
    )
    code, out, err = run(capsys, *words)
    assert code == 0, err
    assert "face 1: in 4 of 4 frames" in out
    assert "alive.mp4  (4 frames" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("video none.mp4 -o out.mp4", "none.mp4 does not exist"),
        ("video photo.png -o out.mp4", "is a picture"),
        ("video clip.mp4 -o clip.mp4", "is the input"),
        ("video clip.mp4 -o none/out.mp4", "does not exist; create it"),
        ("video clip.mp4 -o out.mp4 --au AU12=1 --preset quick", "the preset must be one of ultrafast"),
        ("video clip.mp4 -o out.avi", "another suffix"),
        ("video clip.mp4 -o out.mp4 --au AU99=1", "AU99"),
        ("video clip.mp4 -o out.mp4 --key 0:AU99=1", "AU99"),
        ("video clip.mp4 -o out.mp4 --key AU12=1", "keyframe"),
        ("video clip.mp4 -o out.mp4 --curve none.csv", "none.csv does not exist"),
        ("video clip.mp4 -o out.mp4 --curve curve.csv --set AU12=1", "AU12: both set"),
        ("video clip.mp4 -o out.mp4 --curve curve.csv --key 0:AU12=1", "not allowed with"),
        ("video clip.mp4 -o out.mp4 --face some", '"all", "largest" or a number'),
        ("video empty.mp4 -o none.mp4 --au AU12=1", "no face was found in empty.mp4"),
        ("reenact --source photo.png --driving empty.mp4 -o none.mp4", "no face was found in empty.mp4"),
        ("reenact --source clip.mp4 --driving clip.mp4 -o none.mp4", "not an image"),
        ("reenact --source photo.png --driving clip.mp4 -o none.mp4 --neutral-at 99", "not visible at 99 s"),
    ],
)
def test_one_line_says_what_is_wrong(capsys, folder, words, said):
    before = sorted(path.name for path in folder.iterdir())
    try:
        code, out, err = run(capsys, *words.split())
    except SystemExit as stop:  # the parser's own
        captured = capsys.readouterr()
        code, out, err = stop.code, captured.out, captured.err
    assert code == 2
    assert out == ""
    line = err.strip().splitlines()[-1]
    assert line.startswith("magicedit: error: ")
    assert said in line
    assert sorted(path.name for path in folder.iterdir()) == before


class Stream:
    def __init__(self, terminal: bool):
        self.terminal, self.text = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_progress_for_people_and_for_logs():
    terminal, log = Stream(True), Stream(False)
    for stream in (terminal, log):
        line = ProgressLine(stream)
        line(Progress("faces", 0, None, None))
        line(Progress("frames", 0, 100, None))
        line(Progress("frames", 1, 100, 75.2))  # too soon after the last
    assert log.text == "looking for faces\nediting: 100 frames\n"
    assert terminal.text.count("\r") == 2
    line = ProgressLine(log)
    line(Progress("frames", 50, 100, 75.2))
    line(Progress("joining", 100, 100, None))
    assert log.text.endswith("editing: frame 50 of 100, 1:15 left\nwriting\n")


def test_clock():
    assert [clock(seconds) for seconds in (0, 59.6, 61, 3600, 36_061)] == [
        "0:00", "1:00", "1:01", "1:00:00", "10:01:01",
    ]  # fmt: skip
