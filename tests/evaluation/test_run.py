"""Running protocols: rows, interruptions, failures, and what is refused before the first edit."""

import contextlib
import csv
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magicedit.baselines import WarpEditor, copy
from magicedit.cli import main
from magicedit.cli.evaluation import open_editor
from magicedit.errors import MagicEditError, OutputError
from magicedit.evaluation import Entrant, PictureFolder, evaluate, load_protocol, read_subjects
from magicedit.evaluation.circumstances import plain_command, without_folders
from magicedit.evaluation.report import load_report
from magicedit.evaluation.run import ROWS, open_rows, read_rows, read_run, run_protocol, safe_name

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from attacks import evaluate_crashes

PROTOCOL = """
name: brief
version: 1
title: A few edits
description: For tests.
identities: 2
levels: {action_units: [AU12, AU2], values: [-3, 3]}
combinations: ["AU1=+2,AU4=+2"]
zero: true
"""
EDITS = 2 * 6


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Path:
    """The astronaut, and her mirror image under another name."""
    picture = pytest.importorskip("skimage.data").astronaut()[:320, 60:380]
    folder = tmp_path_factory.mktemp("people")
    for name, pixels in (("ann", picture), ("bea", picture[:, ::-1])):
        (folder / name).mkdir()
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / name / "neutral.png")
    (folder / "attributes.csv").write_text("identity,hair\nann,left\nbea,right\n")
    return folder


@pytest.fixture
def protocol_file(tmp_path) -> Path:
    path = tmp_path / "brief.yaml"
    path.write_text(PROTOCOL)
    return path


@pytest.fixture
def run(people, protocol_file, tmp_path):
    """`run(open_editor, jobs=1, to="out")`: the rows of one editor named "it"."""

    def run_one(open_editor, *, to="out", name="it", settings=None, **more):
        entrant = Entrant(name, open_editor, settings or {})
        more = {"cold_start": False} | more
        return run_protocol(
            [entrant], load_protocol(protocol_file), read_subjects(people), tmp_path / to, **more
        )

    return run_one


open_copy = functools.partial(open_editor, "copy")  # which other processes can open too
open_warp = functools.partial(open_editor, "warp")


