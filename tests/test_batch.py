"""Many photographs at once, with `mini`: what is edited, skipped and failed, and that nothing is lost."""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import unicodedata
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from hostile import unlistable_folder
from pages import blocks
from PIL import Image
from skimage import data

from magicedit import ExpressionEditor
from magicedit.action_units import DEAD_ZONE, EMOTIONS, NAMES, editable
from magicedit.batch import JOURNAL, EditRequest, edit_folder, edit_manifest, edit_photographs
from magicedit.batch.rows import COLUMNS, Row, rows_of_manifest
from magicedit.batch.workers import EditorSettings, Pool, edit_rows, sensible_workers
from magicedit.cli import main
from magicedit.embedded import embedded_folder
from magicedit.errors import ActionUnitError, ImageError, MagicEditError, ModelError, OutputError
from magicedit.expression import Expression
from magicedit.ledger import Ledger
from magicedit.provenance import tell
from magicedit.workers import cores

REPOSITORY = Path(__file__).resolve().parent.parent
CALM = EditRequest(add={"AU12": -3}, quality="live", measure=False)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """a.png, its mirror image in sub/, and files that are no photographs, or not for us."""
    folder = tmp_path_factory.mktemp("originals")
    (folder / "sub").mkdir()
    face = np.ascontiguousarray(data.astronaut()[:320, 60:380])
    Image.fromarray(face).save(folder / "a.png")
    Image.fromarray(face[:, ::-1]).save(folder / "sub" / "b.jpg", quality=95)
    (folder / "notes.txt").write_text("not a photograph")
    (folder / ".hidden.png").write_bytes((folder / "a.png").read_bytes())
    return folder


@pytest.fixture
def photos(photographs, tmp_path) -> Path:
    return Path(shutil.copytree(photographs, tmp_path / "photos"))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != JOURNAL
    }


def statuses(report) -> dict[str, str]:
    return {result.row.output.as_posix(): result.status for result in report.results}


def manifest(folder: Path, text: str) -> Path:
    path = folder / "edits.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_results_with_other_marks_or_of_no_bytes_are_made_again(photos, tmp_path):
    """What is asked of privacy and marks counts as the request does; an emptied file is no result."""
    edit_folder(photos, tmp_path / "out", CALM, mark=False)
    assert set(statuses(edit_folder(photos, tmp_path / "out", CALM, mark=False)).values()) == {"skipped"}
    assert set(statuses(edit_folder(photos, tmp_path / "out", CALM)).values()) == {"done"}
    assert tell(tmp_path / "out" / "a.png").edited
    assert set(statuses(edit_folder(photos, tmp_path / "out", CALM, strip_private=True)).values()) == {"done"}
    (tmp_path / "out" / "a.png").write_bytes(b"")
    again = statuses(edit_folder(photos, tmp_path / "out", CALM, strip_private=True))
    assert {again.pop("a.png"), *again.values()} == {"done", "skipped"}
    assert (tmp_path / "out" / "a.png").stat().st_size > 0


def test_references_of_a_batch_are_checked_first_and_remembered(photos, tmp_path):
    """By their mouths, whatever they are given as; one that nobody can use would fail every row."""
    (photos / "sub" / "b.jpg").unlink()
    smile, out = Path(shutil.copy(photos / "a.png", tmp_path)), tmp_path / "out"
    for reference, status in (
        (smile, "done"),
        (np.array(Image.open(smile)), "skipped"),
        (photos / "a.png", "skipped"),
    ):
        request = EditRequest(add={"AU25": 3}, quality="live", measure=False, references=[reference])
        assert statuses(edit_folder(photos, out, request)) == {"a.png": status}
    Image.open(smile).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(smile)
    request = EditRequest(add={"AU25": 3}, quality="live", measure=False, references=[smile])
    assert statuses(edit_folder(photos, out, request)) == {"a.png": "done"}
    Image.new("RGB", (200, 200)).save(smile)
    with pytest.raises(MagicEditError, match=r"no face was found in .*a\.png"):
        edit_folder(photos, out, request)
    with pytest.raises(MagicEditError, match=r"photos must be a list of photographs, got '.*a\.png'"):
        edit_photographs(str(smile), out, request)


def test_whole_numbers_of_a_manifest_may_have_a_point(tmp_path):
    """As pandas writes a column that has empty cells too."""
    path = manifest(tmp_path, "photo,seed,steps,face\na.png,7.0,3.,2.0\nb.png,,,\n")
    first, second = rows_of_manifest(path, tmp_path / "out", EditRequest(add={"AU12": 1}), None, None)
    assert (first.request.seed, first.request.steps, first.request.face) == (7, 3, 1)
    assert second.request.steps is None
    with pytest.raises(MagicEditError, match="row 2: column face: faces are counted from 1"):
        rows_of_manifest(manifest(tmp_path, "photo,face\na.png,0\n"), tmp_path / "out", CALM, None, None)
    with pytest.raises(MagicEditError, match="expected a whole number"):
        rows_of_manifest(manifest(tmp_path, "photo,seed\na.png,7.5\n"), tmp_path / "out", CALM, None, None)


