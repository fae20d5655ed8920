"""Blendshapes of a face in every frame."""

import csv
import json

import numpy as np
import pytest
from conftest import RATE, SIDE, write_video

from magicedit.action_units import NAMES, editable
from magicedit.arkit import MEASURED
from magicedit.cli import main
from magicedit.errors import MagicEditError, NoFaceError
from magicedit.expression import Expression
from magicedit.faces.openface import COLUMNS
from magicedit.tables import read_table
from magicedit.video import Curve, Video, measure_blendshapes
from magicedit.warping import move_eyes

BLINKS = [0, 0, 0, 5, 5, 0, 0, 0]


@pytest.fixture(scope="module")
def blinking(tmp_path_factory, editor, portrait):
    """The portrait that blinks, and then an empty picture."""
    (face,) = editor.backend.detect(portrait)
    pictures = [move_eyes(portrait, face.landmarks, {"AU43": level}) for level in BLINKS]
    pictures += [np.full((SIDE, SIDE, 3), 120, np.uint8)] * 2
    return write_video(tmp_path_factory.mktemp("blinking") / "in.mp4", pictures)


def test_scores_follow_the_face(editor, blinking):
    curves = measure_blendshapes(Video(blinking), editor.backend)
    assert curves.times == pytest.approx(np.arange(10) / RATE)
    assert curves.scores.shape == (10, len(MEASURED))
    assert np.isnan(curves.scores[8:]).all()
    blink = curves.scores[:8, MEASURED.index("eyeBlinkLeft")]
    assert blink[3:5].min() > blink[[0, 1, 2, 6, 7]].max() + 0.15
    with pytest.raises(NoFaceError, match="face 2"):
        measure_blendshapes(Video(blinking), editor.backend, 1)


def test_openface_table_of_a_video(capsys, tmp_path, blinking):
    units, scores = tmp_path / "units.csv", tmp_path / "scores.csv"
    assert main(["measure", str(blinking), "--openface", str(units), "--arkit", str(scores), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["outputs"] == [str(scores), str(units)]
    header, *rows = csv.reader(units.open())
    assert tuple(header) == COLUMNS
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["frame"] for row in cells] == [str(n) for n in range(1, 11)]
    assert [float(row["timestamp"]) for row in cells] == pytest.approx(np.arange(10) / RATE, abs=1e-3)
    assert [row["success"] for row in cells] == ["1"] * 8 + ["0"] * 2
    assert set(rows[9][5:]) == {""}
    # Our own readers take it as a tool's
    table = read_table(units)
    assert table.units().tool == "OpenFace"
    curve = Curve.from_csv(units).usable_by(editable(NAMES))
    assert curve.at(3.5 / RATE)["AU43"] > curve.at(0)["AU43"] + 0.75
    assert curve.end == pytest.approx(7 / RATE, abs=1e-3)
    assert Expression.read(f"{units}:3").values["AU45"] == pytest.approx(float(cells[3]["AU45_r"]))


def test_a_backend_without_blendshapes(editor, blinking):
    class Plain:
        name = "plain"

        def detect(self, pixels):
            faces = editor.backend.detect(pixels)
            return [type(face)(face.box, face.landmarks, face.scheme, face.score) for face in faces]

    with pytest.raises(MagicEditError, match="plain measures no action units or blendshapes"):
        measure_blendshapes(Video(blinking), Plain())


def test_the_command_writes_a_curve(capsys, tmp_path, blinking):
    path = tmp_path / "curves.csv"
    assert main(["measure", str(blinking), "--arkit", str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"output": str(path), "frames": 10, "seen": 8}
    header, *rows = csv.reader(path.open())
    assert header == ["time", *MEASURED]
    assert [float(row[0]) for row in rows] == pytest.approx(np.arange(10) / RATE)
    assert set(rows[9][1:]) == {""}
    curve = Curve.from_csv(path)
    assert curve.at(3.5 / RATE)["AU43"] > curve.at(0)["AU43"] + 0.75
    assert main(["measure", str(blinking)]) == 2
    assert "only with --arkit" in capsys.readouterr().err
    assert main(["measure", str(blinking), "--arkit", str(path), "--neutral", "x.jpg"]) == 2
    assert "measure photographs" in capsys.readouterr().err