def untimed(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_a_copy_changes_nothing_and_has_the_full_error(run, tmp_path):
    rows = run(open_copy, cold_start=True)
    assert [row["error"] for row in rows] == [None] * EDITS
    for row in rows:
        assert row["identity_distance"] == row["background_rmse"] == row["pose_degrees"] == 0
        assert row["pixels_changed"] == 0
        assert row["ssim"] == pytest.approx(1)
        assert set(row["changed"]["blendshapes"].values()) == {0.0}
    brows = next(row for row in rows if row["request"] == "AU2=+3")
    start = brows["before"]["blendshapes"]["AU2"]
    assert brows["au_mse_asked"]["blendshapes"] == pytest.approx(min(3, 5 - start) ** 2, abs=1e-3)
    assert brows["group"]["hair"] == "left"
    assert brows["group"]["head"] in ("frontal", "turned")
    assert (tmp_path / "out" / brows["picture"]).is_file()
    cold = read_run(tmp_path / "out")["cold"]["it"]
    assert cold["seconds"] > 0
    assert cold["peak_memory_mb"] > 50


def test_the_originals_picture_is_written_once(run, tmp_path):
    run(open_copy)
    originals = sorted((tmp_path / "out" / "pictures" / "original").iterdir())
    written = [path.stat().st_mtime_ns for path in originals]
    run(open_copy, name="another")
    assert len(originals) == 2
    assert [path.stat().st_mtime_ns for path in originals] == written


def test_two_processes_write_what_one_writes(run):
    assert untimed(run(open_warp, to="one")) == untimed(run(open_warp, to="two", jobs=2))


class Deadly:
    """Ends its process at one request, as a lack of memory does."""

    def __call__(self, photo, au_delta, seed):
        if au_delta == {"AU12": 3.0}:
            os._exit(9)
        return photo.pixels


def test_run_protocol_fails_only_the_edit_whose_process_died(run):
    rows = run(Deadly, jobs=2)
    assert [row["request"] for row in rows if row["error"]] == ["AU12=+3"] * 2
    assert "ended with code 9" in next(row["error"] for row in rows if row["error"])


class Interrupted:
    """Warps, and is interrupted at one call."""

    def __init__(self, at: int | None):
        self.warp, self.at, self.calls = WarpEditor(), at, 0

    def __call__(self, photo, au_delta, seed):
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.warp(photo, au_delta, seed)


def test_an_interruption_loses_at_most_one_edit(run):
    whole = untimed(run(open_warp, to="whole"))
    calls = 0
    for at in (4, 5):
        editor = Interrupted(at)
        with pytest.raises(KeyboardInterrupt):
            run(lambda editor=editor: editor)
        calls += editor.calls
    editor = Interrupted(None)
    rows = run(lambda: editor)
    assert untimed(rows) == whole
    assert calls + editor.calls == EDITS + 2  # one lost at each interruption
    run(lambda: Interrupted(1))  # nothing is left to do, so nothing can be interrupted


def test_a_line_cut_off_is_edited_again(run, tmp_path):
    rows = run(open_copy)
    path = tmp_path / "out" / ROWS
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    assert len(read_rows(tmp_path / "out")) == EDITS - 1
    assert untimed(run(open_copy)) == untimed(rows)
    path.write_bytes(content.replace(b'"editor"', b'"edotir"', 1))
    with pytest.raises(OutputError, match="line 1"):
        run(open_copy)


def test_run_protocol_refuses_a_folder_that_another_run_writes_into(run, tmp_path):
    run(open_copy)
    with open_rows(tmp_path / "out"), pytest.raises(OutputError, match="another run is writing"):
        run(open_copy, name="another")
    assert list(read_run(tmp_path / "out")["editors"]) == ["it"]
    assert len(run(open_copy, name="another")) == EDITS


def test_run_protocol_begins_in_a_folder_left_before_its_first_row(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ROWS).touch()
    assert len(run(open_copy)) == EDITS


VALID = {
    **{"editor": "it", "identity": "ann", "person": "ann", "kind": "zero", "request": "none", "seed": 0},
    **{"asked": {}, "group": {}, "error": None, "picture": "a.jpg", "original": "b.jpg", "changed": {}},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"editor": 3},
        {"identity": ["ann"]},
        {"seed": "0"},
        {"seed": True},
        {"asked": [1]},
        {"asked": {"AU12": "much"}},
        {"group": {"age": 3}},
        {"error": 3},
        {"picture": None},
        {"changed": {"blendshapes": 3}},
        {"changed": {"blendshapes": {"AU12": []}}},
        {"au_mse": 3},
        {"ssim": "high"},
    ],
)
def test_rows_with_other_values_are_refused(tmp_path, changes):
    for row, usable in ((VALID, True), (VALID | changes, False)):
        (tmp_path / ROWS).write_text(json.dumps(row) + "\n")
        with (
            contextlib.nullcontext() if usable else pytest.raises(OutputError, match="line 1 was not written")
        ):
            assert len(read_rows(tmp_path)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "[" * 100_000,
        "9" * 5000,
        '{"protocol": "brief", "version": 1, "photographs": [], "editors": {}, "skipped": {}}',
        '{"protocol": "brief", "version": 1, "photographs": {}, "editors": {"it": 3}, "skipped": {}}',
        '{"protocol": "b", "version": 1, "photographs": {}, "editors": {}, "skipped": {}, "cold": {"it": 3}}',
        "\0",
    ],
)
def test_a_run_json_that_holds_anything_is_refused(run, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text(text)
    with pytest.raises(OutputError, match=r"run\.json (cannot be read|has no usable)"):
        run(open_copy)


def test_run_protocol_begins_where_a_kill_left_a_temporary_file(run, tmp_path):
    left = tmp_path / "out" / ".magicedit-0123456789abcdef.tmp"
    left.parent.mkdir()
    left.touch()
    assert len(run(open_copy)) == EDITS
    assert not left.exists()


@pytest.mark.parametrize("output", ["file/out", "x" * 300])
def test_reports_that_cannot_be_made(run, tmp_path, output):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be"):
        run(open_copy, to=output)


def test_evaluate_is_whole_again_after_a_kill_at_any_point_of_a_sample(tmp_path):
    """Of the campaign, which kills at many more."""
    for number, attack in enumerate(evaluate_crashes.attacks(seed=1, short=True)):
        (tmp_path / str(number)).mkdir()
        assert attack.check(tmp_path / str(number)) is None, attack.name


class Moody:
    """Fails in different ways, request by request."""

    def __call__(self, photo, au_delta, seed):
        if au_delta == {"AU12": 3.0}:
            raise RuntimeError("I do not smile")
        if au_delta == {"AU2": 3.0}:
            return photo.pixels[:100]
        if au_delta == {"AU2": -3.0}:
            return np.full_like(photo.pixels, 128)
        return photo.pixels


def test_a_failed_edit_is_a_row_with_its_error(run):
    errors = {row["request"]: row["error"] for row in run(Moody) if row["identity"] == "ann"}
    assert errors.pop("AU12=+3") == "RuntimeError: I do not smile"
    assert "(100, 320, 3)" in errors.pop("AU2=+3")
    assert "not found again" in errors.pop("AU2=-3")
    assert set(errors.values()) == {None}


class Lacking:
    action_units = ("AU12",)

    def __call__(self, photo, au_delta, seed):
        raise AssertionError("an edit was made")


def test_action_units_that_an_editor_lacks_are_refused_before_the_first_edit(run, tmp_path):
    with pytest.raises(MagicEditError, match=r"it does not know AU1, AU2, AU4, which 3 edits.*AU2=-3"):
        run(Lacking)
    assert not (tmp_path / "out" / ROWS).exists()


def test_a_folder_holds_one_evaluation(run, protocol_file, tmp_path):
    run(open_copy, settings={"guidance": 1.0})
    with pytest.raises(OutputError, match="it with other settings"):
        run(open_copy, settings={"guidance": 2.0})
    run(open_copy, name="another")
    assert {row["editor"] for row in read_rows(tmp_path / "out").values()} == {"it", "another"}
    protocol_file.write_text(PROTOCOL.replace("version: 1", "version: 2"))
    with pytest.raises(OutputError, match="another version"):
        run(open_copy)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="is not a report"):
        run(open_copy, to="mine")


