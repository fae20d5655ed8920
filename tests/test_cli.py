"""The command line on real files: what it prints, and that bad input costs one line and nothing else."""

import argparse
import hashlib
import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from films import write_video
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from magicedit.__main__ import main as entry
from magicedit.action_units import DEAD_ZONE, EMOTIONS, MOUTH_SHAPES, NAMES, editable, is_angle
from magicedit.cli import build_parser, main
from magicedit.cli.common import print_faces, telling
from magicedit.cli.completion import SHELLS
from magicedit.cli.training import validation_choice
from magicedit.cli.video import _resumable
from magicedit.editor import ExpressionEditor, FaceEdit
from magicedit.errors import DatasetError
from magicedit.expression import Expression
from magicedit.faces import Pose
from magicedit.models import PatchModelConfig, create_patch_pipeline
from magicedit.models.folder import ModelFolder
from magicedit.request import usable_expression

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline folder with tiny random UNets."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = PatchModelConfig(block_out_channels=(16, 32), resolution=64, default_steps=2)
    create_patch_pipeline(config, seed=1).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(path)
    return path


def command(*arguments, cwd, limit_file_size=None, sent=None):
    """Runs the real command in a process of its own. sent: to its stdin; then outputs are bytes."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_file_size, limit_file_size))

    return subprocess.run(
        [sys.executable, "-m", "magicedit.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=sent is None,
        input=sent,
        timeout=120,
        preexec_fn=limit if limit_file_size else None,
    )


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def listing(folder):
    return {path.name: digest(path) for path in Path(folder).iterdir() if path.is_file()}


def refused(capsys, *arguments):
    """Runs a command that must fail, and returns the line that it says."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith(("loading ", "looking "))]
    assert len(lines) == 1, err
    assert lines[0].startswith("magicedit: error: ")
    return lines[0]


# --- Results ---


def test_one_side_can_be_set_and_changed(capsys, photo, tmp_path, model):
    common = ["edit", photo, "-o", tmp_path / "out.png", "--model", model, "--json"]
    assert main([str(word) for word in [*common, "--set", "AU12L=0", "--au", "AU2R=3"]]) == 0
    (face,) = json.loads(capsys.readouterr().out)["faces"]
    assert face["requested"] == {"AU2R": 3.0, "AU12L": pytest.approx(-face["before"]["AU12L"])}
    assert "no sides" in refused(capsys, *common[:-1], "--au", "AU26L=1")


def test_edit_prints_one_json_object(capsys, photo, tmp_path, model):
    before = digest(photo)
    code = main(
        [
            *(
                "edit",
                str(photo),
                "-o",
                str(tmp_path / "out.png"),
                "--au",
                "AU12=+3,AU4=-1",
                "--set",
                "AU1=1",
            ),
            *("--model", model, "--seed", "3", "--json"),
        ]
    )
    assert code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["output"] == str(tmp_path / "out.png")
    assert printed["seconds"] > 0
    (face,) = printed["faces"]
    x0, y0, x1, y1 = face["box"]
    assert 150 < x0 < x1 < 300
    assert 0 < y0 < y1 < 250
    assert face["requested"]["AU12"] == 3
    assert face["requested"]["AU4"] == -1
    assert face["requested"]["AU1"] == pytest.approx(1 - face["before"]["AU1"], abs=1e-3)
    for measured in (face["before"], face["after"]):
        assert {"AU1", "AU4", "AU12", "AU25"} <= set(measured)
        assert all(0 <= value <= 5 for value in measured.values())
    assert face["before"]["AU12"] > 3  # she smiles
    assert set(face["pose"]) == {"yaw", "pitch", "roll"}
    with Image.open(tmp_path / "out.png") as edited:
        assert edited.size == (512, 512)
        assert not np.array_equal(np.asarray(edited), data.astronaut())
    assert digest(photo) == before


def test_an_empty_edit_writes_the_same_pixels(capsys, photo, tmp_path, model):
    assert main(["edit", str(photo), "-o", str(tmp_path / "out.png"), "--model", model]) == 0
    with Image.open(tmp_path / "out.png") as edited:
        assert np.array_equal(np.asarray(edited), data.astronaut())
    assert str(tmp_path / "out.png") in capsys.readouterr().out


def test_edit_prints_requested_and_measured(capsys, photo, tmp_path, model):
    arguments = ["edit", photo, "-o", tmp_path / "out.jpg", "--emotion", "surprise:0.5", "--face", "1"]
    assert main([str(a) for a in [*arguments, "--model", model]]) == 0
    out, err = capsys.readouterr()
    assert "face 1:" in out
    for name, steps in EMOTIONS["surprise"].items():
        assert f"{name:<5} {steps / 2:+5.1f}   measured" in out
    assert "loading" in err


def test_variations_that_round_to_zero_are_not_printed(capsys):
    asked = {"AU4": -0.04, "AU12": 3.0, "AU25": 0.0}
    face = FaceEdit(0, (0, 0, 10, 10), Pose(-0.3, 0.2, 1), asked, {}, None, None, None, ())
    print_faces([face, replace(face, requested={"AU4": -0.04, "AU25": 0.0}), replace(face, requested={})])
    assert capsys.readouterr().out.splitlines() == [
        (place := "face 1: 10 x 10 px at (0, 0), yaw +0°, pitch +0°, roll +1°"),
        "  AU12   +3.0",
        place,
        "  nothing to change: the request (2 units) is within 0.5 of the measured intensity",
        place,
    ]
    print_faces([replace(face, requested={"AU12": 0.0})], targets=False)  # no target, so none is met
    assert capsys.readouterr().out.splitlines() == [place]


