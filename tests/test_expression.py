"""Expressions as data: reading, keeping, mixing, mirroring, applying."""

import pickle
import subprocess
import sys

import pytest
from PIL import Image

from magicedit import Expression
from magicedit.action_units import DESCRIPTIONS, NAMES, editable
from magicedit.errors import ActionUnitError, MagicEditError, OutputError

ASKS = "magicedit: expression/1\nkind: intensities\naction_units:"


def test_values_are_canonical_and_in_the_order_of_numbers():
    expression = Expression({"au 26": 1, "AU012": "2.5", "AU2": 0})
    assert list(expression.values.items()) == [("AU2", 0.0), ("AU12", 2.5), ("AU26", 1.0)]
    assert str(expression) == "AU2 0.0, AU12 2.5, AU26 1.0"
    assert str(Expression({"AU2": -0.04, "AU12": -0.06}, relative=True)) == "AU2 +0.0, AU12 -0.1"
    with pytest.raises(TypeError):
        expression.values["AU1"] = 1


@pytest.mark.parametrize(
    ("values", "relative", "message"),
    [
        ({"AU12": 6}, False, "between 0 and 5"),
        ({"AU12": -1}, False, "between 0 and 5"),
        ({"AU12": 11}, True, "between -10 and 10"),
        ({"AU99": 1}, False, "unknown action unit"),
        ({"AU12": 1, "AU12L": 1}, False, "both sides and for one"),
        ({"AU12": float("nan")}, False, "between 0 and 5"),
    ],
)
def test_what_is_no_expression(values, relative, message):
    with pytest.raises(ActionUnitError, match=message):
        Expression(values, relative)


def test_sides_are_kept_where_they_differ():
    units = {"AU1": 1.0, "AU12": 3.0, "AU26": 2.0}
    sides = {"AU1L": 1.2, "AU1R": 0.8, "AU12L": 4.0, "AU12R": 2.0}
    measured = Expression.measured(units, sides, "a face")
    assert measured.values == {"AU1": 1.0, "AU12L": 4.0, "AU12R": 2.0, "AU26": 2.0}
    assert measured.mirrored().values == {"AU1": 1.0, "AU12L": 2.0, "AU12R": 4.0, "AU26": 2.0}
    assert measured.mirrored().mirrored() == measured