def test_what_a_photograph_loses_is_told_of_its_row(photos, tmp_path):
    """A phone's two pictures in one file, of which one is edited; also by the run that finds it done."""
    face = Image.open(photos / "a.png")
    face.save(photos / "two.mpo", "MPO", save_all=True, append_images=[face.resize((64, 64))])
    for status in ("done", "skipped"):
        report = edit_folder(photos, tmp_path / "out", CALM, format="jpg")
        told = {result.row.photo.name: (result.status, result.lost) for result in report.results}
        assert told["two.mpo"] == (status, ["further pictures"])
        assert told["a.png"] == (status, [])
        (row,) = (row for row in report.to_json()["rows"] if row["photo"] == "two.mpo")
        assert row["lost"] == ["further pictures"]
        assert report.to_json()["warnings"] >= 1


# --- Folders ---


def test_every_photograph_is_edited_as_one_alone(photos, tmp_path):
    before = digests(photos)
    report = edit_folder(photos, tmp_path / "out", EditRequest(add={"AU12": -3}))
    assert statuses(report) == {"a.png": "done", "sub/b.jpg": "done"}
    assert set(digests(tmp_path / "out")) == {"a.png", "sub/b.jpg"}
    assert digests(photos) == before

    alone = ExpressionEditor.from_pretrained("mini").edit(photos / "a.png", add={"AU12": -3})
    edited = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    assert np.array_equal(edited, np.asarray(alone.image))
    assert not np.array_equal(edited, np.asarray(Image.open(photos / "a.png")))
    assert report.results[0].faces == [face.to_json() for face in alone.faces]


def test_running_again_does_only_what_changed(photos, tmp_path):
    out = tmp_path / "out"
    edit_folder(photos, out, CALM)
    first = digests(out)
    again = edit_folder(photos, out, CALM)
    assert statuses(again) == {"a.png": "skipped", "sub/b.jpg": "skipped"}
    assert again.workers == 0

    # A photograph: the other one is left alone
    Image.fromarray(np.ascontiguousarray(np.asarray(Image.open(photos / "a.png"))[::, 4:])).save(
        photos / "a.png"
    )
    assert statuses(edit_folder(photos, out, CALM)) == {"a.png": "done", "sub/b.jpg": "skipped"}
    second = digests(out)
    assert second["a.png"] != first["a.png"]
    assert second["sub/b.jpg"] == first["sub/b.jpg"]

    # The request: everything; an equal one in other words: nothing
    stronger = EditRequest(add="AU12=-4", quality="live", measure=False)
    assert set(statuses(edit_folder(photos, out, stronger)).values()) == {"done"}
    assert digests(out)["sub/b.jpg"] != first["sub/b.jpg"]
    same = EditRequest(add={"au012": -4.0}, quality="live", measure=False)
    assert set(statuses(edit_folder(photos, out, same)).values()) == {"skipped"}

    # The model, an output that is gone, and force
    assert set(statuses(edit_folder(photos, out, same, model="mini-live")).values()) == {"done"}
    (out / "a.png").unlink()
    lost = edit_folder(photos, out, same, model="mini-live")
    assert statuses(lost) == {"a.png": "done", "sub/b.jpg": "skipped"}
    assert set(statuses(edit_folder(photos, out, same, model="mini-live", force=True)).values()) == {"done"}


def test_one_bad_photograph_fails_alone(photos, tmp_path, capsys):
    (photos / "broken.jpg").write_bytes((photos / "sub" / "b.jpg").read_bytes()[:5000])
    Image.new("RGB", (200, 200)).save(photos / "nobody.png")
    (photos / "phone.heic").write_bytes(b"ftypheic")
    options = ["--au", "AU12=-3", "--quality", "live", "--no-measure", "--workers", "1"]
    command = ["edit", str(photos), "-o", str(tmp_path / "out"), *options]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[:3]] == [
        ["edited", "2"],
        ["skipped", "0"],
        ["failed", "3"],
    ]
    table = err.split("failed:\n")[1].splitlines()[1:]
    assert [line.split()[0] for line in table] == ["broken.jpg", "nobody.png", "phone.heic"]
    assert "row" not in err.split("failed:\n")[1].splitlines()[0]  # there is no manifest with rows
    assert err.count("loading mini\n") == 1
    assert "damaged or incomplete" in table[0]
    assert "no face was found" in table[1]
    assert set(digests(tmp_path / "out")) == {"a.png", "sub/b.jpg"}

    # What failed is tried again, and the rest is not
    shutil.copy(photos / "a.png", photos / "nobody.png")
    (photos / "broken.jpg").unlink()
    (photos / "phone.heic").unlink()
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["done"], printed["skipped"], printed["failed"]) == (1, 2, 0)
    assert [row["status"] for row in printed["rows"]] == ["skipped", "done", "skipped"]


def test_results_inside_the_folder_are_not_photographs_of_the_next_run(photos):
    out = photos / "edited"
    assert len(edit_folder(photos, out, CALM).results) == 2
    assert set(statuses(edit_folder(photos, out, CALM)).values()) == {"skipped"}


def test_results_of_an_earlier_folder_are_no_photographs(photos, capsys):
    edit_folder(photos, photos / "first", CALM)
    report = edit_folder(photos, photos / "second", CALM)
    assert statuses(report) == {"a.png": "done", "sub/b.jpg": "done"}
    assert len(edit_folder(photos / "first", photos / "again", CALM).results) == 2  # asked for by name
    (photos / "a.png").unlink()
    shutil.rmtree(photos / "sub")
    with pytest.raises(ImageError, match=r"not in sub-folders of earlier results \(with edits\.jsonl\)"):
        edit_folder(photos, photos / "third", CALM)