def test_a_unit_is_told_by_the_scorers_that_see_it(capsys):
    """Neither blendshapes that are blind to AU6 nor scores that hardly see AU28 stand there as 0.0."""
    asked = {"AU12L": 1.0, "AU6": 3.0, "AU28": 2.0, "AU23": 1.0, "gaze_yaw": 9.0}
    before = {"AU12L": 0.0, "AU6": 0.1, "AU28": 0.0, "gaze_yaw": -3.0}
    after, moved = before | {"AU12L": 0.04, "gaze_yaw": 6.0}, {"AU12L": 0.8, "AU6": 2.0}
    face = FaceEdit(0, (0, 0, 10, 10), None, asked, before, after, moved, None, ())
    print_faces([face, replace(face, after=None, moved=None)])
    place = "face 1: 10 x 10 px at (0, 0)"
    assert capsys.readouterr().out.splitlines() == [
        place,
        "  AU12L  +1.0   measured +0.8 by landmarks",
        "  AU6    +3.0   measured +2.0 by landmarks",
        "  AU28   +2.0   no measurement sees it well",
        "  AU23   +1.0   not measured",
        "  gaze_yaw  +9.0   measured -3.0 -> 6.0",
        place,
        *(f"  {name:<5} {delta:+5.1f}" for name, delta in asked.items()),
    ]
    assert face.to_json()["achieved"] == {"AU12L": 0.8, "AU6": 2.1, "gaze_yaw": 6.0}


