"""Stimulus sets: designs, the pictures' frame, luminance, masks and templates, and whole sets with `mini`."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from magicedit.batch.designs import Design
from magicedit.batch.stimuli import STIMULI_JOURNAL, make_stimuli
from magicedit.batch.stimulus_pictures import (
    LUMA,
    Canvas,
    eye_centres,
    luminance_of,
    masked,
    oval_of,
    template_of,
    with_luminance,
)
from magicedit.batch.stimulus_report import Made, methods_of, table_of
from magicedit.cli import main
from magicedit.errors import MagicEditError, OutputError
from magicedit.faces import load_backend
from magicedit.provenance import EDITED

PEOPLE = "people: {a: a.png, b: b.png}\n"


@pytest.fixture(scope="session")
def backend():
    return load_backend()


@pytest.fixture(scope="session")
def face(backend, closed_mouth):
    return backend.detect(closed_mouth)[0]


@pytest.fixture
def design_file(tmp_path, closed_mouth):
    """Writes a design beside photographs of two people, and returns its path."""
    Image.fromarray(closed_mouth).save(tmp_path / "a.png")
    Image.fromarray(cv2.convertScaleAbs(closed_mouth[:, ::-1], alpha=0.8)).save(tmp_path / "b.png")

    def write(text: str) -> Path:
        path = tmp_path / "design.yaml"
        path.write_text(text)
        return path

    return write


# --- Designs ---


def test_a_design_is_fully_crossed(design_file):
    design = Design.load(
        design_file(
            PEOPLE + "controls: {au12: [0, 2.5], AU4L: [3], AU62: [1]}\nemotions: [none, 'anger:0.5']"
        )
    )
    assert [design.stimulus_name("a", condition) for condition in design.conditions()] == [
        "a_AU12+0_AU4L+3_gaze_yaw-6_none",
        "a_AU12+0_AU4L+3_gaze_yaw-6_anger-0.5",
        "a_AU12+2.5_AU4L+3_gaze_yaw-6_none",
        "a_AU12+2.5_AU4L+3_gaze_yaw-6_anger-0.5",
    ]
    *_, last = design.conditions()
    request = design.edit_request(last, design.people["a"])
    assert request.add == {"AU12": 2.5, "AU4L": 3.0, "gaze_yaw": -6.0}
    assert request.emotion == ("anger", 0.5)


def test_people_are_a_folder_a_list_or_by_name(design_file, tmp_path):
    text = "people: {}\ncontrols: {{AU12: [0]}}"
    for people in (".", "[a.png, b.png]", "{a: a.png, b: {photo: b.png}}"):
        design = Design.load(design_file(text.format(people)))
        assert [*design.people] == ["a", "b"]
        assert design.people["b"].photo.samefile(tmp_path / "b.png")
    design = Design.load(design_file(text.format("{a: {photo: a.png, references: b.png}}")))
    assert [path.name for path in design.people["a"].references] == ["b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("controls: {AU12: [0]}", "`people` is missing"),
        (
            "people: {a: a.png, A: b.png}\ncontrols: {AU12: [0]}",
            "`people`: .* must differ in more than capitals",
        ),
        (PEOPLE, "`controls` is missing; give levels, such as AU12"),
        (PEOPLE + "control: {AU12: [0]}", "`control` is unknown; did you mean `controls`?"),
        (PEOPLE + "controls: {AU99: [0]}", "`controls`: .*AU99"),
        (
            PEOPLE + "controls: {AU12: [0, 0]}",
            r"`controls`: expected a list of different levels, such as \[0",
        ),
        (PEOPLE + "controls: {AU12: [2, 2.0]}", "`controls`: AU12: levels must differ in their first 6"),
        (PEOPLE + "controls: {AU12: [0, -0.0]}", "`controls`: AU12: levels must differ in their first 6"),
        (PEOPLE + "controls: {AU12: [much]}", "`controls`: AU12: expected numbers, got 'much'"),
        (PEOPLE + "controls: {AU12: [11]}", "`controls`: .*AU12"),
        (PEOPLE + "controls: {AU12: [1], au12: [2]}", "`controls`: AU12 is there twice"),
        (PEOPLE + "controls: {AU12: [-1]}\nrequest: set", "`controls`: .*AU12"),
        (PEOPLE + "emotions: [joy]", "`emotions`: .*happiness"),
        (PEOPLE + "controls: {AU12: [1]}\nquality: best", "quality must be one of"),
        (PEOPLE + "controls: {AU12: [1]}\ncanvas: [300, 400]", "`canvas` needs `interocular`"),
        (
            PEOPLE + "controls: {AU12: [1]}\ncanvas: [300, 400]\ninterocular: 10",
            "`canvas` must be at most 20",
        ),
        (
            PEOPLE + "controls: {AU12: [1]}\nluminance: {mean: 120}",
            "`luminance`: expected `average`, or `mean`",
        ),
        (PEOPLE + "controls: {AU12: [1]}\noval: yes", "`oval`: expected a number from 0.5 to 3"),
        ("people: {a: c.png}\ncontrols: {AU12: [0]}", "`people`: a: .*c.png is no file"),
        ("people: {a/b: a.png}\ncontrols: {AU12: [0]}", "`people`: 'a/b' becomes part of file names"),
        ("people: nowhere\ncontrols: {AU12: [0]}", "`people`: .*nowhere is not a folder"),
        ("- a", "expected keys such as `people`"),
        ("people: [", "cannot be read as a design"),
    ],
)
def test_a_design_that_is_wrong_says_where(design_file, text, message):
    with pytest.raises(MagicEditError, match=rf"design\.yaml.*{message}") as raised:
        Design.load(design_file(text))
    assert "\n" not in str(raised.value) or text == "people: ["  # a parser's own message has lines


# --- Pictures ---


def test_a_canvas_levels_the_eyes_at_their_distance(face, closed_mouth, backend):
    canvas = Canvas(300, 400, 70.0, 0.4)
    turned = cv2.getRotationMatrix2D((236, 236), 12, 0.9)
    rotated = cv2.warpAffine(closed_mouth, turned, closed_mouth.shape[1::-1])
    (found,) = backend.detect(rotated)
    matrix = canvas.matrix(found)
    (left, right) = eye_centres(found.landmarks) @ matrix[:, :2].T + matrix[:, 2]
    np.testing.assert_allclose(left, (149.5 - 35, 160), atol=1e-3)
    np.testing.assert_allclose(right, (149.5 + 35, 160), atol=1e-3)
    drawn = canvas.draw(rotated, matrix, (9, 9, 9))
    (again,) = backend.detect(drawn)
    np.testing.assert_allclose(eye_centres(again.landmarks), [left, right], atol=1.5)  # the detector's noise
    assert (canvas.draw(rotated, matrix + np.array([[0, 0, 200], [0, 0, 0]]), (9, 9, 9))[:, :20] == 9).all()


def test_luminance_is_what_was_asked(face, closed_mouth):
    oval = oval_of(face.landmarks, closed_mouth.shape, 1.0)
    for mean, sd in ((120, 30), (150, 45)):
        picture = with_luminance(closed_mouth, oval, mean, sd)
        assert luminance_of(picture, oval) == pytest.approx((mean, sd), abs=0.3)
    changed = with_luminance(closed_mouth, oval, 120, 30)
    before, after = (picture[200:220, 200:220].astype(float) for picture in (closed_mouth, changed))
    chroma = [p - (p @ LUMA)[..., None] for p in (before, after)]
    np.testing.assert_allclose(*chroma, atol=1.0)  # of rounding


def test_an_oval_bounds_the_face(face, closed_mouth):
    oval = oval_of(face.landmarks, closed_mouth.shape, 1.0)
    rows, columns = np.nonzero(oval > 0.5)
    x0, y0, x1, y1 = face.box
    np.testing.assert_allclose((columns.min(), columns.max()), (x0, x1), atol=4)
    np.testing.assert_allclose((rows.min(), rows.max()), (y0, y1), atol=4)
    shown = masked(closed_mouth, oval, (1, 2, 3))
    assert (shown[oval == 0] == (1, 2, 3)).all()
    assert (shown[oval == 1] == closed_mouth[oval == 1]).all()


def test_a_template_is_read_as_webmorph_reads_it(face):
    lines = [line.strip() for line in template_of(face.landmarks).splitlines()]
    count = int(lines[0])
    points = np.array([line.split() for line in lines[1 : count + 1]], float)
    assert count == 480
    np.testing.assert_allclose(points[:2], eye_centres(face.landmarks), atol=0.01)
    np.testing.assert_allclose(points[2:], face.landmarks, atol=0.01)
    contours = int(lines[count + 1])
    rows = np.reshape(lines[count + 2 :], (contours, 3))
    assert {*rows[:, 0]} == {"1"}
    for _, length, indices in rows:
        assert len(indices.split()) == int(length)
        assert 2 <= min(map(int, indices.split())) <= max(map(int, indices.split())) < count
    mouth = points[[int(index) for index in rows[4][2].split()]]
    assert mouth[:, 1].mean() > points[:2, 1].max()  # the lips are below the eyes


# --- Sets ---


def test_a_set_is_made_resumed_and_described(design_file, tmp_path):
    """Two people by two levels; then again, with one file lost, and with one level more."""
    text = (
        PEOPLE + "controls: {AU12: LEVELS}\ninterocular: 60\nluminance: average\noval: 1.1\nquality: live\n"
    )
    output = tmp_path / "set"
    report = make_stimuli(Design.load(design_file(text.replace("LEVELS", "[0, 3]"))), output)
    assert (report.made, report.kept, report.failed) == (4, 0, {})
    names = ["a_AU12+0", "a_AU12+3", "b_AU12+0", "b_AU12+3"]
    pictures = {name: (output / f"{name}.png").read_bytes() for name in names}
    templates = {name: (output / f"{name}.tem").read_text() for name in names}
    table = [*csv.DictReader((output / "stimuli.csv").open(encoding="utf-8"))]
    assert [row["stimulus"] for row in table] == [f"{name}.png" for name in names]
    assert [float(row["AU12"]) for row in table] == [0, 3, 0, 3]
    assert [float(row["AU12_requested"]) for row in table] == [0, 3, 0, 3]
    assert float(table[1]["AU12_measured"]) > float(table[0]["AU12_measured"]) + 1
    assert {row["AU12_before"] for row in table[:2]} == {table[0]["AU12_measured"]}
    assert np.ptp([float(row["luminance_mean"]) for row in table]) < 1
    image = Image.open(output / "b_AU12+3.png")
    assert image.size == (240, 300)
    assert image.getpixel((0, 0)) == (128, 128, 128)
    assert EDITED.encode() in pictures["a_AU12+3"]
    assert EDITED.encode() not in pictures["a_AU12+0"]  # only placed
    methods = (output / "methods.md").read_text()
    parts = "2 people", "AU12 (0, 3)", "60 px apart", "240 x 300 px", "model mini, fingerprint", "4 stimuli"
    for part in parts:
        assert part in methods

    (output / "a_AU12+3.png").unlink()
    report = make_stimuli(Design.load(design_file(text.replace("LEVELS", "[0, 3]"))), output)
    assert (report.made, report.kept) == (1, 3)
    assert {name: (output / f"{name}.png").read_bytes() for name in names} == pictures
    assert {name: (output / f"{name}.tem").read_text() for name in names} == templates

    (output / "a_AU12-2.png").write_bytes(b"somebody's")
    text = text.replace("oval: 1.1", "canvas: [480, 600]")  # reaches beyond the photographs
    other = Design.load(design_file(text.replace("LEVELS", "[-2]")))
    with pytest.raises(OutputError, match=r"a_AU12-2\.png exists and no run here made it"):
        make_stimuli(other, output)
    report = make_stimuli(other, output, force=True)
    assert (report.made, report.kept) == (2, 0)
    methods = (output / "methods.md").read_text()
    assert "AU12 (-2)" in methods
    measured = [
        float(row["AU12_measured"]) for row in csv.DictReader((output / "stimuli.csv").open(encoding="utf-8"))
    ]
    assert f"{np.mean(measured):.2f} (SD {np.std(measured, ddof=1):.2f}) at -2" in methods
    for name in ("a", "b"):
        assert Image.open(output / f"{name}_AU12-2.png").getpixel((0, 0)) == (128, 128, 128)


def test_a_control_that_no_measurement_sees_has_no_measured_values(design_file):
    """Else the paper would say that lips were not sucked in, or that cheeks were not raised."""
    text = "people: [a.png]\ncontrols: {AU6: [2], AU28: [3], AU12: [1]}\ntolerance: 1\n"
    design = Design.load(design_file(text))
    (condition,) = design.conditions()
    measured = {"AU6": 0.0, "AU12": 0.9, "AU28": 0.0}
    entry = {"requested": condition, "before": measured, "measured": measured}
    entry |= {"moved": {"AU6": 1.5, "AU12": 1.0}, "luminance_mean": 1, "luminance_sd": 1, "warnings": []}
    made = Made("a_AU6+2", "a", condition, entry | {"identity_distance": None, "reached": None})
    (row,) = csv.DictReader(table_of(design, [made]).splitlines())
    assert row["AU28_requested"] == "3.0"
    assert (row["AU12_measured"], row["AU6_moved"]) == ("0.9", "1.5")
    assert not {"AU28_before", "AU28_measured"} & {*row}
    model = {"name": "mini", "fingerprint": "f"}
    methods = methods_of(design, model, {"magicedit": "1"}, [made], {})
    assert (
        "Changes of AU6 by landmarks were on average 1.50 at 2. The levels of AU28 were not verified"
        in methods
    )
    assert "Measured values of AU12 were on average 0.90 at 1." in methods
    assert "until all requested units that a measurement sees were within 1 steps" in methods


def test_a_stimulus_that_fails_stops_no_other(design_file, tmp_path, capsys, closed_mouth):
    Image.fromarray(closed_mouth).convert("L").save(tmp_path / "a.png")
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "b.png")
    path = design_file(PEOPLE + "controls: {AU12: [2]}\nquality: live\ntemplates: false\n")
    output = tmp_path / "set"
    assert main(["stimuli", str(path), "-o", str(output), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["made"] == 1
    assert "no face was found" in told["failed"]["b_AU12+2"]
    assert sorted(p.name for p in output.iterdir()) == [
        "a_AU12+2.png",
        "methods.md",
        "stimuli.csv",
        STIMULI_JOURNAL,
    ]
    assert "1 of the design could not be made" in (output / "methods.md").read_text()
    for attribute in ("size", "mode"):
        made, photo = Image.open(output / "a_AU12+2.png"), Image.open(tmp_path / "a.png")
        assert getattr(made, attribute) == getattr(photo, attribute)


def test_an_average_of_people_without_faces_names_them_before_anything_is_made(design_file, tmp_path):
    text = "people: [a.png, b.png, c.png]\ncontrols: {AU12: [2]}\nluminance: average\n"
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "c.png")
    path = design_file(text)
    (tmp_path / "b.png").write_bytes(b"no picture")
    output = tmp_path / "set"
    with pytest.raises(MagicEditError, match=r"2 of 3 cannot be used: b, c \(.*b\.png") as raised:
        make_stimuli(Design.load(path), output)
    assert "\n" not in str(raised.value)
    assert [*output.glob("*.png"), *output.glob("*.csv")] == []


def test_photographs_that_cannot_be_read_fail(design_file, tmp_path):
    design = Design.load(design_file(PEOPLE + "controls: {AU12: [2]}"))
    for person in design.people.values():
        person.photo.unlink()
    report = make_stimuli(design, tmp_path / "set")
    assert [*report.failed] == ["a_AU12+2", "b_AU12+2"]
    assert "a.png does not exist" in report.failed["a_AU12+2"]


@pytest.mark.parametrize(
    ("text", "named"), [("controls: {AU29: [2]}", "AU29"), ("controls: {AU12: [2]}\nteeth: gold", "gold")]
)
def test_what_the_model_lacks_is_refused_before_it_loads(design_file, tmp_path, capsys, text, named):
    path = design_file(PEOPLE + text)
    assert main(["stimuli", str(path), "-o", str(tmp_path / "set")]) == 2
    told = capsys.readouterr().err
    assert named in told
    assert "loading" not in told
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["stimuli.csv", "methods.md", "a_AU12+2.tem"])
def test_files_of_others_are_not_replaced(design_file, tmp_path, name):
    (tmp_path / name).write_text("somebody's")
    with pytest.raises(OutputError, match=rf"{re.escape(name)} exists and no run here made it"):
        make_stimuli(Design.load(design_file(PEOPLE + "controls: {AU12: [2]}")), tmp_path)
    assert (tmp_path / name).read_text() == "somebody's"