def test_other_names_of_a_model_are_the_same_model(photos, tmp_path, monkeypatch):
    shutil.copytree(embedded_folder("mini"), tmp_path / "mm")
    monkeypatch.chdir(tmp_path)
    edit_folder(photos, tmp_path / "out", CALM, model="mm")
    for name in ("./mm/", str(tmp_path / "mm"), "mini"):
        again = edit_folder(photos, tmp_path / "out", CALM, model=name)
        assert set(statuses(again).values()) == {"skipped"}
    config = tmp_path / "mm" / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    changed = edit_folder(photos, tmp_path / "out", CALM, model="mm")
    assert set(statuses(changed).values()) == {"done"}


@pytest.mark.parametrize("kind", ["photograph", "folder", "manifest"])
def test_nothing_asked_is_said(photos, tmp_path, capsys, kind):
    """What comes out are copies, which may be wanted; but a forgotten option is more likely."""
    shutil.rmtree(photos / "sub")
    table = manifest(photos, "photo,AU12\na.png,\n")
    source = photos / "a.png" if kind == "photograph" else photos
    output = tmp_path / ("out.png" if kind == "photograph" else "out")
    options = ["--manifest", str(table)] if kind == "manifest" else []
    command = ["edit", str(source), "-o", str(output), *options]
    assert main([*command, "--no-measure"]) == 0
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("warning")]
    assert "nothing is requested" in line
    assert "--au, --set, --emotion, --expression, --neutral" in line
    copy = output if kind == "photograph" else output / "a.png"
    assert copy.read_bytes() == (photos / "a.png").read_bytes()
    assert main([*command, "--no-measure", "--au", "AU12=-3", "--overwrite"]) == 0
    assert "nothing is requested" not in capsys.readouterr().err


def test_folders_behind_links_are_looked_into_once(photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(photos / "a.png", tmp_path / "elsewhere" / "c.png")
    (photos / "more").symlink_to(tmp_path / "elsewhere")
    (photos / "again").symlink_to(photos)
    report = edit_folder(photos, tmp_path / "out", CALM)
    assert statuses(report) == dict.fromkeys(("a.png", "more/c.png", "sub/b.jpg"), "done")


def test_formats(photos, tmp_path):
    Image.open(photos / "a.png").save(photos / "c.bmp")
    assert set(statuses(edit_folder(photos, tmp_path / "kept", CALM))) == {"a.png", "c.png", "sub/b.jpg"}
    report = edit_folder(photos, tmp_path / "webp", CALM, format="webp")
    assert set(statuses(report)) == {"a.webp", "c.webp", "sub/b.webp"}
    pixels = [
        np.asarray(Image.open(path).convert("RGB"))
        for path in (tmp_path / "webp" / "a.webp", tmp_path / "kept" / "a.png")
    ]
    assert np.array_equal(*pixels)


# --- Nothing is lost ---


def test_photographs_and_strangers_are_never_overwritten(photos, tmp_path):
    before = digests(photos)
    with pytest.raises(OutputError, match="holds the photographs"):
        edit_folder(photos, photos / "sub" / "..", CALM)
    shutil.copy(photos / "a.png", photos / "A.bmp")
    (photos / "A.bmp").rename(photos / "a.bmp")
    with pytest.raises(OutputError, match=r"a\.bmp and a\.png would both be written to a\.png"):
        edit_folder(photos, tmp_path / "out", CALM)
    (photos / "a.bmp").unlink()

    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"somebody's work")
    with pytest.raises(OutputError, match=r"1 of the results exist.*such as a\.png"):
        edit_folder(photos, out, CALM)
    assert (out / "a.png").read_bytes() == b"somebody's work"
    assert edit_folder(photos, out, CALM, force=True).of_status("failed") == []

    # Links that lead elsewhere
    linked = tmp_path / "linked"
    linked.mkdir()
    os.link(photos / "a.png", linked / "a.png")
    with pytest.raises(OutputError, match="is a photograph of this batch"):
        edit_folder(photos, linked, CALM, force=True)
    (linked / "a.png").unlink()
    (linked / "sub").symlink_to(photos / "sub")
    with pytest.raises(OutputError, match="leads out of"):
        edit_folder(photos, linked, CALM, force=True)
    (linked / "sub").unlink()
    (linked / "b.jpg").symlink_to("sub/b.jpg")
    Image.open(photos / "a.png").save(photos / "b.jpg")
    with pytest.raises(OutputError, match="are the same file"):
        edit_folder(photos, linked, CALM, force=True)
    (photos / "b.jpg").unlink()
    assert digests(photos) == before


def test_a_failed_edit_makes_no_strangers_file_ours(photos, tmp_path):
    out = tmp_path / "out"
    whole = (photos / "a.png").read_bytes()
    (photos / "a.png").write_bytes(b"damaged")
    assert statuses(edit_folder(photos, out, CALM)) == {"a.png": "failed", "sub/b.jpg": "done"}
    (out / "a.png").write_bytes(b"somebody's work")
    (photos / "a.png").write_bytes(whole)
    with pytest.raises(OutputError, match=r"1 of the results exist.*such as a\.png.*--overwrite"):
        edit_folder(photos, out, CALM)
    assert (out / "a.png").read_bytes() == b"somebody's work"
    (out / "a.png").unlink()
    assert statuses(edit_folder(photos, out, CALM)) == {"a.png": "done", "sub/b.jpg": "skipped"}
    # A result of ours stays ours while its photograph cannot be read
    (photos / "a.png").write_bytes(b"damaged")
    edit_folder(photos, out, CALM)
    (photos / "a.png").write_bytes(whole)
    assert statuses(edit_folder(photos, out, CALM)) == {"a.png": "done", "sub/b.jpg": "skipped"}