def pictures_by_warp(people: Path, protocol, folder: Path) -> Path:
    """What another system would hand in: pictures and their manifest."""
    lines = ["identity,request,picture"]
    for subject in read_subjects(people):
        editor, photo = WarpEditor(), subject.open()
        for number, edit in enumerate(protocol.edits):
            name = f"{subject.identity}-{number}.png"
            Image.fromarray(editor(photo, edit.asked)).save(folder / name)
            lines.append(f'{subject.identity},"{edit.request}",{name}')
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder / "manifest.csv"


def test_pictures_of_another_system(run, people, protocol_file, tmp_path):
    """The same figures as the editor that made them; a corrupt picture is one failed row."""
    manifest = pictures_by_warp(people, load_protocol(protocol_file), tmp_path)
    broken = tmp_path / "ann-1.png"
    broken.write_bytes(broken.read_bytes()[:2000])
    rows = run(lambda: PictureFolder(manifest))
    (failed,) = [row for row in rows if row["error"]]
    assert failed["request"] == "AU12=+3"
    assert "ann-1.png" in failed["error"]
    directly = {(r["identity"], r["request"]): r["changed"] for r in run(open_warp, to="directly")}
    for row in rows:
        assert row["error"] or row["changed"] == directly[row["identity"], row["request"]]

    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join(lines[:-2]))
    with pytest.raises(MagicEditError, match=r"no picture of bea AU1=\+2,AU4=\+2; bea none"):
        run(lambda: PictureFolder(manifest), to="lacking")


def test_wrong_faces_are_caught_by_the_identity(shared, protocol_file, tmp_path):
    """Right pictures of wrong people; those of the London set have one size."""
    subjects = read_subjects(shared / "faces" / "london", identities=["001", "011", "024"])[:2]
    photos = [subject.open() for subject in subjects]

    def shuffled(photo, au_delta, seed):
        return next(other.pixels for other in photos if not np.array_equal(other.pixels, photo.pixels))

    entrants = [Entrant("shuffled", lambda: shuffled), Entrant("warp", open_warp)]
    protocol = load_protocol(protocol_file)
    rows = run_protocol(entrants, protocol, subjects, tmp_path / "out", cold_start=False)
    distances = {
        name: [row["identity_distance"] for row in rows if row["editor"] == name and row["asked"]]
        for name in ("shuffled", "warp")
    }
    assert min(distances["shuffled"]) > 0.55 > 0.45 > max(distances["warp"])


# --- The command ---


def arguments(people, protocol_file, output, *more):
    known = ["--protocol", str(protocol_file), "--data", str(people), "-o", str(output)]
    return ["evaluate", *known, *more]


def test_the_command_prints_the_table_and_writes_the_report(people, protocol_file, tmp_path, capsys):
    output = tmp_path / "report"
    command = arguments(people, protocol_file, output, "--editor", "copy", "--editor", "moved=warp")
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "| copy" in printed
    assert "| moved" in printed
    assert printed.rstrip().endswith("report.html")
    summary = json.loads((output / "summary.json").read_text())
    assert summary["editors"]["copy"]["headline"]["identity_distance"]["mean"] == 0
    assert summary["editors"]["moved"]["headline"]["identity_distance"]["mean"] > 0.02
    assert str(people.parent) not in (output / "summary.json").read_text()
    times = (output / ROWS).stat().st_mtime_ns
    assert main(command) == 0
    assert (output / ROWS).stat().st_mtime_ns == times