def test_a_file_brings_back_what_was_saved(tmp_path):
    for expression in (
        Expression({"AU12L": 1.234, "AU4": 5}, source="Zoë.jpg", model="mini"),
        Expression.of_emotion("fear", 0.5),
    ):
        path = expression.save(tmp_path / "one.yaml")
        assert Expression.load(path) == expression
        assert pickle.loads(pickle.dumps(expression)) == expression
    assert "kind: variations" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError):
        expression.save(tmp_path / "missing" / "one.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not in the format `expression/1`"),
        ("magicedit: preset/1\n", "says 'preset/1'"),
        (
            "magicedit: expression/1\nkind: both\naction_units: {AU12: 1}\n",
            "`kind` must be intensities or .*got 'both'",
        ),
        ("magicedit: expression/1\nkind: intensities\n", "`action_units` is missing"),
        ("magicedit: expression/1\nkind: intensity\naction_units: {AU12: 1}\n", "did you mean intensities"),
        ("magicedit: expression/1\nkind: intensities\nactionunits: {AU12: 1}\n", "did you mean action_units"),
        (f"{ASKS}\n", "`action_units` must be a table .* got nothing"),
        (f"{ASKS}\n  AU12 3\n", "`action_units` must be a table .* got 'AU12 3'"),
        (f"{ASKS}\n  AU12: 3\n  AU12: 1\n", "'AU12' twice, in lines 4 and 5"),
        (f"{ASKS} {{AU12: 1}}\nkind: variations\n", "'kind' twice, in lines 2 and 4"),
        (
            "magicedit: expression/1\nkind: intensities\naction_units: {AU12: 9}\n",
            "one.yaml: expected an int",
        ),
        ("magicedit: expression/1\nkind: intensities\naction_units: {AU12: 1}\nfoo: 1\n", "foo"),
        ("magicedit: [", "cannot be read"),
        # What YAML can say and no expression does
        ("magicedit: 2020-13-45\n", "cannot be read as `expression/1`: month must be in 1..12"),
        ("magicedit: [expression/1]\n", "its line `magicedit:` is missing"),
        (f"magicedit: {'long ' * 1000}\n", r"says 'long long .{,40}'; give one"),
        ("- x\n" * 30_000, "more than 100,000"),
        (f"magicedit: {'long' * 3000}\n", "a text of 12000 characters"),
        (f"magicedit: {'[' * 5000}", "nested more than 10 levels deep"),
        ("magicedit: &a [1]\nkind: *a\n", r"it has an alias \(\*a\)"),
        (f"- &{'a' * 500} 1\n- &{'a' * 500} ]\n", "cannot be read as `expression/1`: .{100,300}$"),
        ("magicedit: !!timestamp soon\n", "it has a tag"),
        (f"{ASKS} {{AU12: 1}}\n1: 2\n", "does not have: 1$"),
        (f"{ASKS} {{AU12: 1}}\nsource: 2020-12-01\n", "must be texts"),
        (f"{ASKS} {{1: 2}}\n", "unknown action unit 1"),
        (f"{ASKS} {{{'x' * 500}: 2}}\n", r"unknown action unit 'x{12}\.\.\.x{13}'"),
        (f"{ASKS} {{AU12: {'x' * 500}}}\n", r"got 'x{12}\.\.\.x{13}'"),
        (f"{ASKS} {{AU12: 1{'0' * 400}}}\n", "expected an intensity between 0 and 5 for AU12"),
        ("!!python/object/apply:os.system ['false']", "cannot be read"),
    ],
)
def test_files_that_are_no_expressions(tmp_path, text, message):
    path = tmp_path / "one.yaml"
    path.write_text(text)
    with pytest.raises(MagicEditError, match=message):
        Expression.load(path)


def test_files_that_are_missing_or_pictures(tmp_path):
    with pytest.raises(MagicEditError, match=r"missing\.yaml does not exist"):
        Expression.load(tmp_path / "missing.yaml")
    Image.new("RGB", (8, 8)).save(tmp_path / "face.jpg")
    with pytest.raises(MagicEditError, match="is no text in UTF-8") as refusal:
        Expression.load(tmp_path / "face.jpg")
    assert "codec" not in str(refusal.value)