def test_results_of_other_photographs_are_kept(photos, tmp_path):
    out = tmp_path / "out"
    edit_folder(photos, out, CALM)
    before = digests(out)
    other = tmp_path / "other"
    other.mkdir()
    Image.open(photos / "a.png").rotate(2).save(other / "a.png")
    with pytest.raises(OutputError, match=r"show other photographs, such as a\.png"):
        edit_folder(other, out, CALM)
    table = manifest(photos, "photo,output\nsub/b.jpg,a.png\n")
    with pytest.raises(OutputError, match=r"show other photographs, such as a\.png"):
        edit_manifest(photos, table, out, CALM)
    assert digests(out) == before
    table.unlink()
    # The same photographs under another name are the same photographs; both moved together, too
    (tmp_path / "elsewhere").mkdir()
    photos = photos.rename(tmp_path / "elsewhere" / "renamed")
    assert set(statuses(edit_folder(photos, out, CALM)).values()) == {"skipped"}
    assert statuses(edit_folder(other, out, CALM, force=True)) == {"a.png": "done"}
    assert digests(out)["a.png"] != before["a.png"]


def test_a_stale_result_is_named_where_the_new_edit_fails(photos, tmp_path):
    out = tmp_path / "out"
    edit_folder(photos, out, CALM)
    (photos / "a.png").write_bytes(b"damaged")
    (failure,) = edit_folder(photos, out, CALM).of_status("failed")
    assert "a.png there is that of an earlier run" in failure.reason


def test_an_edit_that_began_and_was_not_noted_is_made_again(photos, tmp_path):
    """As after a kill between writing the picture and noting it: what lies there may be of any request."""
    out = tmp_path / "out"
    edit_folder(photos, out, CALM)
    with (out / JOURNAL).open("a") as file:
        file.write('{"output": "a.png", "photo": "a.png", "state": "begun"}\n{"output": "sub/b')  # cut off
    assert statuses(edit_folder(photos, out, CALM)) == {"a.png": "done", "sub/b.jpg": "skipped"}
    assert all(json.loads(line) for line in (out / JOURNAL).read_text().splitlines())


@pytest.mark.parametrize("tail", [b"\0" * 4096, b'{"output": "a.p' + b"\0" * 100 + b"\n"])
def test_what_a_disk_had_not_written_when_the_power_went_is_no_line(photos, tmp_path, tail):
    out = tmp_path / "out"
    edit_folder(photos, out, CALM)
    with (out / JOURNAL).open("ab") as file:
        file.write(tail)
    assert set(statuses(edit_folder(photos, out, CALM)).values()) == {"skipped"}
    (photos / "a.png").write_bytes((photos / "sub" / "b.jpg").read_bytes())
    assert statuses(edit_folder(photos, out, CALM)) == {"a.png": "done", "sub/b.jpg": "skipped"}
    assert set(statuses(edit_folder(photos, out, CALM)).values()) == {"skipped"}


@pytest.mark.skipif(sys.platform != "linux", reason="looks at files in /proc")
def test_a_line_is_on_the_disk_before_its_picture_is_made(photos, tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noting(handle):
        fsync(handle)
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)

    monkeypatch.setattr(os, "fsync", noting)
    edit_folder(photos, tmp_path / "out", CALM)
    files = [".tmp" if name.endswith(".tmp") else name for name in synced if "." in name]
    assert files == [JOURNAL, ".tmp", JOURNAL] * 2