def test_killing_the_command_keeps_its_rows(people, protocol_file, tmp_path):
    output = tmp_path / "report"
    command = [
        *(sys.executable, "-m", "magicedit.cli"),
        *arguments(people, protocol_file, output, "--editor", "warp"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while len(read_whole_lines(output / ROWS)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = read_whole_lines(output / ROWS)
    assert 2 <= len(kept) < EDITS
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    rows = read_whole_lines(output / ROWS)
    assert len(rows) == EDITS
    assert rows[: len(kept)] == kept


def read_whole_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "name what to evaluate"),
        (["--editor", "copy", "--runs", "runs"], "has no variants"),
        (["--editor", "copy", "--editor", "copy"], "names of their own"),
        (["--editor", "nothing/like/this"], "there is no folder"),
        (["--editor", "nosuchmodule:edit"], "nosuchmodule"),
        (["--editor", "copy", "--identities", "zoe"], "no such identities"),
        (["--editor", "copy", "--identities", ","], "names nobody; leave it out to take everybody"),
        (["--editor", "copy", "--identities", "@missing.txt"], "--identities in missing.txt"),
        (["--editor", "copy", "--labels", "labels.csv"], "--labels-scale"),
        (["--editor", "copy", "--jobs", "0"], "--jobs"),
    ],
)
def test_bad_requests_cost_one_line(people, protocol_file, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("input,AU01,AU12\nx.jpg,0.1,0.2\n")
    assert main(arguments(people, protocol_file, tmp_path / "report", *more)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "report" / ROWS).exists()


def test_tables_need_their_runs(people, tmp_path, capsys):
    command = ["evaluate", "--protocol", "table3", "--data", str(people), "-o", str(tmp_path / "report")]
    assert main(command) == 2
    assert "--runs" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert main([*command, "--runs", str(tmp_path / "runs")]) == 2
    assert "has none of the folders of table3" in capsys.readouterr().err
    (tmp_path / "runs" / "linear").mkdir()  # begun, not trained
    assert main([*command, "--runs", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("not run") >= 3


def test_an_editor_without_a_process_of_its_own_has_no_cold_start(people, protocol_file, tmp_path):
    summary = evaluate([Entrant("local", lambda: copy)], protocol_file, people, tmp_path / "report")
    assert summary["editors"]["local"]["peak_memory_mb"] is None


def test_editors_that_are_added_later_join_the_earlier_ones(people, protocol_file, tmp_path):
    """And labels that another tool read, and what is known of people, are added to all."""
    output = tmp_path / "report"
    evaluate([Entrant("warp", open_warp)], protocol_file, people, output, cold_start=False)
    lines = ["input,AU02,AU12,FaceScore"]
    for path in sorted((output / "pictures").rglob("*.jpg")):
        smile = 0.25 if "original" in path.parts else 0.75
        lines.append(f'"{path.relative_to(output)}",0.5,{smile},0.9')
    (tmp_path / "feat.csv").write_text("\n".join(lines))
    (tmp_path / "more.csv").write_text("identity,hair,age\nann,left,42\nbea,right,17\n")
    more = {"labels": tmp_path / "feat.csv", "attributes": tmp_path / "more.csv", "cold_start": False}
    summary = evaluate([Entrant("copy", open_copy)], protocol_file, people, output, **more)
    assert list(summary["editors"]) == ["warp", "copy"]
    assert summary["editors"]["warp"]["edits"] == EDITS
    smile = summary["editors"]["warp"]["control"]["labels"]["AU12"]["levels"]
    assert [level["mean"] for level in smile] == pytest.approx([2.5, 2.5])
    assert set(summary["editors"]["warp"]["groups"]["age"]) == {"10-19", "40-49"}
    rows = read_rows(output).values()
    assert sum("labels" in row["changed"] for row in rows) == EDITS  # of the copy there were none to read
    assert "of 12 of 24 edits" in summary["scorers"]["labels"]["note"]


def test_what_failed_is_edited_again_on_request(run):
    class Mended(Moody):
        def __call__(self, photo, au_delta, seed):
            return photo.pixels

    failed = [row["request"] for row in run(Moody) if row["error"]]
    assert len(failed) == 6
    assert [row["request"] for row in run(Mended) if row["error"]] == failed
    assert not [row for row in run(Mended, retry_failed=True) if row["error"]]


def test_the_report_has_an_edit_once_that_was_made_again(people, protocol_file, tmp_path):
    output, path = tmp_path / "report", tmp_path / "report" / ROWS
    arguments = protocol_file, people, output
    evaluate([Entrant("it", Moody)], *arguments, cold_start=False)
    failed = [line for line in path.read_bytes().splitlines() if b'"error": null' not in line]
    assert len(failed) == 6
    summary = evaluate([Entrant("it", open_copy)], *arguments, cold_start=False, retry_failed=True)
    assert (summary["editors"]["it"]["edits"], summary["editors"]["it"]["failed"]) == (EDITS, 0)
    whole = path.read_bytes()
    assert len(whole.splitlines()) == EDITS
    with (output / "rows.csv").open(newline="") as file:
        assert [row["error"] for row in csv.DictReader(file)] == [""] * EDITS

    # As an interruption leaves it: failed rows, those that replace some of them, and a line cut off
    path.write_bytes(b"\n".join(failed) + b"\n" + whole + whole[:40])
    rows = load_report(output)[0]
    assert len(rows) == EDITS
    assert not [row for row in rows if row["error"]]
    assert path.read_bytes().endswith(whole[:40])  # who reads changes nothing, for another may be writing
    evaluate([Entrant("it", lambda: Interrupted(1))], *arguments, cold_start=False)
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_other_weights_or_photographs_are_another_evaluation(people, protocol_file, tmp_path, run):
    from magicedit.cli.evaluation import fingerprint

    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    (model / "unet" / "weights.safetensors").write_bytes(b"1" * 100)
    first = fingerprint(str(model))
    (model / "unet" / "weights.safetensors").write_bytes(b"1" * 99 + b"2")
    assert fingerprint(str(model)) != first == first.lower()
    assert fingerprint("mini") != fingerprint("copy") is None

    run(open_copy)
    other = tmp_path / "other"
    shutil.copytree(people, other)
    Image.fromarray(np.asarray(Image.open(other / "ann" / "neutral.png")) // 2).save(
        other / "ann" / "neutral.png"
    )
    with pytest.raises(OutputError, match="another photographs"):
        run_protocol(
            [Entrant("it", open_copy)], load_protocol(protocol_file), read_subjects(other), tmp_path / "out"
        )


def test_a_wrong_manifest_leaves_no_trace(run, people, protocol_file, tmp_path):
    """So that the mended one is not refused for it."""
    manifest = pictures_by_warp(people, load_protocol(protocol_file), tmp_path)
    content = manifest.read_text()
    manifest.write_text(content.rpartition("\n")[0])
    with pytest.raises(MagicEditError, match="no picture of"):
        run(lambda: PictureFolder(manifest), settings={"fingerprint": "1"})
    manifest.write_text(content)
    assert len(run(lambda: PictureFolder(manifest), settings={"fingerprint": "2"})) == EDITS


def test_names_of_files():
    assert safe_name("AU1=+2,AU4=+2") == "AU1=+2,AU4=+2"
    assert safe_name("a/b") != safe_name("a_b") == "a_b"
    assert "/" not in safe_name("a/b")
    for name in (".", "..", "", "x" * 300):
        assert 8 <= len(safe_name(name)) < 140
    assert len({safe_name("x" * 200), safe_name("x" * 201)}) == 2


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["--data", "/home/me/people", "-o", "../out/report/"], "it --data people -o report"),
        (["--data=/home/me/people"], "it --data=people"),
        (["theirs=pictures:made/manifest.csv", "org/name"], "it theirs=pictures:made/manifest.csv org/name"),
        (["pictures:/a/b/m.csv", "~/x y"], "it pictures:m.csv 'x y'"),
    ],
)
def test_a_command_tells_no_folders(words, command):
    assert plain_command("it", words) == command


def test_messages_tell_no_folders():
    assert without_folders("no file /home/me/a/b.png, nor ~/x/c.png; 3/4") == "no file b.png, nor c.png; 3/4"


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ending_two_processes_loses_an_edit_each(people, protocol_file, tmp_path, how):
    output = tmp_path / "report"
    command = [
        *(sys.executable, "-m", "magicedit.cli"),
        *arguments(people, protocol_file, output, "--editor", "warp", "--jobs", "2"),
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while len(read_whole_lines(output / ROWS)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, how)
    _, errors = process.communicate(timeout=600)
    kept = read_whole_lines(output / ROWS)
    assert len(kept) >= 2
    assert "Traceback" not in errors
    if how == signal.SIGINT and len(kept) < EDITS:  # else it was done before the signal came
        assert process.returncode == 130
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    rows = read_whole_lines(output / ROWS)
    assert len(rows) == EDITS
    assert rows[: len(kept)] == kept