def test_faces_are_called_by_their_number_in_the_photograph(capsys, tmp_path):
    pair = Image.fromarray(np.concatenate([data.astronaut(), data.astronaut()[:, ::-1] // 2], axis=1))
    (tmp_path / "in").mkdir()
    pair.save(tmp_path / "in" / "pair.png")
    options = ["--au", "AU12=+5", "--face", "2", "--quality", "live"]  # which no smile leaves room for
    command = ["edit", str(tmp_path / "in" / "pair.png"), "-o", str(tmp_path / "out.png"), *options]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith("face 2: ")
    assert "warning: face 2: AU12 would become" in err
    assert "face 1" not in out + err
    assert main([*command, "--json", "--overwrite"]) == 0
    assert [(face["face"], face["number"]) for face in json.loads(capsys.readouterr().out)["faces"]] == [
        (1, 2)
    ]
    assert main(["edit", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *options, "--workers", "1"]) == 0
    assert "warning: pair.png: face 2: AU12 would become" in capsys.readouterr().err


def test_small_faces_that_are_left_alone_are_told(capsys, tmp_path, model):
    """A large face and two tiny ones, in a photograph and in a folder; not of a face that was chosen."""
    portrait = Image.fromarray(data.astronaut()[:320, 60:380])
    crowd = Image.new("RGB", (1440, 1700), (96, 104, 112))
    crowd.paste(portrait.resize((1440, 1440), Image.Resampling.BICUBIC), (0, 0))
    for left in (100, 900):
        crowd.paste(portrait.resize((240, 240), Image.Resampling.LANCZOS), (left, 1450))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "crowd.png"
    crowd.save(path)
    told = "2 small faces left alone"
    edit = ["--au", "AU12=1", "--model", model, "--no-measure"]
    assert main(["edit", str(path), "-o", str(tmp_path / "a.png"), *edit, "--json"]) == 0
    out, err = capsys.readouterr()
    assert told in err
    assert (len(json.loads(out)["faces"]), json.loads(out)["left_alone"]) == (1, 2)
    assert main(["edit", str(path), "-o", str(tmp_path / "b.png"), *edit, "--face", "largest"]) == 0
    assert "left alone" not in capsys.readouterr().err
    assert main(["measure", str(path)]) == 0
    assert told in capsys.readouterr().err
    options = [*edit[:4], "--workers", "1"]
    assert main(["edit", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *options]) == 0
    assert "2  faces left alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--au", "AU12=1", "--target-tolerance", "-1"], "must be a positive number"),
        (["--au", "AU12=1", "--target-tolerance", "1", "--no-measure"], "do not switch measuring off"),
        (["--au", "AU12=1", "--strength", "nan"], "strength"),
        (["--model", "mini-live", "--au", "AU99=1"], "unknown action unit 'AU99'"),
        (["--au", "AU12=1", "--seed", "-1"], "seed"),
    ],
)
def test_what_can_be_seen_to_be_wrong_is_said_before_the_model_loads(
    capsys, photo, tmp_path, options, message
):
    assert main(["edit", str(photo), "-o", str(tmp_path / "out.png"), *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sweep PHOTO --au AU99", "unknown action unit 'AU99'"),
        ("sweep PHOTO --au AU12 --to 30", "between -10 and 10"),
        ("sweep PHOTO --au AU12=3", "name the unit alone"),
        ("sweep PHOTO --au AU12 --teeth 99", "teeth must be"),
        ("transfer --from PHOTO --to PHOTO --strength nan", "must be a number, got nan"),
        ("transfer --from PHOTO --to PHOTO --target-tolerance 0", "the tolerance must be"),
        ("interpolate PHOTO PHOTO --guidance -1", "the guidance scale must be"),
        ("interpolate PHOTO PHOTO --pictures 1001", "--pictures must be from 2 to 1000"),
        ("edit PHOTO --au AU12=1 --max-edits 2", "--max-edits is of --target-tolerance"),
        ("edit PHOTO --au AU12=1 --strength 0.5", "--strength is a share of --expression"),
    ],
)
def test_options_of_other_commands_are_checked_before_the_model_loads(
    capsys, photo, tmp_path, words, message
):
    arguments = [str(photo) if word == "PHOTO" else word for word in words.split()]
    assert main([*arguments, "-o", str(tmp_path / "out.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()  # nothing of loading
    assert message in line


def test_measure(capsys, photo):
    assert main(["measure", str(photo), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (face,) = printed["faces"]
    assert (printed["width"], printed["height"]) == (512, 512)
    assert face["action_units"]["AU12"] > 3
    sides = face["sides"]["AU12L"], face["sides"]["AU12R"]
    assert sum(sides) / 2 == pytest.approx(face["action_units"]["AU12"], abs=0.01)
    assert abs(face["pose"]["yaw"]) < 45
    assert main(["measure", str(photo)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("face 1: ")
    assert "AU12" in out
    assert "the scores of AU5, AU6, AU9, AU15 hardly respond: 0.0 may be more; those of AU7, AU10," in err
    gaze = face["gaze"]
    assert f"\n  gaze  {round(gaze['yaw']):+}°, {round(gaze['pitch']):+}°\n" in out


def test_measure_relative_to_a_neutral_photograph(capsys, photo, tmp_path):
    base = str(REPOSITORY / "tests" / "portraits" / "closed_mouth.jpg")
    assert main(["measure", str(photo), "--neutral", base, "--json"]) == 0
    (face,) = json.loads(capsys.readouterr().out)["faces"]
    assert main(["measure", base, "--json"]) == 0
    (rest,) = json.loads(capsys.readouterr().out)["faces"]
    difference = face["action_units"]["AU12"] - rest["action_units"]["AU12"]
    assert face["relative"]["AU12"] == pytest.approx(difference, abs=0.002)
    assert 0 < face["spread"]["AU12"] < 0.5
    saved = tmp_path / "smile.yaml"
    assert main(["measure", str(photo), "--neutral", base, "--save", str(saved)]) == 0
    out = capsys.readouterr().out
    expression = Expression.load(saved)
    assert expression.relative
    assert expression.values["AU12"] == face["relative"]["AU12"]
    assert "relative to closed_mouth.jpg" in expression.source
    assert usable_expression(expression, ModelFolder.find("mini").editable) == expression
    assert f"  AU12  {difference:+.1f} ± {face['spread']['AU12']:.1f}\n" in out
    assert re.search(r"\n  gaze  [+-]\d+° ± \d+°, [+-]\d+° ± \d+°\n", out)


def test_measure_writes_blendshapes(capsys, photo, tmp_path):
    path = tmp_path / "scores.csv"
    assert main(["measure", str(photo), "--arkit", str(path)]) == 0
    header, row = (line.split(",") for line in path.read_text().splitlines())
    assert (len(header), "tongueOut" in header) == (51, False)
    assert float(row[header.index("mouthSmileLeft")]) > 0.5
    assert main(["measure", str(photo), "--arkit", str(photo)]) == 2  # would replace the photograph
    capsys.readouterr()
    assert main(["measure", str(photo), "--arkit", str(tmp_path / "none" / "x.csv")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    twice = tmp_path / "twice.csv"
    line = refused(capsys, "measure", photo, "--arkit", twice, "--openface", tmp_path / "." / "twice.csv")
    assert f"--arkit and --openface name one file, {twice}" in line
    assert not twice.exists()


def test_transfer_of_some_regions(capsys, photo, tmp_path):
    calm = tmp_path / "calm.mpo"  # with a second picture, which the result lacks
    with Image.open(REPOSITORY / "tests" / "portraits" / "closed_mouth.jpg") as face:
        face.save(calm, "MPO", save_all=True, append_images=[face.resize((64, 64))])
    transfer = ["transfer", "--from", photo, "--to", calm, "-o", tmp_path / "out.png", "--quality", "live"]
    assert main([str(a) for a in [*transfer, "--only", "eyes,gaze,head", "--json"]]) == 0
    out, err = capsys.readouterr()
    printed = json.loads(out)
    assert printed["lost"] == ["further pictures"]
    assert "also holds what the result does not: further pictures" in err
    angles = {"gaze_yaw", "gaze_pitch", "head_yaw", "head_pitch", "head_roll"}
    names = {name.rstrip("LR") for name in printed["expression"]["action_units"]}
    assert names == {"AU5", "AU43", "AU45"} | angles
    assert {name.rstrip("LR") for name in printed["faces"][0]["requested"]} == {"AU5", "AU43"} | angles
    for command in (transfer, ["interpolate", calm, photo, "-o", tmp_path / "out.png"]):
        assert main([str(a) for a in [*command, "--only", "eyes,ears"]]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "unknown region 'ears'; known: brow, eye, cheek, nose, lip, jaw, gaze, head, mouth" in err


def test_sweep_draws_a_strip(capsys, photo, tmp_path, model):
    arguments = ["sweep", photo, "--au", "AU12", "--from", "-3", "--to", "5", "--pictures", "3"]
    assert main([str(a) for a in [*arguments, "-o", tmp_path / "strip.png", "--model", model, "--json"]]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [edit["faces"][0]["requested"] for edit in printed["edits"]] == [
        {"AU12": -3.0},
        {"AU12": 1.0},
        {"AU12": 5.0},
    ]
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width > 2.5 * strip.height


def test_prepare_writes_a_dataset(capsys, tmp_path):
    for person, brightness in (("anna", 1.0), ("ben", 0.8)):
        (tmp_path / "photos" / person).mkdir(parents=True)
        for number, flip in enumerate((False, True)):
            pixels = (data.astronaut()[:, :: -1 if flip else 1] * brightness).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / person / f"{number}.png")
    arguments = ["prepare", tmp_path / "photos", "-o", tmp_path / "dataset", "--size", "64", "--json"]
    assert main([str(a) for a in [*arguments, "--validation", "ben"]]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["photographs"] == {"train": 2, "validation": 2}
    assert (tmp_path / "dataset" / "magicedit.json").is_file()


# --- Processes of their own ---


def test_quality_and_fast_reach_the_model(capsys, photo, tmp_path, model):
    edit = ["edit", str(photo), "--au", "AU12=+3", "--model", model, "--no-measure"]
    outputs = {}
    for name, options in (
        ("live", ["--quality", "live"]),
        ("one step", ["--steps", "1"]),
        ("own", []),
        ("fast", ["--fast"]),
    ):
        outputs[name] = tmp_path / f"{name}.png"
        assert main([*edit, "-o", str(outputs[name]), *options]) == 0
        err = capsys.readouterr().err
        assert ("fastest here: float32" in err) == (name == "fast")
    pixels = {name: np.asarray(Image.open(path)).astype(int) for name, path in outputs.items()}
    assert (pixels["live"] == pixels["one step"]).all()  # their marks say what each was asked for
    assert (pixels["live"] != pixels["own"]).any()
    assert np.abs(pixels["own"] - pixels["fast"]).max() <= 2  # of 255: another memory format, other kernels
    assert "exact, balanced, fast, live" in refused_option(capsys, *edit, "-o", "x.png", "--quality", "best")


def refused_option(capsys, *arguments):
    """What a command says of an option that it refuses by itself."""
    with pytest.raises(SystemExit) as ending:
        main(list(arguments))
    assert ending.value.code == 2
    return capsys.readouterr().err.replace("'", "")


def test_help_is_quick_and_shows_examples(tmp_path):
    code = (
        "import sys\nfrom magicedit.cli import main\n"
        "try: main(['edit', '--help'])\n"
        "finally: print([m for m in ('torch', 'diffusers', 'mediapipe', 'cv2', 'numpy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "magicedit edit photo.jpg -o smile.png --au AU12=+3" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"


def test_help_tells_the_dead_zone(capsys):
    with pytest.raises(SystemExit):
        main(["edit", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert f"units measured within {DEAD_ZONE:g} of them stay" in told
    assert f"units of {DEAD_ZONE:g} and more" in told


def test_every_command_has_help(capsys):
    for name in ("edit", "measure", "sweep", "prepare", "convert", "doctor"):
        with pytest.raises(SystemExit) as leaving:
            main([name, "--help"])
        assert leaving.value.code == 0
        assert f"usage: magicedit {name}" in capsys.readouterr().out


def test_help_is_for_people_who_look_for_a_command(capsys):
    """Every command is listed once, under a title, and each has an example of its own."""
    parser = build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    listed = parser.format_help().split("\ncommands:\n")[1]
    assert listed.splitlines()[0] == "  edit photographs"
    for name, command in commands.choices.items():
        assert len(re.findall(rf"^    {name}\b", listed, re.MULTILINE)) == 1, name
        if name != "train":  # its own parser says more
            assert f"magicedit {name} " in command.epilog + " ", name
            text = command.format_help()
            assert text.startswith(f"usage: magicedit {name}")
            assert text.splitlines()[1] == ""  # one line: options are listed, not strung together
            assert [a for a in command._actions if a.option_strings and not a.help] == []


def test_help_of_edit_lists_what_can_be_asked_for():
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    text = commands.choices["edit"].format_help()
    assert f"  {', '.join(EMOTIONS)}\n" in text
    units = re.findall(r"(AU\d+) +([a-z ]+?)(?=  |$)", text.split("names in FACS:\n")[1], re.MULTILINE)
    asked = {control.name: control.description for control in editable(NAMES).controls}
    angles = {name for name in asked if is_angle(name)}
    assert dict(units) == {name: text for name, text in asked.items() if name not in angles}
    assert all(f"  {name:<11} {asked[name]}\n" in text for name in angles)
    assert f"  {', '.join(MOUTH_SHAPES)}\n" in text


# --- Completion in a shell ---


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    code = f"""
source {shlex.quote(str(script))}
function=$(complete -p magicedit | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=({shlex.join(words)})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
COMP_LINE={shlex.quote(" ".join(words))}
COMP_POINT=${{#COMP_LINE}}
$function magicedit "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    run = subprocess.run(["bash", "-c", code], cwd=script.parent, capture_output=True, text=True, timeout=20)
    assert run.returncode == 0, run.stderr
    return [word.strip() for word in run.stdout.split("\n") if word.strip()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_values_and_files(capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    subprocess.run(["bash", "-n", script], check=True)
    (tmp_path / "portrait.jpg").write_bytes(b"")
    assert completed(script, "magicedit", "tran") == ["transfer"]
    assert {"edit", "measure", "push", "completion"} <= set(completed(script, "magicedit", ""))
    assert completed(script, "magicedit", "edit", "--neu") == ["--neutral"]
    assert completed(script, "magicedit", "edit", "--qual") == ["--quality"]
    assert completed(script, "magicedit", "edit", "--quality", "l") == ["live"]
    assert completed(script, "magicedit", "edit", "portr") == ["portrait.jpg"]
    assert completed(script, "magicedit", "train", "--train_data") == ["--train_data_dir"]
    assert completed(script, "magicedit", "edit", "--no-such") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_says_how_it_is_used_as_help_does(capsys, shell):
    assert main(["completion", shell]) == 0
    (line,) = re.findall(r"^# Usage: (.*)$", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(SystemExit):
        main(["completion", "--help"])
    assert f"  {line}" in capsys.readouterr().out


def test_a_reader_that_has_enough_of_the_script_is_no_error(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [sys.executable, "-m", "magicedit.cli", "completion", "bash"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_get_scripts_too(capsys, tmp_path, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "magicedit" in script
    assert "transfer" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)
    assert "did you mean fish?" in refused_option(capsys, "completion", "fisch")


# --- Processes that fail ---


def test_a_process_without_a_face_says_one_line(tmp_path):
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "grey.png")
    run = command("measure", "grey.png", cwd=tmp_path)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.splitlines() == [run.stderr.rstrip("\n")]
    assert run.stderr.startswith("magicedit: error: no face was found in grey.png (200 x 200 px): use one")


def test_a_process_that_edits_keeps_stdout_for_the_result(photo, tmp_path, model):
    run = command("edit", photo, "-o", "out.png", "--au", "AU12=2", "--model", model, "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["output"] == "out.png"
    assert run.stderr == f"looking for faces in photo.png\nloading {model}\n"
    again = command("edit", photo, "-o", "out.png", "--au", "AU12=2", "--model", model, "-q", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (
        "magicedit: error: out.png exists; choose another name, or replace it with --overwrite\n"
    )


def test_train_hands_its_flags_on(tmp_path):
    run = command("train", "--help", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "--train_data_dir" in run.stdout
    run = command("train", "--no_such_flag", "1", cwd=tmp_path)
    assert run.returncode == 2
    assert "no_such_flag" in run.stderr


# --- Bad photographs ---


def truncated(path):
    Image.fromarray(data.astronaut()).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:9000])


def oversized(path, width=13_000, height=10_000):
    """A PNG whose header promises that many pixels."""

    def chunk(kind, content):
        return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )


def animated(path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])


BAD_PHOTOGRAPHS = {
    "missing": (lambda path: None, "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "truncated": (truncated, "damaged or incomplete"),
    "text": (lambda path: path.write_text("not an image"), "not an image"),
    "folder": (lambda path: path.mkdir(), "a file"),
    "one pixel": (lambda path: Image.new("RGB", (1, 1)).save(path, "PNG"), "1 x 1 px"),
    "oversized": (oversized, "limit of 120,000,000 pixels"),
    "enormous": (lambda path: oversized(path, 50_000, 50_000), "too large"),
    "animated": (animated, "animated"),
    "palette": (
        lambda path: Image.fromarray(data.astronaut()).convert("P").save(path, "PNG"),
        'convert("RGB")',
    ),
    "cmyk": (lambda path: Image.new("CMYK", (64, 64)).save(path, "JPEG"), 'convert("RGB")'),
    "16 bits": (lambda path: Image.new("I;16", (64, 64)).save(path, "PNG"), "8 bits"),
    "no face": (lambda path: Image.new("RGB", (64, 64)).save(path, "PNG"), "no face was found"),
}


@pytest.mark.parametrize("kind", BAD_PHOTOGRAPHS)
@pytest.mark.parametrize("name", ["edit", "measure", "sweep"])
def test_bad_photographs(capsys, tmp_path, model, kind, name):
    make, message = BAD_PHOTOGRAPHS[kind]
    path = tmp_path / "photo.png"
    make(path)
    before = listing(tmp_path)
    arguments = {
        "edit": ["edit", path, "-o", tmp_path / "out.png", "--au", "AU12=1", "--model", model],
        "measure": ["measure", path],
        "sweep": ["sweep", path, "-o", tmp_path / "out.png", "--au", "AU12", "--model", model],
    }[name]
    assert message in refused(capsys, *arguments)
    assert listing(tmp_path) == before


# --- Bad requests ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--au", "AU13=1"], "did you mean AU12"),
        (["--au", "AU12=11"], "between -10 and 10"),
        (["--au", "AU12"], "expected NAME=NUMBER"),
        (["--au", "AU12=nan"], "AU12"),
        (["--au", "AU12=1,AU12=2"], "twice"),
        (["--set", "AU12=6"], "between 0 and 5"),
        (["--au", "AU12=1", "--set", "AU12=0"], "AU12"),
        (["--emotion", "happiness", "--set", "AU12=0"], "AU12"),
        (["--emotion", "hapiness"], "did you mean happiness"),
        (["--emotion", "happiness:3"], "between 0 and 1.25"),
        (["--au", "AU12=1", "--steps", "0"], "at least 1"),
        (["--au", "AU12=1", "--guidance", "nan"], "guidance"),
        (["--au", "AU12=1", "--seed", "-1"], "seed"),
        (["--au", "AU12=1", "--face", "2"], "1 face was found, counted from 1"),
        (["--au", "AU12=1", "--device", "cuda:99"], "cuda:99"),
    ],
)
def test_bad_requests(capsys, photo, tmp_path, model, options, message):
    before = listing(tmp_path)
    line = refused(capsys, "edit", photo, "-o", tmp_path / "out.png", "--model", model, *options)
    assert message in line
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["paint"], "paint"),
        (["edit", "photo.png"], "--output"),
        (["edit", "photo.png", "-o", "out.png", "--face", "second"], "second"),
        (["edit", "photo.png", "-o", "out.png", "--face", "0"], "faces are counted from 1"),
        (["transfer", "--from", "a", "--to", "b", "-o", "c.png", "--from-face", "0"], "counted from 1"),
        (["edit", "photo.png", "-o", "out.png", "--smile"], "--smile"),
        (["edti", "photo.png"], "did you mean edit?"),
        (["edit", "photo.png", "-o", "out.png", "--emotoin=happiness"], "did you mean --emotion?"),
        (["edit", "photo.png", "-o", "out.png", "--quality", "fats"], "did you mean fast?"),
        (["edit", "photo.png", "-o", "out.png", "--steps", "many"], "many"),
        (["edit", "photo.png", "-o", "out.png", "--dtype", "int4"], "int4"),
        (["edit", "photo.png", "-o", "out.png", "-q", "-v"], "not allowed with"),
        (["measure", "photo.png", "--backend", "magic"], "magic"),
        (["edit", "photo.png", "-o", ""], "expected a file or folder, got an empty text"),
        (["measure", "photo.png", "--save", ""], "got an empty text"),
    ],
)
def test_a_wrong_option_costs_one_line_too(capsys, arguments, message):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("magicedit: error: ")
    assert message in err


def test_a_video_is_sent_to_its_command(capsys, tmp_path):
    line = refused(capsys, "edit", tmp_path / "clip.MP4", "-o", tmp_path / "out.mp4", "--au", "AU12=2")
    assert "`magicedit video`" in line


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_says_what_is_kept_where_something_is(capsys, tmp_path, begun):
    if begun:
        (tmp_path / ".out.mp4.partial").mkdir()
    with (
        pytest.raises(KeyboardInterrupt),
        telling(quiet=True, verbose=False),
        _resumable(tmp_path / "out.mp4"),
    ):
        raise KeyboardInterrupt
    assert ("kept in .out.mp4.partial" in capsys.readouterr().err) is begun


def test_debug_shows_the_traceback(capsys, tmp_path):
    for arguments in (["--debug", "measure"], ["measure", "--debug"]):
        assert main([*arguments, str(tmp_path / "missing.png")]) == 2
        err = capsys.readouterr().err
        assert "Traceback" in err
        assert "ImageError" in err


def test_an_interrupt_during_imports_is_one_line(capsys, monkeypatch):
    class Interrupted:
        def find_spec(self, name, path=None, target=None):
            if name == "magicedit.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "magicedit.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert entry() == 130
    assert capsys.readouterr().err == "magicedit: interrupted\n"


# --- Bad outputs: nothing is lost ---


def test_never_over_the_input_unless_told(capsys, photo, tmp_path, model):
    before = digest(photo)
    (tmp_path / "link.png").symlink_to(photo)
    os.link(photo, tmp_path / "same.png")
    for name in ("photo.png", "link.png", "same.png"):
        line = refused(capsys, "edit", photo, "-o", tmp_path / name, "--au", "AU12=2", "--model", model)
        assert "is the input" in line
        assert "--overwrite" in line
        assert digest(photo) == before
    for option, format in (("--save", "YAML"), ("--arkit", "CSV"), ("--openface", "CSV")):
        line = refused(capsys, "measure", photo, option, tmp_path / "smile.json")
        assert f"{option} writes {format}; end the name in .{format.lower()}, got " in line
    assert "use .gif, .mp4 or" in refused(capsys, "interpolate", photo, photo, "-o", tmp_path / "x.mov")
    for suffix, seconds, limits in (("gif", 1e9, "0.01 to 655.35"), ("mp4", 1e-9, "0.001 to 3600")):
        words = ["interpolate", photo, photo, "-o", tmp_path / f"x.{suffix}", "--seconds", seconds]
        assert f"a picture is shown for {limits} s, got " in refused(capsys, *words)
    for words in (  # what is no edit of it never replaces it
        ["sweep", photo, "-o", photo, "--au", "AU12"],
        ["interpolate", photo, photo, "-o", photo],
        ["measure", photo, "--arkit", photo],
    ):
        for option in ([], ["--overwrite"]):
            assert refused(capsys, *words, *option).endswith("photo.png is the input; choose another output")
    arguments = ["edit", photo, "-o", photo, "--au", "AU12=2", "--model", model, "--overwrite"]
    assert main([str(argument) for argument in arguments]) == 0
    assert digest(photo) != before
    with Image.open(photo) as edited:
        assert edited.size == (512, 512)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("no/such/folder/out.png", "does not exist"),
        ("out.xyz", "suffix"),
        ("out", "suffix"),
        ("folder.png", "is a folder"),
    ],
)
@pytest.mark.parametrize("name", ["edit", "sweep"])
def test_unusable_outputs_are_refused_before_the_model_loads(capsys, photo, tmp_path, name, output, message):
    (tmp_path / "folder.png").mkdir()
    options = {"edit": ["--au", "AU12=1"], "sweep": ["--au", "AU12"]}[name]
    line = refused(capsys, name, photo, "-o", tmp_path / output, "--model", "no/model", *options)
    assert message in line


def test_a_transparent_photograph_is_not_flattened_into_a_jpeg(capsys, tmp_path, model):
    image = Image.fromarray(data.astronaut()).convert("RGBA")
    image.save(tmp_path / "photo.png")
    line = refused(
        capsys, "edit", tmp_path / "photo.png", "-o", tmp_path / "out.jpg", "--au", "AU12=1", "--model", model
    )
    assert "transparency" in line
    assert not (tmp_path / "out.jpg").exists()


def test_a_write_that_fails_half_way_leaves_the_old_file(photo, tmp_path, model):
    old = tmp_path / "out.png"
    Image.new("RGB", (20, 20), "blue").save(old)
    before = listing(tmp_path)
    arguments = ["edit", photo, "-o", old, "--au", "AU12=2", "--model", model, "--overwrite"]
    run = command(*arguments, cwd=tmp_path, limit_file_size=20_000)  # the result takes 400 kB
    assert run.returncode == 2, run.stderr
    assert "could not be written" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert listing(tmp_path) == before
    assert not list(tmp_path.glob(".*"))
    assert (
        command(*arguments, cwd=tmp_path).returncode == 0
    )  # the negative control: without the limit it is replaced
    assert digest(old) != before["out.png"]


def test_no_command_replaces_a_file_unless_told(capsys, tmp_path, monkeypatch):
    """Said before anything is loaded, of each of the commands that write a file, also of empty ones."""
    monkeypatch.setattr("magicedit.cli.common.load_editor", lambda *_: pytest.fail("it was loaded"))
    monkeypatch.setattr("magicedit.faces.load_backend", lambda *_: pytest.fail("it was loaded"))
    portrait = tmp_path / "photo.png"
    Image.fromarray(data.astronaut()).save(portrait)
    write_video(tmp_path / "clip.mp4", [data.astronaut()] * 2)
    for name in ("out.png", "out.gif", "out.mp4", "out.yaml", "out.csv"):
        (tmp_path / name).touch()
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "compare.html").touch()
    for words in (
        "edit photo.png -o out.png --au AU12=1",
        "sweep photo.png -o out.png --au AU12",
        "transfer --from photo.png --to photo.png -o out.png",
        "interpolate photo.png photo.png -o out.png",
        "interpolate photo.png photo.png -o out.gif",
        "measure photo.png --save out.yaml",
        "measure photo.png --arkit out.csv",
        "measure clip.mp4 --arkit out.csv",
        "video clip.mp4 -o out.mp4 --au AU12=1",
        "reenact --source photo.png --driving clip.mp4 -o out.mp4",
        "compare report report -o report",
    ):
        monkeypatch.chdir(tmp_path)
        assert "exists; choose another name, or replace it with --overwrite" in refused(
            capsys, *words.split()
        )
    (tmp_path / "out.layers.exr").touch()
    layers = ["edit", "photo.png", "-o", "new.png", "--au", "AU12=1", "--layers", "exr"]
    (tmp_path / "new.layers.exr").touch()
    assert "new.layers.exr exists" in refused(capsys, *layers)
    assert all(not (tmp_path / name).stat().st_size for name in ("out.png", "out.mp4", "out.yaml", "out.csv"))


def test_model_device_and_face_are_checked_before_anything_is_loaded(capsys, photo, tmp_path, monkeypatch):
    monkeypatch.setattr(ExpressionEditor, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    edit = ["edit", str(photo), "-o", str(tmp_path / "out.png"), "--au", "AU12=1"]
    for options, message in (
        (["--model", "nowhere"], "there is no folder nowhere"),
        (["--model", str(tmp_path)], "is not a pipeline folder"),
        (["--device", "cuda:99"], "there is no device cuda:99"),
        (["--face", "2"], "face 2 does not exist"),
        (["--reference", str(tmp_path / "gone.png")], "gone.png does not exist"),
    ):
        assert main([*edit, *options]) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert "loading" not in out + err


# --- Several photographs, pipes, and how much is told ---


def test_several_photographs_of_which_one_cannot_be_read(capsys, photo, tmp_path, model):
    (tmp_path / "other").mkdir()
    Image.fromarray(data.astronaut()[:, ::-1]).save(tmp_path / "other" / "second.jpg")
    edit = ["edit", str(photo), str(tmp_path / "gone.png"), str(tmp_path / "other" / "second.jpg")]
    options = ["-o", str(tmp_path / "out"), "--au", "12=3", "--model", model, "--workers", "1"]
    assert main([*edit, *options]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"edited +2\n.*failed +1\n", out, re.DOTALL)
    assert re.search(r"gone\.png +.*does not exist", err)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"photo.png", "second.jpg", "edits.jsonl"}
    alone = ["edit", str(photo), "-o", str(tmp_path / "alone.png"), *options[2:6]]
    assert main(alone) == 0
    assert digest(tmp_path / "out" / "photo.png") == digest(tmp_path / "alone.png")
    # What is there stays; a photograph and a folder that exists is the same work
    assert main(["edit", str(photo), *options]) == 0
    assert re.search(r"skipped +1 ", capsys.readouterr().out)
    (tmp_path / "out" / "gone.png").write_bytes(b"somebody's")
    photo.with_name("gone.png").write_bytes(photo.read_bytes())
    assert "replace them with --overwrite" in refused(capsys, *edit, *options)
    assert (tmp_path / "out" / "gone.png").read_bytes() == b"somebody's"
    for words, message in (
        ([*edit[:3], "-o", str(tmp_path / "new.png")], "-o names a folder"),
        (
            [*edit[:2], str(tmp_path / "other"), "-o", str(tmp_path / "new")],
            "one folder, or photographs",
        ),
        ([*edit[:2], "-", "-o", str(tmp_path / "new")], "- is for one photograph"),
        ([*edit[:2], str(photo), "-o", str(tmp_path / "new")], "would both be written to photo.png"),
    ):
        assert message in refused(capsys, *words, "--au", "AU12=1")


def test_a_pipe_gives_the_pixels_of_a_file(photo, tmp_path, model):
    options = ["--au", "AU12=2", "--model", model, "--no-measure"]
    piped = command("edit", "-", "-o", "-", *options, cwd=tmp_path, sent=photo.read_bytes())
    assert piped.returncode == 0, piped.stderr
    assert main(["edit", str(photo), "-o", str(tmp_path / "out.png"), *options]) == 0
    with Image.open(io.BytesIO(piped.stdout)) as edited, Image.open(tmp_path / "out.png") as expected:
        assert edited.format == "PNG"
        assert np.array_equal(edited, expected)
    assert piped.stderr.decode().splitlines()[0] == "looking for faces in stdin"
    assert piped.stderr.decode().splitlines()[-1].startswith("stdout  (")
    jpeg = ["edit", str(photo), "-o", "-", "--format", "jpg", *options, "-q"]
    assert Image.open(io.BytesIO(command(*jpeg, cwd=tmp_path, sent=b"").stdout)).format == "JPEG"
    broken = command("edit", "-", "-o", "-", *options, cwd=tmp_path, sent=b"no picture")
    assert (broken.returncode, broken.stdout) == (2, b"")
    assert broken.stderr.startswith(b"magicedit: error: stdin ")
    measured = command("measure", "-", "--json", cwd=tmp_path, sent=photo.read_bytes())
    assert json.loads(measured.stdout)["faces"][0]["action_units"]["AU12"] > 3
    shutil.copy(photo, tmp_path / "-")
    file = command("measure", "./-", "--json", cwd=tmp_path, sent=b"no picture")
    assert json.loads(file.stdout)["faces"] == json.loads(measured.stdout)["faces"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_streams_that_are_closed_or_full(photo, tmp_path):
    def verify(redirected: str) -> tuple[int, str, str]:
        line = f'"{sys.executable}" -m magicedit verify photo.png gone.png {redirected}'
        run = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True)
        return run.returncode, run.stdout, run.stderr

    code, out, err = verify("")
    assert (code, err.count("\n")) == (1, 1)
    assert verify("2>&-") == (code, out, "")  # no message for people among the results
    assert verify(">&-") == (code, "", err)
    code, _, told = verify(">/dev/full")
    assert code == 2
    assert told.endswith("the results could not be written (No space left on device); make room\n")
    assert "Traceback" not in told


def test_quiet_and_verbose(capsys, photo, tmp_path, model):
    edit = ["edit", str(photo), "-o", str(tmp_path / "out.png"), "--model", model, "--overwrite"]
    assert main([*edit, "--au", "AU12=-1", "--no-measure", "-q"]) == 0
    quiet = capsys.readouterr()
    assert (quiet.err, quiet.out.splitlines()[0][:6]) == ("", "face 1")
    assert main([*edit, "--quiet"]) == 0
    assert capsys.readouterr().err.startswith("warning: nothing is requested")
    assert main(["-v", *edit, "--au", "AU12=1"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r" *\d+ ms  ", line) for line in lines)
    assert any("found faces 1" in line for line in lines)
    parser = build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for command in commands.choices.values():
        assert {"-q", "--quiet", "-v", "--verbose"} <= {*command._option_string_actions}


def test_a_quiet_app_still_tells_its_address_and_password(capsys, monkeypatch):
    monkeypatch.setattr("magicedit.app.serve", lambda load, *, say, **_: say("the page is at ..."))
    assert main(["app", "-q"]) == 0
    assert capsys.readouterr().err == "the page is at ...\n"


def test_steps_are_the_models_in_all_commands():
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    told = {
        name: command._option_string_actions["--steps"].help
        for name, command in commands.choices.items()
        if "--steps" in command._option_string_actions
    }
    assert {"edit", "sweep", "transfer", "interpolate", "video", "reenact", "evaluate"} <= told.keys()
    assert all(text.startswith("denoising steps of the model") for text in told.values())
    args = build_parser().parse_args(
        ["sweep", "a.png", "--au", "AU12", "-o", "b.png", "--inference-steps", "4"]
    )
    assert (args.steps, args.pictures) == (4, None)


def test_a_unit_in_the_place_of_a_command_tells_what_the_model_edits(capsys, tmp_path):
    assert f"mini edits {', '.join(editable(NAMES))}. For example" in refused(capsys, "AU21")
    about = {"_class_name": "MagicEditPipeline", "action_units": "AU12,AU4"}
    (tmp_path / "model_index.json").write_text(json.dumps(about))
    assert f"{tmp_path} edits AU12, AU4. For example" in refused(capsys, "au12=3", "--model", tmp_path)
    assert "there is no folder nowhere" in refused(capsys, "AU21", "--model", "nowhere")
    assert "--model: expected one argument" in refused(capsys, "AU21", "--model")


# --- Bad models ---


def test_no_such_model(capsys, photo, tmp_path):
    line = refused(
        capsys, "edit", photo, "-o", tmp_path / "out.png", "--au", "AU12=1", "--model", tmp_path / "nowhere"
    )
    assert "nowhere" in line


@pytest.mark.parametrize("part", ["unet", "reference_unet"])
def test_missing_and_mismatched_tensors_are_named(capsys, photo, tmp_path, model, part):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    gone = tensors.pop("conv_out.bias")
    save_file(tensors, weights)
    arguments = ["edit", photo, "-o", tmp_path / "out.png", "--au", "AU12=1", "--model", broken]
    assert "conv_out.bias" in refused(capsys, *arguments)
    tensors["conv_out.bias"] = gone[:-1].clone()
    save_file(tensors, weights)
    assert "conv_out.bias" in refused(capsys, *arguments)
    assert not (tmp_path / "out.png").exists()


def test_a_pickle_is_refused(capsys, photo, tmp_path, model):
    import torch

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), broken / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    line = refused(capsys, "edit", photo, "-o", tmp_path / "out.png", "--au", "AU12=1", "--model", broken)
    assert "diffusion_pytorch_model.bin" in line


def test_convert_names_what_is_missing(capsys, tmp_path):
    line = refused(capsys, "convert", tmp_path / "nothing", "--base", tmp_path / "sd", "-o", tmp_path / "out")
    assert "nothing" in line
    assert not (tmp_path / "out").exists()


# --- Bad training folders ---


def test_prepare_of_nothing(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        line = refused(capsys, "prepare", tmp_path / folder, "-o", tmp_path / "dataset")
        assert folder in line


def test_validation_option(tmp_path):
    (tmp_path / "ids.txt").write_text("anna\n\n  ben \n")
    assert validation_choice(None) == {}
    assert validation_choice("0.1") == validation_choice(".1") == {"validation_fraction": 0.1}
    assert validation_choice("001,011") == {"validation": ["001", "011"]}
    assert validation_choice("1") == {
        "validation": ["1"]
    }  # a name: a fraction of one leaves nobody to train on
    assert validation_choice(f"@{tmp_path / 'ids.txt'}") == {"validation": ["anna", "ben"]}
    with pytest.raises(DatasetError, match="names nobody"):
        validation_choice(",")
    with pytest.raises(DatasetError, match=r"missing\.txt"):
        validation_choice(f"@{tmp_path / 'missing.txt'}")


def test_what_an_output_cannot_hold_is_said_before_the_work(capsys, tmp_path, monkeypatch):
    """No model is loaded for it."""
    from magicedit.cli import common

    monkeypatch.setattr(common, "load_editor", lambda *_: pytest.fail("it was loaded"))
    face = Image.fromarray(data.astronaut()).convert("RGBA")
    face.putalpha(128)
    face.save(tmp_path / "photo.png")
    said = refused(capsys, "edit", tmp_path / "photo.png", "-o", tmp_path / "out.jpg", "--au", "AU12=1")
    assert "a JPEG cannot hold this image's transparency" in said