def test_a_journal_of_other_origin_is_refused(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_text("hello\n")
    with pytest.raises(OutputError, match="line 1 was not written by magicedit"):
        edit_folder(photos, tmp_path / "out", CALM)


def test_a_full_disk_is_an_error_in_a_line_and_not_the_end(photos, tmp_path):
    """What fits of a line stays, is no line, and the next run goes on."""
    out = tmp_path / "out"
    edit_folder(photos, out, CALM)
    size = (out / JOURNAL).stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, old[1]))
    try:
        with pytest.raises(OutputError, match=r"could not be written .* run again to resume"):
            edit_folder(photos, out, CALM, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (out / JOURNAL).stat().st_size == size + 10
    assert set(statuses(edit_folder(photos, out, CALM)).values()) == {"skipped"}


# --- Manifests ---


def test_a_manifest_asks_row_by_row(photos, tmp_path):
    Expression({"AU12": 1.0}).save(photos / "rest.yaml")
    table = manifest(
        photos,
        "Photo,output,AU12,au2l,au,set,emotion,expression,strength,neutral,face,seed\n"
        "a.png,one/a.png,-3,,,,,,,,,\n"
        'a.png,two.jpg,-1,2,"AU4=1;AU25=-1",,,,,,largest,7\n'
        "\n"
        "sub/b.jpg,,,,,AU12=0,,,,,1,\n"
        "sub/b.jpg,three.png,,,,,surprise:0.5,,,yes,,\n"
        "./sub/b.jpg,four.png,,,,,,rest.yaml,0.5,,,\n",
    )
    report = edit_manifest(photos, table, tmp_path / "out", EditRequest(quality="live", seed=3))
    assert statuses(report) == dict.fromkeys(
        ("one/a.png", "two.jpg", "sub/b.jpg", "three.png", "four.png"), "done"
    )
    assert [result.row.number for result in report.results] == [2, 3, 5, 6, 7]
    one, two, three, four, five = [result.faces[0] for result in report.results]
    assert one["requested"] == {"AU12": -3}
    assert two["requested"] == {"AU2L": 2, "AU4": 1, "AU12": -1, "AU25": -1}
    assert three["requested"]["AU12"] == pytest.approx(-three["before"]["AU12"], abs=2e-3)
    assert four["requested"]["AU12"] < -1
    assert four["before"]["AU26"] < DEAD_ZONE  # so it is not taken back
    assert four["requested"]["AU26"] == EMOTIONS["surprise"]["AU26"] / 2
    assert five["requested"]["AU12"] == pytest.approx((1 - five["before"]["AU12"]) / 2, abs=2e-3)
    asked = {json.loads(line)["output"]: json.loads(line) for line in (tmp_path / "out" / JOURNAL).open()}
    assert asked["two.jpg"]["request"]["seed"] == 7
    assert asked["one/a.png"]["request"] == {"add": {"AU12": -3.0}, "quality": "live", "seed": 3}
    assert Image.open(tmp_path / "out" / "two.jpg").format == "JPEG"

    # One row changes, and is done alone
    table.write_text(table.read_text().replace("one/a.png,-3", "one/a.png,-2"))
    again = edit_manifest(photos, table, tmp_path / "out", EditRequest(quality="live", seed=3))
    assert [result.status for result in again.results] == ["done", *["skipped"] * 4]


def test_spreadsheets_that_write_semicolons(photos, tmp_path):
    table = photos / "edits.csv"
    table.write_bytes("photo;au\na.png;AU12=-3,AU25=-1\n".encode("utf-8-sig"))
    report = edit_manifest(photos, table, tmp_path / "out", EditRequest(quality="live"))
    assert report.results[0].faces[0]["requested"] == {"AU12": -3, "AU25": -1}


def test_options_of_the_command_line_qualify_what_rows_ask_for(photos, tmp_path):
    table = manifest(photos, "photo,AU12,target_tolerance\na.png,-3,5\n")
    command = ["edit", str(photos), "--manifest", str(table), "-o", str(tmp_path / "out"), "--max-edits", "2"]
    assert main(command) == 0
    entries = map(json.loads, (tmp_path / "out" / JOURNAL).open())
    assert [entry["request"]["max_edits"] for entry in entries if "request" in entry] == [2]


def test_decimal_commas_and_blank_lines_of_spreadsheets(photos, tmp_path):
    text = "\n;;;\nphoto;AU12;strength;target_tolerance\na.png;-1,5;0,75;\n"
    rows = rows_of_manifest(manifest(photos, text), tmp_path, EditRequest(), None, None)
    assert rows == [Row(4, Path("a.png"), Path("a.png"), EditRequest(add={"AU12": -1.5}, strength=0.75))]
    tabs = manifest(photos, text.replace(";", "\t"))
    assert rows_of_manifest(tabs, tmp_path, EditRequest(), None, None) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('photo,AU12\na.png,"1,AU4=3"\n', "row 2: expected a delta between -10 and 10 for AU12, got '1,AU4"),
        ("photo;AU12\na.png;1,AU4=3\n", "row 2: expected a delta between -10 and 10 for AU12, got '1,AU4"),
        ('photo,strength\na.png,"1,x"\n', "column strength: expected a number, such as 1.5, got '1,x'"),
        (f"photo,seed\na.png,{'9' * 5000}\n", "row 2: column seed: expected a whole number, got '999"),
        (f"photo,face\na.png,{'9' * 5000}\n", "row 2: column face: expected a whole number, got '999"),
        ("photo,face\na.png,-1\n", "row 2: column face: expected all, largest or a number from 1, got '-1'"),
        ("photo,output\na.png,..\\a.png\n", "column output: expected a path inside the output folder"),
        ("photo,output\na.png,C:\\a.png\n", "column output: expected a path inside the output folder"),
        ("photo\na.png\0\n", "it has zero bytes"),
        ("photo,output\na.png,x.png\nsub/b.jpg,X.png/y.png\n", "row 2 would be written to x.png, which is a"),
        ("photo,output\na.png,x.png\nsub/b.jpg,X.png\n", "written to X.png (x.png where case does not"),
        ("photo,smile\na.png,3\n", "unknown column 'smile'"),
        ("photo,strenght\na.png,3\n", "did you mean strength"),
        ("photo,AU99\na.png,3\n", "'AU99'; write action units into the column au, as AU12=+3. "),
        ("au\nAU12=3\n", "no column `photo`"),
        ("photo,AU12,au12\na.png,1,2\n", "two columns for one thing"),
        ("", "is empty"),
        ("photo,au\n", "no rows below"),
        ("photo,au\na.png,AU12=3\n,AU4=1\n", "row 3: names no photo"),
        ("photo,au\na.png,AU12=30\n", "row 2: expected a delta between -10 and 10 for AU12"),
        ("photo,AU12\na.png,much\n", "row 2: expected a delta between -10 and 10 for AU12, got 'much'"),
        ("photo,AU12,au\na.png,1,AU12=2\n", "row 2: AU12 is given twice"),
        ("photo,au\na.png,AU99=1\n", "row 2: unknown action unit 'AU99'"),
        ("photo,set\na.png,AU12=9\n", "row 2: expected an intensity between 0 and 5"),
        ("photo,seed\na.png,-1\n", "row 2: column seed: expected a whole number, got '-1'"),
        ("photo,neutral\na.png,perhaps\n", "row 2: column neutral: expected yes or no"),
        ("photo,quality\na.png,best\n", "row 2: quality must be one of"),
        ("photo,expression\na.png,none.yaml\n", "none.yaml"),
        ("photo,au\na.png,AU12=3,AU4=1\n", "row 2: expected 2 cells, got 3; quote cells with ','"),
        ("photo,au\na.png,AU12=3\na.png,AU4=1\n", "row 2 and row 3 would both be written to a.png"),
        ("photo,output\na.png,a.png\nsub/b.jpg,./a.png\n", "row 2 and row 3 would both be written"),
        ("photo,output\na.png,../a.png\n", "row 2: column output: expected a path inside the output folder"),
        ("photo,output\na.png,/tmp/a.png\n", "row 2: column output: expected a path inside the output"),
        ("photo\n../photos/a.png\n", "row 2: column photo: expected a path inside the folder of photographs"),
        ("photo,output\na.png,a.xyz\n", "cannot tell a format from the suffix"),
        ('photo,au\na.png,"AU12=3\n', "cannot be read as a CSV file"),
    ],
)
def test_manifests_that_cannot_be_used(photos, tmp_path, capsys, text, message):
    table = manifest(photos, text)
    assert main(["edit", str(photos), "-o", str(tmp_path / "out"), "--manifest", str(table)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("magicedit: error: ")
    assert message in err
    assert str(table) in err
    assert not (tmp_path / "out").exists()


def test_codes_of_directions_are_columns(photos, tmp_path):
    table = manifest(photos, "photo,AU62,AU45,au\na.png,1.5,3,AU12=1\n")
    (row,) = rows_of_manifest(table, tmp_path, EditRequest(), None, None)
    assert row.request.add == {"AU12": 1, "AU45": 3, "gaze_yaw": -9}
    assert row.request.deltas(editable(NAMES), {}) == {"AU12": 1, "AU43": 3, "gaze_yaw": -9}


def test_the_documentation_knows_every_column(photos, tmp_path):
    page = (REPOSITORY / "docs" / "batch.md").read_text()
    cells = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert {"photo", "output", *COLUMNS} <= named
    (example,) = [block for block in blocks("text", page) if block.startswith("photo,")]
    rows = rows_of_manifest(manifest(photos, example), tmp_path, EditRequest(), None, None)
    assert [row.output.as_posix() for row in rows] == [
        "ann/smile.png",
        "ann/frown.png",
        "ben/2.jpg",
        "cleo.jpg",
    ]
    assert rows[2].request == EditRequest(set={"AU12": 0, "AU25": 0}, face="largest")


def named_by_a_table(photos: Path, tmp_path: Path, text: str) -> dict[str, str]:
    """What became of the photographs of a manifest."""
    return statuses(edit_manifest(photos, manifest(tmp_path, text), tmp_path / "out", CALM))


def test_photographs_are_found_under_the_names_of_other_systems(photos, tmp_path):
    """Windows writes backslashes; a Mac decomposes letters, and a spreadsheet composes them again."""
    (photos / "a.png").rename(photos / unicodedata.normalize("NFD", "Zoë.png"))
    text = f"photo,output\nsub\\b.jpg,\n{unicodedata.normalize('NFC', 'Zoë.png')},new\\z.png\n"
    assert named_by_a_table(photos, tmp_path, text) == {"sub/b.jpg": "done", "new/z.png": "done"}


def test_a_file_of_the_very_name_comes_first(photos, tmp_path):
    shutil.copy(photos / "a.png", photos / "sub\\b.jpg")
    (photos / "sub" / "b.jpg").write_bytes(b"damaged")
    assert named_by_a_table(photos, tmp_path, "photo,output\nsub\\b.jpg,b.png\n") == {"b.png": "done"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_utf_8_stops_nothing(photos, tmp_path, capsys):
    name = os.fsdecode(b"Zo\xeb.png")
    (photos / "a.png").rename(photos / name)
    (photos / os.fsdecode(b"\xff.jpg")).write_bytes(b"damaged")
    options = ["--au", "AU12=-3", "--quality", "live", "--no-measure", "--workers", "1"]
    command = ["edit", str(photos), "-o", str(tmp_path / "out"), *options]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "edited         2" in out
    assert "\\xff.jpg" in err
    assert (tmp_path / "out" / name).is_file()
    (tmp_path / "out" / JOURNAL).read_text("utf-8")  # others can read it
    assert main([*command, "--json"]) == 1
    rows = {row["output"]: row["status"] for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows == {"Zo\\xeb.png": "skipped", "sub/b.jpg": "skipped", "\\xff.jpg": "failed"}


def test_photographs_that_are_not_read_are_not_passed_over(photos, tmp_path):
    for name in ("b.heif", "c.MPO", "d.dng", "e.jxl"):
        (photos / name).write_bytes(b"no photograph")
    report = edit_folder(photos, tmp_path / "out", CALM)
    reasons = {result.row.photo.name: result.reason for result in report.of_status("failed")}
    assert sorted(reasons) == ["b.heif", "c.MPO", "d.dng", "e.jxl"]
    assert reasons["d.dng"] == ".dng files are not read; convert it to JPEG, PNG or TIFF"


@pytest.mark.skipif(sys.platform != "linux", reason="makes a folder that no path can name")
def test_a_folder_that_cannot_be_listed_is_a_failed_row(photos, tmp_path):
    unlisted = unlistable_folder(photos)
    report = edit_folder(photos, tmp_path / "out", CALM)
    (failure,) = report.of_status("failed")
    assert failure.row.photo == unlisted.relative_to(photos)
    assert "the folder cannot be read: File name too long" in failure.reason
    assert len(report.of_status("done")) == 2


def test_pipes_and_devices_are_failed_rows(photos, tmp_path):
    os.mkfifo(photos / "pipe.png")
    (photos / "zero.png").symlink_to("/dev/zero")
    report = edit_folder(photos, tmp_path / "out", CALM)
    assert [result.row.photo.name for result in report.of_status("failed")] == ["pipe.png", "zero.png"]
    assert len(report.of_status("done")) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b"[1]",
        b'{"output": "a.png"}',
        b'{"output": ["a.png"], "state": "done"}',
        b'{"output": "a.png", "state": 3}',
        b'{"output": "a.png", "state": "done", "seconds": "x", "faces": []}',
        b'{"output": "a.png", "state": "done", "seconds": 1, "faces": [3]}',
        b'{"output": "a.png", "state": "done", "seconds": 1, "faces": [{"warnings": 3}]}',
        b'{"output": "a.png", "state": "done", "seconds": 1, "faces": [], "lost": [3]}',
        b'{"output": "a.png", "state": "done", "seconds": ' + b"9" * 5000 + b', "faces": []}',
    ],
)
def test_a_journal_with_other_values_is_refused(photos, tmp_path, line):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_bytes(line + b"\n\n")
    with pytest.raises(OutputError, match="line 1 was not written by magicedit"):
        edit_folder(photos, tmp_path / "out", CALM)


def test_a_batch_removes_what_a_killed_one_was_writing(photos, tmp_path):
    left = tmp_path / "out" / "sub" / ".magicedit-0123456789abcdef.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    edit_folder(photos, tmp_path / "out", CALM)
    assert not left.exists()


def test_many_problems_are_named_at_once(photos, tmp_path):
    table = manifest(photos, "photo,AU12\n" + "a.png,99\n" * 8)
    with pytest.raises(MagicEditError, match=r"row 2: .*; row 6: .*; and 3 more rows"):
        edit_manifest(photos, table, tmp_path / "out")


def test_a_missing_photograph_is_one_failed_row(photos, tmp_path):
    table = manifest(photos, "photo,AU12\na.png,-3\nabsent.png,-3\n")
    report = edit_manifest(photos, table, tmp_path / "out", EditRequest(quality="live", measure=False))
    assert statuses(report) == {"a.png": "done", "absent.png": "failed"}
    assert "does not exist" in report.results[1].reason


# --- What cannot be done at all ---


def test_a_models_own_units_are_known_before_it_loads(photos, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"action_units": "AU4,AU12"}')
    with pytest.raises(ActionUnitError, match=r"AU1 .*Known: AU4, AU12"):
        edit_folder(photos, tmp_path / "out", EditRequest(add={"AU1": 1}), model=str(tmp_path / "model"))
    table = manifest(photos, "photo,AU1\na.png,2\n")
    with pytest.raises(MagicEditError, match=r"row 2: .*Known: AU4, AU12"):
        edit_manifest(photos, table, tmp_path / "out", model=str(tmp_path / "model"))
    assert not (tmp_path / "out").exists()


def test_nothing_to_do(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no photographs"):
        edit_folder(tmp_path / "empty", tmp_path / "out", CALM)
    with pytest.raises(ImageError, match="is not a folder"):
        edit_folder(tmp_path / "nowhere", tmp_path / "out", CALM)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        edit_folder(photos, tmp_path / "file", CALM)
    with pytest.raises(MagicEditError, match="workers must be at least 1"):
        edit_folder(photos, tmp_path / "out", CALM, workers=0)
    with pytest.raises(OutputError, match="format must be one of"):
        edit_folder(photos, tmp_path / "out", CALM, format="gif")
    with pytest.raises(ActionUnitError, match="tan"):  # of another model
        edit_folder(photos, tmp_path / "out", EditRequest(add={"tan": 1}, names=("tan",)))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="nowhere"):
        edit_folder(photos, tmp_path / "out", CALM, model="nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--au", "AU12=11"], "between -10 and 10"),
        (["--workers", "0"], "at least 1"),
        (["--target-tolerance", "-1"], "must be a positive number"),
    ],
)
def test_bad_options_of_a_folder(photos, tmp_path, capsys, options, message):
    assert main(["edit", str(photos), "-o", str(tmp_path / "out"), *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [["--workers", "2"], ["--manifest", "edits.csv"], ["--format", "png"]])
def test_options_of_folders_are_refused_with_a_photograph(photos, tmp_path, capsys, options):
    assert main(["edit", str(photos / "a.png"), "-o", str(tmp_path / "out.png"), *options]) == 2
    assert f"{options[0]}: only for several photographs, or a folder" in capsys.readouterr().err


# --- Several processes ---


def test_workers_where_they_pay():
    assert sensible_workers(5, "cpu") == 1  # loading takes as long as these edits
    assert 1 <= sensible_workers(1000, "cpu") <= cores()
    assert sensible_workers(1000, "cuda:1") == 1


def started(folder: Path, *options: str, stderr: int = subprocess.PIPE) -> subprocess.Popen:
    """A run in a process of its own, and its group."""
    command = [sys.executable, "-m", "magicedit.cli", "edit", "photos", "-o", "out", "--au", "AU12=-3"]
    return subprocess.Popen(
        [*command, "--no-measure", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def children_of(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def lines_of(out: Path) -> list[dict]:
    """Of the journal, those that are whole."""
    path = out / JOURNAL
    return [json.loads(line) for line in (path.read_text() if path.exists() else "").split("\n")[:-1]]


def states(out: Path) -> list[str]:
    return [line["state"] for line in lines_of(out)]


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def many(photos) -> Path:
    """Ten photographs more."""
    for number in range(10):
        shutil.copy(photos / "a.png", photos / f"m{number}.png")
    return photos


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_killed_workers_and_a_killed_run(many, tmp_path):
    """A worker that dies fails its row and is replaced; a run that is killed goes on where it stopped."""
    out = tmp_path / "out"
    run = started(tmp_path, "--workers", "2")
    wait_until(lambda: states(out).count("begun") - states(out).count("done") == 2 or run.poll() is not None)
    os.kill(worker_of(run), signal.SIGKILL)  # both have one
    wait_until(lambda: "failed" in states(out) and states(out).count("done") >= 5)
    assert run.poll() is None  # it goes on
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    done = states(out).count("done")
    assert 5 <= done < 12
    (failure,) = [line for line in lines_of(out) if line["state"] == "failed"]
    assert "the worker process ended with code -9" in failure["reason"]

    time.sleep(1.5)  # the workers finish what they have, see that nobody listens, and end
    assert len(digests(out)) - done <= 2
    report = edit_folder(many, out, EditRequest(add="AU12=-3", measure=False))
    assert len(report.of_status("skipped")) == done
    assert len(report.of_status("done")) == 12 - done
    assert set(digests(out)) == {row.row.output.as_posix() for row in report.results}
    for path in out.rglob("*.png"):
        Image.open(path).load()
    # The pictures do not depend on who made them, nor on the kill
    names = ("a.png", "m0.png", "m4.png", "m9.png")
    assert len({np.asarray(Image.open(out / name)).tobytes() for name in names}) == 1


def test_workers_that_cannot_load_again_fail_the_rest(many, tmp_path):
    """What was edited stays noted, so that the run can go on later."""
    model = shutil.copytree(embedded_folder("mini"), tmp_path / "model")

    def begin(row: Row) -> None:
        if row.number == 1:
            shutil.rmtree(model)
            for process in multiprocessing.active_children():
                process.kill()

    rows = [Row(n, Path(f"m{n}.png"), Path(f"m{n}.png"), CALM) for n in range(4)]
    settings = settings_of(many, tmp_path, model=str(model))
    outcomes = {row.number: outcome for row, outcome in edit_rows(settings, rows, Pool(workers=2), begin)}
    assert set(outcomes) == {0, 1, 2, 3}
    assert outcomes[3]["state"] == "failed"
    assert "no worker could start again" in outcomes[3]["reason"]


def settings_of(photos: Path, folder: Path, **settings) -> EditorSettings:
    (folder / "out").mkdir()
    return EditorSettings(photos, folder / "out", **settings)


def worker_of(run: subprocess.Popen) -> int:
    """A child that edits: not Python's tracker of resources."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children_of(run)}
    return next(pid for pid, command in commands.items() if b"spawn_main" in command)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says so of semaphores")
def test_workers_that_are_ended_leak_nothing(photos, tmp_path):
    run = started(tmp_path, "--workers", "2")
    _, err = run.communicate(timeout=120)  # with what the tracker of resources says, which ends last
    assert run.returncode == 0
    assert err == "loading mini\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("size", [(0, 0), (24, 100)])
def test_a_terminal_shows_how_far_a_batch_is(photos, tmp_path, size):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    run = started(tmp_path, "--workers", "1", stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a pseudo-terminal says that nobody writes any more
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    run.communicate(timeout=60)
    assert run.returncode == 0
    text = shown.decode()
    assert text.index("loading mini") < text.index("0/2 ") < text.index("1/2 ") < text.index("2/2 ")
    assert re.search(r"1/2 \[\d\d:\d\d<\d\d:\d\d", text)  # the time that is left


def test_two_runs_do_not_write_into_one_folder(photos, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        Ledger(tmp_path / "out" / JOURNAL, itemgetter("output")),
        pytest.raises(OutputError, match="another run is writing"),
    ):
        edit_folder(photos, tmp_path / "out", CALM)
    assert edit_folder(photos, tmp_path / "out", CALM).of_status("failed") == []


def test_a_model_that_is_not_there_ends_the_whole_run(photos, tmp_path):
    with pytest.raises(ModelError, match="nowhere"):
        edit_folder(photos, tmp_path / "out", CALM, model="nowhere", workers=2)
    assert states(tmp_path / "out") == []


def test_a_batch_of_the_count_from_0_is_not_resumed_with_other_faces(photos, tmp_path):
    """Journals of earlier versions have no numbers of faces, which began with 1 when `--face` did."""
    pair = np.asarray(Image.open(photos / "a.png"))
    for path in ("a.png", "sub/b.jpg"):
        Image.fromarray(np.hstack([pair, pair // 2])).save(photos / path)
    options = ["edit", str(photos), "-o", str(tmp_path / "out"), "--au", "AU12=-3", "--workers", "1"]
    assert main([*options, "--face", "2"]) == 0
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(re.sub(rb', "number": \d+', b"", journal.read_bytes()))
    before = digests(tmp_path / "out")
    assert main([*options, "--face", "1"]) == 2  # the same words as then
    assert digests(tmp_path / "out") == before
    report = edit_folder(photos, tmp_path / "out", EditRequest(add={"AU12": -3}, face=1))
    assert set(statuses(report).values()) == {"skipped"}
    assert main([*options, "--face", "1", "--force"]) == 0
    assert main([*options, "--face", "2"]) == 0  # made by this version: no old number
    assert digests(tmp_path / "out") == before
