"""Shards of a dataset, and the training pairs that are streamed from them."""

import hashlib
import http.server
import json
import logging
import resource
import shutil
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from magicedit.cli import main
from magicedit.data import webdataset_shards
from magicedit.data.pairs import PairDataset
from magicedit.data.shards import write_rows
from magicedit.data.streaming import StreamingPairs, holds_shards
from magicedit.data.webdataset_shards import write_shards
from magicedit.errors import DatasetError, MissingDependencyError, OutputError
from magicedit.train.samples import SampleOrder

webdataset = pytest.importorskip("webdataset")

PEOPLE, EACH = 12, 3  # one of whom has a single photograph
SETTINGS = {"resolution": 64, "warped": 0.4, "seed": 5, "streams": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def many(dataset, tmp_path_factory) -> Path:
    """A dataset of PEOPLE, whose rows are those of one photograph with other labels."""
    folder = shutil.copytree(dataset, tmp_path_factory.mktemp("many") / "dataset")
    row = pq.read_table(folder / "data" / "train-00000.parquet").to_pylist()[0]
    rows = [
        row
        | {
            "identity": f"person-{person}",
            "source": f"person-{person}/{number}.jpg",
            "action_units": [(person + 2 * number) % 6 / 2] * 12,
            "notes": [],
        }
        for number in range(EACH)
        for person in range(PEOPLE)
        if person or not number
    ]
    description = json.loads((folder / "magicedit.json").read_text())
    write_rows(folder / "data" / "train-00000.parquet", [rows], description["settings"])
    description["photographs"]["train"], description["identities"]["train"] = len(rows), PEOPLE
    (folder / "magicedit.json").write_text(json.dumps(description | {"fingerprint": "many"}))
    return folder


@pytest.fixture(scope="module")
def stream(many, tmp_path_factory) -> Path:
    """Its shards, one a person."""
    folder = tmp_path_factory.mktemp("stream") / "shards"
    write_shards(many, folder, shard_bytes=1, progress=False)
    return folder


@pytest.fixture
def copy(stream, tmp_path) -> Path:
    return shutil.copytree(stream, tmp_path / "copy")


def index(folder: Path) -> list[dict]:
    return json.loads((folder / "magicedit.json").read_text())["shards"]["train"]


def assert_same_sample(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(second[name]))  # NaN equals NaN


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- Writing ---


def test_shards_hold_every_row_and_whole_identities(many, stream):
    rows = {row["source"]: row for row in pq.read_table(many / "data" / "train-00000.parquet").to_pylist()}
    shards_of: dict[str, set[str]] = {}
    for shard in index(stream):
        path = stream / shard["name"]
        content = path.read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
        assert len(samples) == shard["photographs"]
        for sample in samples:
            about = json.loads(sample["json"])
            row = rows.pop(about["source"])
            assert (sample["jpg"], sample["mask.png"]) == (row["image"]["bytes"], row["mask"]["bytes"])
            for name in ("action_units", "landmarks", "pose", "box"):
                np.testing.assert_array_equal(np.float32(about[name]), np.float32(row[name]))
            shards_of.setdefault(about["identity"], set()).add(shard["name"])
    assert not rows
    assert [len(names) for names in shards_of.values()] == [1] * PEOPLE


def test_the_same_dataset_gives_the_same_bytes_and_is_written_once(many, stream, tmp_path, capsys):
    assert main(["shards", str(many), "-o", str(tmp_path / "out"), "--shard-mb", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shards"] == {"train": 1, "validation": 1}
    assert told["photographs"] == {"train": PEOPLE * EACH - EACH + 1, "validation": 1}
    report = write_shards(many, tmp_path / "out", shard_bytes=1, progress=False)  # fewer and smaller ones
    assert (report.shards["train"], report.unchanged) == (PEOPLE, False)
    assert contents(tmp_path / "out") == contents(stream)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert write_shards(many, tmp_path / "out", shard_bytes=1, progress=False).unchanged
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_a_full_disk_is_one_line_and_the_next_run_continues(many, stream, tmp_path, monkeypatch):
    largest = max(shard["bytes"] for shard in index(stream))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = [shard["bytes"] for shard in index(stream)]
    assert min(sizes) < largest  # the shard of the person with one photograph
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, old[1]))
    try:
        with pytest.raises(OutputError, match=r"train-\d+\.tar could not be written"):
            write_shards(many, tmp_path / "out", shard_bytes=1, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert not holds_shards(tmp_path / "out")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    write_shards(many, tmp_path / "out", shard_bytes=1, progress=False)
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert contents(tmp_path / "out") == contents(stream)


def test_a_run_that_ends_midway_is_continued(many, stream, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        written, sample = [], webdataset_shards._sample

        def fails(split, number, row):
            written.append(number)
            if len(written) > 20:
                raise KeyboardInterrupt
            return sample(split, number, row)

        patch.setattr(webdataset_shards, "_sample", fails)
        with pytest.raises(KeyboardInterrupt):
            write_shards(many, tmp_path / "out", shard_bytes=1, progress=False)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(done) >= 5
    write_shards(many, tmp_path / "out", shard_bytes=1, progress=False)
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert contents(tmp_path / "out") == contents(stream)


def test_a_shard_that_another_dataset_overwrote_is_written_again(many, stream, tmp_path, monkeypatch):
    other = shutil.copytree(many, tmp_path / "other")
    path = other / "data" / "train-00000.parquet"
    rows = [row | {"pose": [1.0, 2.0, 3.0]} for row in pq.read_table(path).to_pylist()]
    description = json.loads((other / "magicedit.json").read_text())
    write_rows(path, [rows], description["settings"])
    (other / "magicedit.json").write_text(json.dumps(description | {"fingerprint": "other"}))
    sample = webdataset_shards._sample

    def fails(split, number, row):
        if split == "validation":
            raise KeyboardInterrupt
        return sample(split, number, row)

    with monkeypatch.context() as patch:
        patch.setattr(webdataset_shards, "_sample", fails)
        for dataset in (many, other):
            with pytest.raises(KeyboardInterrupt):
                write_shards(dataset, tmp_path / "out", shard_bytes=1, progress=False)
    write_shards(many, tmp_path / "out", shard_bytes=1, progress=False)
    assert contents(tmp_path / "out") == contents(stream)


def test_what_is_no_dataset_and_no_place_for_shards(many, stream, tmp_path, monkeypatch):
    with pytest.raises(DatasetError, match="holds shards already"):
        write_shards(stream, tmp_path / "out", progress=False)
    with pytest.raises(DatasetError, match="holds shards to stream"):
        PairDataset(stream, resolution=64)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for folder in (tmp_path / "thesis", many):
        with pytest.raises(OutputError, match="is not a shard of magicedit"):
            write_shards(many, folder, progress=False)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(MissingDependencyError, match=r"magicedit\[scale\]"):
        write_shards(many, tmp_path / "out", progress=False)


# --- Streaming ---


def test_samples_are_those_of_the_dataset_for_the_same_draw(many, stream):
    streamed = StreamingPairs(stream, **SETTINGS)
    whole = PairDataset(many, resolution=64, warped=0.4, seed=5)
    place = {record.source: number for number, record in enumerate(whole.records)}
    kinds = set()
    for n in range(12):
        (draw, places), sample = streamed._pair(n), streamed[n]
        numbers = [place[shard.usable.sources[index]] for shard, index in places]
        expected = whole.sample(draw._replace(source=numbers[0], target=numbers[1]))
        assert_same_sample(expected | {k: sample[k] for k in ("source_index", "target_index")}, sample)
        kinds.add(sample["kind"])
    assert kinds == {0, 1}


def test_each_stream_reads_its_own_shards_in_an_order_of_the_epoch(stream):
    pairs = StreamingPairs(stream, **SETTINGS)
    epochs = [[pairs._order(stream, epoch).tolist() for stream in range(2)] for epoch in range(2)]
    for first, second in epochs:
        assert sorted(first + second) == list(range(PEOPLE))
    assert epochs[0] != epochs[1]
    for n in range(40):  # batches of two, dealt to two streams
        number = n // 2 % 2
        window = next(iter(pairs._windows(n)))
        assert set(window) <= set(epochs[0][number]) or set(window) <= set(epochs[1][number])
    few = StreamingPairs(stream, **SETTINGS | {"streams": 3 * PEOPLE})
    assert all(len(few._order(number, 0)) == 1 for number in range(3 * PEOPLE))


def test_an_epoch_draws_as_many_samples_as_there_are_photographs(stream):
    pairs = StreamingPairs(stream, **SETTINGS | {"streams": 1, "warped": 1.0})
    windows = [next(iter(pairs._windows(n))) for n in range(2 * len(pairs))]
    assert {number for window in windows[: len(pairs)] for number in window} == set(range(PEOPLE))
    counts = {window: windows.count(window) for window in set(windows)}
    photographs = [shard["photographs"] for shard in index(stream)]
    assert counts == {window: sum(photographs[number] for number in window) for window in counts}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_continues_with_the_very_sample(stream, workers):
    def batches(start: int) -> list[dict]:
        pairs = StreamingPairs(stream, **SETTINGS | {"streams": max(1, workers)})
        order = SampleOrder(start, 9, 1, 2, rank=0, world_size=1)
        loader = torch.utils.data.DataLoader(pairs, batch_size=2, sampler=order, num_workers=workers)
        return list(loader)

    straight = batches(0)
    for resumed, expected in zip(batches(5), straight[5:], strict=True):
        assert_same_sample(expected, resumed)
    assert not torch.equal(straight[0]["target"], straight[1]["target"])


def test_forked_processes_read_an_open_shard_each_by_itself(many, tmp_path):
    write_shards(many, tmp_path / "one", progress=False)
    pairs = StreamingPairs(tmp_path / "one", **SETTINGS)
    alone = [pairs[n] for n in range(40)]
    loader = torch.utils.data.DataLoader(
        pairs, batch_size=None, sampler=range(40), num_workers=2, multiprocessing_context="fork"
    )
    for expected, sample in zip(alone, loader, strict=True):
        assert_same_sample(expected, sample)


def test_people_with_one_photograph_are_in_warped_pairs_only(stream):
    def whole(warped: float) -> set[str]:
        pairs = StreamingPairs(stream, **SETTINGS | {"warped": warped})
        return {shard.usable.identities[index] for n in range(150) for shard, index in pairs._pair(n)[1]}

    assert whole(1.0) == {f"person-{person}" for person in range(PEOPLE)}
    assert whole(0.0) == {f"person-{person}" for person in range(1, PEOPLE)}
    with pytest.raises(DatasetError, match=r"no real pairs; train on warped pairs alone \(`--warped 1`\)"):
        StreamingPairs(stream, split="validation", resolution=64, warped=0.0)
    assert StreamingPairs(stream, split="validation", resolution=64, warped=1.0)[0]["kind"] == 1


def test_previews_show_different_people(stream):
    examples = StreamingPairs(stream, **SETTINGS).examples(3)
    assert len({example["identity"] for example in examples}) == 3
    assert examples[0]["source"].shape == (3, 64, 64)
    assert examples[0]["au_deltas"].shape == (len(examples[0]["requests"]), 12)


# --- Addresses ---


def test_shards_are_read_from_addresses(stream, monkeypatch):
    if shutil.which("curl") is None:
        pytest.skip("webdataset reads URLs by curl")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(stream))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        here = StreamingPairs(stream, **SETTINGS)
        for folder in (f"{address}/", f"pipe:cat {stream}/{{}}"):
            assert holds_shards(folder)
            assert_same_sample(StreamingPairs(folder, **SETTINGS)[3], here[3])
        with pytest.raises(DatasetError, match=r"magicedit\.json of .* cannot be fetched"):
            StreamingPairs(f"{address}/nowhere", **SETTINGS)
        server.shutdown()
    with pytest.raises(DatasetError, match="cannot be fetched"):
        StreamingPairs("nonsense://bucket", **SETTINGS)
    monkeypatch.setitem(sys.modules, "webdataset.gopen", None)
    with pytest.raises(MissingDependencyError, match=r"magicedit\[scale\]"):
        StreamingPairs("https://host/shards", **SETTINGS)


@pytest.mark.parametrize("name", ["x; touch there", "../train-00000.tar", "pipe:touch there", "train-0.tar"])
def test_names_in_a_description_are_no_commands_and_no_paths(copy, name):
    description = json.loads((copy / "magicedit.json").read_text())
    description["shards"]["train"][0]["name"] = name
    (copy / "magicedit.json").write_text(json.dumps(description))
    for folder in (copy, f"pipe:cat {copy}/{{}}"):
        with pytest.raises(DatasetError, match="names a shard"):
            StreamingPairs(folder, **SETTINGS)


# --- Damage ---


def damaged(folder: Path, kind: str) -> str:
    """Damages the first shard and returns what the log says."""
    path = folder / index(folder)[0]["name"]
    content = path.read_bytes()
    if kind == "gone":
        path.unlink()
        return "No such file"
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
        return "bytes, not"
    path.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
    return "its SHA-256 is another one"


@pytest.mark.parametrize("kind", ["gone", "truncated", "changed"])
def test_a_damaged_shard_is_left_out_and_others_take_its_place(copy, stream, kind, caplog):
    reason = damaged(copy, kind)
    allowed = SETTINGS | {"max_bad_fraction": 0.2}
    with caplog.at_level(logging.WARNING):
        pairs = StreamingPairs(copy, **allowed)
        samples = [pairs[n] for n in range(30)]
    (line,) = [record.message for record in caplog.records]
    assert "train-00000.tar (" in line
    assert reason in line
    lost = range(index(stream)[0]["photographs"])
    assert not {sample[name] for sample in samples for name in ("source_index", "target_index")} & set(lost)
    assert_same_sample(StreamingPairs(copy, **allowed)[25], samples[25])
    strict = StreamingPairs(copy, **SETTINGS)
    with pytest.raises(
        DatasetError, match=rf"more than --max_bad_fraction 0\.01 allows \(train-00000.*{reason}"
    ):
        list(map(strict.__getitem__, range(30)))


def rewritten(folder: Path, change) -> None:
    """Writes the first shard again, with another content of its files, and describes it."""
    entry = index(folder)[0]
    with tarfile.open(folder / entry["name"]) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    samples: dict[str, dict] = {}
    for name, content in files.items():
        key, _, kind = name.partition(".")
        samples.setdefault(key, {"__key__": key})[kind] = content
    for number, sample in enumerate(samples.values()):
        change(number, sample)
    with webdataset.TarWriter(str(folder / entry["name"]), encoder=False) as tar:
        for sample in samples.values():
            tar.write(sample)
    content = (folder / entry["name"]).read_bytes()
    description = json.loads((folder / "magicedit.json").read_text())
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    description["shards"]["train"][0] = entry
    (folder / "magicedit.json").write_text(json.dumps(description))


def test_photographs_that_cannot_be_used_are_drawn_no_more(copy, caplog):
    def change(number: int, sample: dict) -> None:
        if number == 0:
            sample["jpg"] = sample["jpg"][:500]
        if number == 1:
            about = json.loads(sample["json"])
            sample["json"] = json.dumps(about | {"action_units": [9.0] * 12}).encode()

    rewritten(copy, change)
    assert index(copy)[0]["photographs"] > 1
    with caplog.at_level(logging.WARNING):
        pairs = StreamingPairs(copy, **SETTINGS | {"max_bad_fraction": 0.1})
        samples = [pairs[n] for n in range(60)]
    used = {sample[name] for sample in samples for name in ("source_index", "target_index")}
    assert not {0, 1} & used
    reasons = sorted(bad.reason for bad in pairs.quarantined)
    assert reasons[0].startswith("its action_units are outside 0 to 5")
    assert reasons[1].startswith("its picture cannot be used")
    assert len(caplog.records) == 2
    assert all("train-00000.tar row" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    "change",
    [
        lambda number, sample: sample.update(json=b"[" * 10_000),
        lambda number, sample: sample.update(json=b'{"identity": 5}'),
        lambda number, sample: sample.pop("json"),
    ],
)
def test_shards_of_other_programs_are_named(copy, change):
    rewritten(copy, change)
    pairs = StreamingPairs(copy, **SETTINGS)
    with pytest.raises(DatasetError, match=r"train-00000\.tar"):
        list(map(pairs.__getitem__, range(30)))


def test_settings_that_fit_no_shards(many, stream):
    for settings, message in {
        ("split", "test"): "has no split 'test'",
        ("action_units", ("AU12", "AU99")): "not of AU99",
        ("streams", 0): "at least 1",
        ("max_bad_fraction", 2.0): "from 0 to 1",
        ("resolution", 4096): "too few for resolution",
    }.items():
        with pytest.raises(DatasetError, match=message):
            StreamingPairs(stream, **SETTINGS | dict([settings]))
    with pytest.raises(DatasetError, match="has no shards; write them"):
        StreamingPairs(many, **SETTINGS)