def test_a_small_file_of_aliases_takes_no_memory(tmp_path):
    """Lists of lists of lists: 355 bytes that stand for 9 ** 9 texts; and the command's one line about it."""
    layers = [f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, 9)]
    path = tmp_path / "one.yaml"
    path.write_text("\n".join(["b0: &b0 [x, x, x, x, x, x, x, x, x]", *layers, "magicedit: *b8"]))
    code = (
        "import resource\nfrom magicedit.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2_000_000_000, -1))\n"
        f"raise SystemExit(main(['edit', 'photo.png', '-o', 'out.png', '--expression', {str(path)!r}]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1
    assert "it has an alias (*b0); write the value itself" in run.stderr


def test_rows_of_tables(tmp_path):
    path = tmp_path / "openface.csv"
    path.write_text("frame, success, AU12_r, AU12_c, AU45_r\n1, 1, 2.5, 1, 0.1\n2, 1, 3.5, 1, 0.2\n")
    assert Expression.from_csv(path, 1).values == {"AU12": 3.5, "AU45": 0.2}
    with pytest.raises(ActionUnitError, match="no row 2"):
        Expression.from_csv(path, 2)
    path.write_text("AU12L,AU12R\n1,\n")
    assert Expression.from_csv(path).values == {"AU12L": 1.0}
    path.write_text("smile\n1\n")
    with pytest.raises(ActionUnitError, match="no column"):
        Expression.from_csv(path)


def test_mixing_is_linear_on_each_side():
    calm, smile = Expression({"AU12": 1, "AU1": 2}), Expression({"AU12L": 3, "AU12R": 5})
    mixed = calm.mixed(smile, 0.25)
    assert mixed.values == pytest.approx({"AU1": 1.5, "AU12L": 1.5, "AU12R": 2.0})
    assert calm.mixed(smile, 0).values == {"AU1": 2, "AU12": 1}
    with pytest.raises(ActionUnitError, match="cannot be mixed"):
        calm.mixed(Expression({"AU12": 1}, relative=True), 0.5)
    with pytest.raises(ActionUnitError, match="0 to 1"):
        calm.mixed(smile, 1.5)


def test_applying():
    current = dict.fromkeys(DESCRIPTIONS, 1.0)
    assert Expression({"AU12": 3}).variation(current, 0.5) == {"AU12": 1.0}
    assert Expression({"AU12": 3}, relative=True).variation({}, 0.5) == {"AU12": 1.5}
    assert Expression.neutral().variation(current) == dict.fromkeys(NAMES, -1.0)
    assert Expression({"AU12": 1.4, "AU4": 0.5}).variation(current, 2) == {"AU12": 0.0, "AU4": -1.0}
    assert Expression({"AU12": 0.1}, relative=True).variation(current) == {"AU12": 0.1}
    assert Expression({"AU12": 2, "AU7": 1}).limited_to(NAMES).values == {"AU12": 2}
    with pytest.raises(ActionUnitError, match="not measured"):
        Expression({"AU12": 3}).variation({})
    with pytest.raises(ActionUnitError, match="lower the strength"):
        Expression({"AU12": 5}).variation(current, 3)
    with pytest.raises(ActionUnitError, match="between 0 and 5"):
        Expression({"AU12": 3}).scaled(2)


def test_only_some_regions():
    whole = Expression(
        {"AU1": 1, "AU4": 2, "AU43L": 3, "AU12R": 4, "AU17": 1, "gaze_yaw": 5, "head_roll": -3}
    )
    assert set(whole.only("eyes,brows").values) == {"AU1", "AU4", "AU43L"}
    assert set(whole.only(["mouth"]).values) == {"AU12R", "AU17"}
    assert dict(whole.only("Gaze, head").values) == {"gaze_yaw": 5, "head_roll": -3}
    assert whole.only("brow").only("brows").values == {"AU1": 1, "AU4": 2}
    with pytest.raises(ActionUnitError, match="unknown region 'ears'; known: brow, eye, cheek"):
        whole.only("eyes,ears")
    with pytest.raises(ActionUnitError, match="no region is named"):
        whole.only(" ,")
    with pytest.raises(ActionUnitError, match="nothing in nose"):
        whole.only("nose")


def test_mirrored_angles():
    angles = {"gaze_yaw": 5, "gaze_pitch": 2, "head_yaw": -4, "head_pitch": 1, "head_roll": 3}
    mirrored = {"gaze_yaw": -5, "gaze_pitch": 2, "head_yaw": 4, "head_pitch": 1, "head_roll": -3}
    assert dict(Expression(angles).mirrored().values) == mirrored


def test_measured_angles_end_at_their_ranges():
    measured = Expression.measured({"head_yaw": 33.0, "gaze_pitch": -12.0, "AU12": 5.001})
    assert dict(measured.values) == {"AU12": 5.0, "gaze_pitch": -12.0, "head_yaw": 20.0}


def test_neutral_of_an_editor_is_that_of_its_models_units():
    assert set(Expression.neutral(editable(NAMES)).values) == {*NAMES}
    assert set(Expression.neutral(["AU7", "AU12"]).values) == {"AU7", "AU12"}


@pytest.mark.parametrize(
    "name", ["a.csv:" + "9" * 5000, "a.csv:١", "a" * 5000, "a\0b.csv:1", "\udcff.yaml", "/dev/zero"]
)
def test_names_that_no_expression_has(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MagicEditError) as told:
        Expression.read(name)
    assert str(told.value).encode()
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize(
    "values",
    ["AU12=3", None, 5, [("AU12", 3)], {"AU12": 10**5000}, {5: 3}, {"AU" + "1" * 5000: 1}],
    ids=["text", "nothing", "number", "pairs", "huge", "no name", "long name"],
)
def test_values_of_any_kind(values):
    with pytest.raises(ActionUnitError):
        Expression(values)
