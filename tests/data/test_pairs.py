import io
import json
import os
import pickle
import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from dataset_rows import changed_rows
from PIL import Image

from magicedit.action_units import NAMES
from magicedit.data import PairDataset, prepare_dataset
from magicedit.data.augment import COMPANIONS
from magicedit.data.drawing import AU_COUNTS
from magicedit.data.pairs import UnusablePictureError
from magicedit.data.shards import write_rows
from magicedit.errors import DatasetError
from magicedit.imaging import to_pixels

PICTURES = ("source", "target", "condition")


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[key], b[key], equal_nan=True) for key in a)


def open_pairs(folder, **settings):
    return PairDataset(folder, **({"resolution": 64, "warped": 0.5} | settings))


# --- What a sample is ---


def test_shapes_and_ranges(dataset):
    batch = next(iter(torch.utils.data.DataLoader(open_pairs(dataset), batch_size=8, sampler=range(8))))
    for name in PICTURES:
        assert batch[name].shape == (8, 3, 64, 64)
        assert batch[name].dtype == torch.float32
        assert -1 <= batch[name].min() < batch[name].max() <= 1
    assert (batch["au_delta"].shape, batch["au_delta"].dtype) == ((8, 12), torch.float32)
    assert set(batch["kind"].tolist()) == {0, 1}
    assert len(open_pairs(dataset)) == 3


def test_real_pairs_are_two_photographs_of_one_identity_and_the_difference_of_their_labels(dataset):
    pairs = open_pairs(dataset, warped=0.0, au_dropout=0.0)
    directions = set()
    for n in range(20):
        sample = pairs[n]
        source, target = (pairs.records[sample[f"{end}_index"]] for end in ("source", "target"))
        directions.add((source.source, target.source))
        assert sample["kind"] == 0
        assert np.array_equal(sample["au_delta"].numpy(), target.action_units - source.action_units)
        assert sample["source"].mean() > sample["target"].mean() or target.source == "ann/light.png"
    assert directions == {("ann/light.png", "ann/dark.png"), ("ann/dark.png", "ann/light.png")}


def test_smiling_minus_neutral_is_positive(shared, backend, tmp_path):
    for identity in ("001", "002"):
        folder = shared / "faces" / "london" / identity
        if folder.is_dir():
            shutil.copytree(folder, tmp_path / "photographs" / identity)
    prepare_dataset(tmp_path / "photographs", tmp_path / "dataset", size=64, backend=backend, progress=False)
    pairs = open_pairs(tmp_path / "dataset", warped=0.0, au_dropout=0.0)
    smile, seen = NAMES.index("AU12"), set()
    for n in range(30):
        draw = pairs.pair(n)
        target = pairs.records[draw.target]
        seen.add(target.source)
        assert (draw.au_delta[smile] > 0.5) == target.source.endswith("smiling.jpg")
        assert (draw.au_delta[smile] < -0.5) == target.source.endswith("neutral.jpg")
    assert len(seen) == len(pairs)


def test_warped_pairs_are_one_photograph_and_the_difference_of_the_commands(dataset):
    pairs = open_pairs(dataset, warped=1.0, au_dropout=0.0)
    draws = [pairs.pair(n) for n in range(300)]
    assert all(draw.source == draw.target and draw.warped for draw in draws)
    assert all(np.array_equal(draw.au_delta, draw.target_command - draw.source_command) for draw in draws)
    commands = np.stack([draw.target_command for draw in draws])
    assert commands.min() >= -2
    assert commands.max() <= 5
    counts = {len(together) for together in COMPANIONS} | set(AU_COUNTS)
    assert set((commands != 0).sum(1)) == counts
    assert (commands != 0).any(0).all()  # every AU is drawn
    assert {draw.source for draw in draws} == {0, 1, 2}  # and every photograph
    warped_sources = np.mean([draw.source_command.any() for draw in draws])
    assert 0.14 < warped_sources < 0.34  # 0.3 * 0.8 = 0.24 expected, 4 standard deviations are 0.10
    for n, draw in enumerate(draws[:20]):
        sample = pairs[n]
        asked = np.abs(draw.au_delta).max()
        equal = torch.equal(sample["source"], sample["target"])
        assert equal if asked == 0 else (not equal or asked < 0.5)  # less may move no pixel


def test_the_flow_says_where_a_warped_target_was_read_in_its_source(dataset):
    """target(p) = source(p + flow(p)), turned, mirrored or plain; NaN where nobody knows."""
    x, y = np.meshgrid(np.arange(64, dtype=np.float32), np.arange(64, dtype=np.float32))
    for augment in (False, True):
        pairs = open_pairs(dataset, warped=0.8, augment=augment)
        checked = set()
        for n in range(60):
            draw, sample = pairs.pair(n), pairs[n]
            flow = sample["flow"].numpy()
            known = np.isfinite(flow).all(-1)
            if not draw.warped:
                continue
            if draw.source_command.any():
                assert not known.any()
                continue
            if not np.abs(draw.target_command).max() > 2:
                continue
            at = np.nan_to_num(np.stack([x, y], -1) + flow)
            source, target = (to_pixels(sample[name]).astype(np.float32) for name in ("source", "target"))
            moved = cv2.remap(
                source, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            )
            # What is left: source and target were interpolated on their own. The border is reflected.
            inside = known & (np.abs(at - 31.5).max(-1) < 26)
            error, without = (np.abs(p - target)[inside].mean() for p in (moved, source))
            if without > 2:  # grey levels: something moved that can be seen
                assert error < 0.5 * without
                checked.add(draw.flip)
        assert checked == ({True, False} if augment else {False})


def test_a_warped_target_measures_as_commanded(photographs, backend, tmp_path):
    """The pictures and the sign of au_delta agree: where it is positive, the target shows more of it."""
    prepare_dataset(photographs, tmp_path / "dataset", size=256, backend=backend, progress=False)
    pairs = PairDataset(tmp_path / "dataset", resolution=256, warped=1.0, augment=False, au_dropout=0.0)
    brow = NAMES.index("AU1")
    draws = {n: pairs.pair(n) for n in range(3000)}
    alone = [
        n for n, draw in draws.items() if draw.au_delta[brow] > 3 and np.count_nonzero(draw.au_delta) == 1
    ]
    chosen = [n for n in alone if not draws[n].source_command.any()][:3]
    assert len(chosen) == 3
    for n in chosen:
        sample = pairs[n]
        faces = [backend.detect(to_pixels(sample[name]))[0] for name in ("source", "target")]
        before, after = (face.action_units["AU1"] for face in faces)
        assert after > before + 0.5


def test_the_condition_image_of_a_real_pair_comes_from_the_target(dataset):
    pairs = open_pairs(dataset, warped=0.0)
    for n in range(6):
        sample = {name: to_pixels(pairs[n][name]).astype(int) for name in PICTURES}
        kept = (sample["condition"] == sample["target"]).all(-1)
        black = (sample["condition"] == 0).all(-1)
        centre = (slice(24, 40), slice(24, 40))
        assert black[centre].all()
        border = np.ones((64, 64), bool)
        border[4:-4, 4:-4] = False
        assert kept[border].mean() > 0.9  # chin or hairline may touch the border of a shifted picture
        from_source = (sample["condition"] == sample["source"]).all(-1)
        assert from_source[border].mean() < 0.5  # the other photograph is darker


def test_the_condition_image_of_a_warped_pair_does_not_tell_the_expression(dataset):
    """It is drawn from the source: a dropped jaw would otherwise give the answer away."""
    pairs = open_pairs(dataset, warped=1.0, augment=False)
    checked = 0
    for n in range(60):
        draw = pairs.pair(n)
        if not draw.source_command.any():
            checked += 1
            assert torch.equal(pairs[n]["condition"], pairs.record_images(draw.source)[1])
    assert checked > 20


def test_mask_and_weight_of_warped_pairs(dataset):
    """Paint is needed in opened mouths alone, everything can be compared, and lips count more."""
    pairs = open_pairs(dataset, warped=1.0)
    opened = 0
    for n in range(60):
        draw, sample = pairs.pair(n), pairs[n]
        assert sample["weight"].min() > 0.99
        assert (sample["weight"].max() > 2.5) == (draw.target_command.any() and not draw.source_command.any())
        mask, flow = sample["mask"], sample["flow"]
        if draw.source_command.any():
            assert torch.isnan(mask).all()
        else:
            assert torch.isfinite(mask).all()
            assert torch.isnan(flow[mask > 0.9]).all()
            opened += bool(mask.max() > 0.9)
    assert opened > 3


def test_real_pairs_are_related_in_the_face(dataset):
    """Two photographs that differ in brightness alone: nothing moves, and augmented targets have the light
    of their source."""
    pairs = open_pairs(dataset, warped=0.0)
    for n in range(8):
        sample = pairs[n]
        flow, weight = sample["flow"].numpy(), sample["weight"].numpy()
        known = np.isfinite(flow).all(-1)
        assert 0.1 < known.mean() < 0.9
        assert np.abs(flow[known]).max() < 1.5  # px: landmarks in the dark scatter
        source, target = (to_pixels(sample[name]).astype(float) for name in ("source", "target"))
        assert np.median(np.abs(source - target)[weight > 0.9]) < 6


def test_without_augmentation_what_the_light_changes_is_not_compared(dataset):
    """Two photographs, one at 70 % brightness: light that is not matched is no movement, and no paint."""
    pairs = open_pairs(dataset, warped=0.0, augment=False)
    for n in range(4):
        sample = pairs[n]
        source, target = (to_pixels(sample[name]).astype(float).mean(-1) for name in ("source", "target"))
        face = np.isfinite(sample["flow"].numpy()).all(-1)
        bright, weight = face & (np.abs(source - target) > 40), sample["weight"].numpy()
        assert bright.sum() > 50
        assert np.median(weight[bright]) < 0.1
        assert np.nanmax(sample["mask"].numpy()) == 0


def test_zero_keeps(dataset):
    """Where the AUs are dropped the target is the source, warped and real; else nothing changes."""
    kept, published = (open_pairs(dataset, au_dropout=0.5, zero_keeps=keeps) for keeps in (True, False))
    seen, differs = set(), 0
    for n in range(40):
        draw, sample = kept.pair(n), kept[n]
        if not draw.dropped:
            assert same(sample, published[n])
            continue
        seen.add(draw.warped)
        differs += not torch.equal(published[n]["source"], published[n]["target"])
        assert torch.equal(sample["source"], sample["target"])
        assert not sample["flow"].any()
        assert not sample["mask"].any()
    assert seen == {True, False}
    assert differs > 5


def test_a_fifth_of_the_commands_is_small(dataset):
    pairs = open_pairs(dataset, warped=1.0)
    largest = [np.abs(pairs.pair(n).target_command).max() for n in range(400)]
    small = np.mean([0 < value <= 1.0 for value in largest])
    assert 0.15 < small < 0.4  # 0.2 scaled to at most 1, and a few of the others


def test_without_teeth_opened_mouths_are_dark(dataset):
    light, dark = (open_pairs(dataset, warped=1.0, teeth=teeth) for teeth in (True, False))
    opened = [n for n in range(60) if light.pair(n).target_command[NAMES.index("AU25")] > 3]
    assert opened
    assert all(light.pair(n).mouth is not None and dark.pair(n).mouth is None for n in opened)
    assert not all(torch.equal(light[n]["target"], dark[n]["target"]) for n in opened)


def test_relations_can_be_left_out(dataset):
    pairs = open_pairs(dataset, warped=0.5, relations=False)
    plain = open_pairs(dataset, warped=0.5)
    for n in range(6):
        assert set(plain[n]) - set(pairs[n]) == {"flow", "mask", "weight"}
        if pairs.pair(n).warped:
            assert torch.equal(pairs[n]["target"], plain[n]["target"])


def test_mirrored_samples_have_the_condition_of_a_face_not_of_a_mirror(dataset):
    """The jaw's colours run from left to right, mirrored or not, and all of the face is hidden."""
    pairs = open_pairs(dataset, warped=0.3)
    flips = set()
    for n in range(16):
        flips.add(pairs.pair(n).flip)
        red, green, blue = (to_pixels(pairs[n]["condition"]).astype(int)).transpose(2, 0, 1)
        reds = np.argwhere((red > 180) & (green < 60) & (blue < 60))
        violets = np.argwhere((red > 120) & (green < 60) & (blue > 180))
        assert reds[:, 1].max() < 32 < violets[:, 1].min()
        black = (red + green + blue) == 0
        for row in black[
            16:44
        ]:  # no stripes: rows of the face are black from side to side, hair at most aside
            columns = np.flatnonzero(row[10:54])
            assert len(columns) > 0.75 * (np.ptp(columns) + 1)
    assert flips == {True, False}


def test_augmentation_is_the_same_for_all_three_pictures(dataset):
    """Where a warped pair commands nothing, source and target stay equal, however turned and toned."""
    pairs = open_pairs(dataset, warped=1.0)
    draws = [pairs.pair(n) for n in range(100)]
    nothing = [n for n, d in enumerate(draws) if not (d.source_command.any() or d.target_command.any())]
    assert len(nothing) > 5
    plain = open_pairs(dataset, warped=1.0, augment=False)
    for n in nothing[:5]:
        sample = pairs[n]
        assert torch.equal(sample["source"], sample["target"])
        assert not torch.equal(sample["source"], plain.record_images(sample["source_index"])[0])


def test_kinds_come_as_often_as_asked_for(dataset):
    for warped in (0.0, 0.3, 1.0):
        pairs = open_pairs(dataset, warped=warped)
        share = np.mean([pairs.pair(n).warped for n in range(1000)])
        assert abs(share - warped) < 0.06  # 4 standard deviations at 0.3
        if warped in (0.0, 1.0):
            assert share == warped


def test_au_dropout_comes_as_often_as_asked_for_and_is_exactly_zero(dataset):
    pairs, kept = open_pairs(dataset, au_dropout=0.1), open_pairs(dataset, au_dropout=0.0)
    draws = [pairs.pair(n) for n in range(2000)]
    assert 0.073 < np.mean([draw.dropped for draw in draws]) < 0.127  # 4 standard deviations
    for n, draw in enumerate(draws[:200]):
        assert np.array_equal(draw.au_delta, np.zeros(12) if draw.dropped else kept.pair(n).au_delta)
    dropped = next(n for n, draw in enumerate(draws) if draw.dropped)
    assert not pairs[dropped]["au_delta"].any()
    assert torch.equal(pairs[dropped]["target"], kept[dropped]["target"])  # nothing else changes
    assert not any(kept.pair(n).dropped for n in range(200))


# --- Determinism ---


def test_a_sample_depends_on_seed_and_number_alone(dataset):
    first, second = open_pairs(dataset, seed=3), open_pairs(dataset, seed=3)
    samples = [first[n] for n in range(12)]
    assert all(same(second[n], samples[n]) for n in reversed(range(12)))  # another instance, another order
    assert all(same(first[n], samples[n]) for n in range(12))  # again, with everything held
    other = open_pairs(dataset, seed=4)
    assert not any(same(other[n], samples[n]) for n in range(12))
    far = first[10**9]
    assert same(second[10**9], far)
    assert not same(far, samples[0])
    with pytest.raises(IndexError, match="numbered from 0"):
        first[-1]


def test_workers_change_nothing(dataset):
    pairs = open_pairs(dataset)
    loaders = [
        torch.utils.data.DataLoader(pairs, batch_size=4, sampler=range(100, 116), num_workers=workers)
        for workers in (0, 2)
    ]
    for alone, together in zip(*loaders, strict=True):
        assert same(alone, together)


def test_it_can_be_sent_to_a_fresh_process(dataset):
    pairs = open_pairs(dataset)
    assert same(pickle.loads(pickle.dumps(pairs))[5], pairs[5])


def test_little_memory_costs_time_only(dataset):
    roomy, cramped = open_pairs(dataset), open_pairs(dataset, memory=1)
    assert all(same(cramped[n], roomy[n]) for n in range(8))


def test_a_dataset_that_is_prepared_again_meanwhile_gives_the_pictures_of_before(dataset, tmp_path):
    """With another process's copy, which has no open files: an error."""
    folder = shutil.copytree(dataset, tmp_path / "dataset")
    pairs, expected = open_pairs(folder, memory=1), open_pairs(dataset, memory=1)
    other_process = pickle.dumps(pairs)
    shard = folder / "data" / "train-00000.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    for row, picture in zip(rows, [row["image"] for row in rows[1:] + rows[:1]], strict=True):
        row["image"] = picture
    pq.write_table(table.from_pylist(rows, table.schema), tmp_path / "new")
    (tmp_path / "new").replace(shard)
    for n in range(4):
        assert same(pairs[n], expected[n])
    with pytest.raises(DatasetError, match="was changed while the dataset was read"):
        pickle.loads(other_process)[0]


def test_a_shard_that_is_written_into_is_an_error(dataset, tmp_path):
    folder = shutil.copytree(dataset, tmp_path / "dataset")
    pairs = open_pairs(folder, memory=1)
    shard = folder / "data" / "train-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    os.utime(shard, (1, 1))
    with pytest.raises(DatasetError, match="was changed while the dataset was read"):
        pairs[0]


def test_forked_processes_read_the_open_files_each_by_itself(dataset):
    pairs = open_pairs(dataset, memory=1)
    alone = [pairs[n] for n in range(32)]
    loader = torch.utils.data.DataLoader(pairs, batch_size=None, sampler=range(32), num_workers=2)
    assert all(same(*both) for both in zip(alone, loader, strict=True))


# --- Pictures to cache, faces to preview ---


def test_without_augmentation_pictures_depend_on_their_record_alone(dataset):
    pairs = open_pairs(dataset, warped=0.0, augment=False)
    for n in range(4):
        sample, draw = pairs[n], pairs.pair(n)
        source, target = pairs.record_images(draw.source), pairs.record_images(draw.target)
        assert draw[:2] == (sample["source_index"], sample["target_index"])
        assert torch.equal(sample["source"], source[0])
        assert torch.equal(sample["target"], target[0])
        assert torch.equal(sample["condition"], target[1])
        assert np.array_equal(draw[2], sample["au_delta"])


def test_examples_are_fixed_and_unaugmented(dataset):
    pairs = open_pairs(dataset)
    examples = pairs.examples(2)
    assert [example["identity"] for example in examples] == ["ann", "carol.png"]  # one each before seconds
    assert len(pairs.examples(10)) == 3
    assert examples[0]["requests"][0] == "AU12=+3"
    assert examples[0]["au_deltas"].shape == (len(examples[0]["requests"]), 12)
    assert examples[0]["au_deltas"][0].tolist() == [3.0 if name == "AU12" else 0.0 for name in NAMES]
    for example, again in zip(examples, open_pairs(dataset, seed=9, augment=False).examples(2), strict=True):
        source, condition = pairs.record_images(example["index"])
        assert torch.equal(example["source"], source)
        assert torch.equal(example["condition"], condition)
        assert torch.equal(example["source"], again["source"])


def test_other_orders_and_fewer_action_units(dataset):
    names = ("AU12", "AU1")
    few, everything = (open_pairs(dataset, warped=0.0, action_units=aus) for aus in (names, NAMES))
    for record, full in zip(few.records, everything.records, strict=True):
        assert record.action_units.tolist() == [full.action_units[NAMES.index(name)] for name in names]
    assert few.examples(1)[0]["requests"] == ("AU12=+3",)
    assert open_pairs(dataset, action_units=names, warped=1.0)[0]["au_delta"].shape == (2,)


# --- Errors ---


def copy_with(dataset, output, **changes):
    shutil.copytree(dataset, output)
    path = output / "magicedit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return output


def test_a_split_without_pairs_says_what_to_do(dataset):
    with pytest.raises(
        DatasetError, match=r"nobody in the validation split .* alone \(`--warped 1`\), or add"
    ):
        open_pairs(dataset, split="validation", warped=0.5)
    assert open_pairs(dataset, split="validation", warped=1.0)[0]["kind"] == 1


def test_a_missing_split_names_those_that_are_there(dataset, tmp_path):
    with pytest.raises(DatasetError, match=r"no split 'test' \(there is train, validation\)"):
        open_pairs(dataset, split="test")


def test_a_dataset_for_other_action_units(dataset, tmp_path):
    other = copy_with(dataset, tmp_path / "other", action_units=[*NAMES[:-1], "AU43"])
    with pytest.raises(DatasetError, match=r"has labels of AU1, .*, AU43, not of AU26"):
        open_pairs(other)
    assert open_pairs(other, action_units=NAMES[:-1])[0]["au_delta"].shape == (11,)


def test_a_dataset_of_68_landmarks_cannot_be_warped(dataset, tmp_path):
    with pytest.raises(DatasetError, match="warped pairs need MediaPipe"):
        open_pairs(copy_with(dataset, tmp_path / "other", landmarks="ibug68"), warped=0.5)


def test_pictures_are_never_enlarged(dataset):
    with pytest.raises(DatasetError, match="--size 136"):
        open_pairs(dataset, resolution=136)


@pytest.mark.parametrize("settings", [{"warped": 1.5}, {"warped": -0.1}, {"au_dropout": 2}])
def test_probabilities_are_probabilities(dataset, settings):
    with pytest.raises(DatasetError, match="probability from 0 to 1"):
        open_pairs(dataset, **settings)


def test_folders_that_are_no_dataset(dataset, tmp_path):
    with pytest.raises(DatasetError, match="magicedit prepare"):
        open_pairs(tmp_path)
    with pytest.raises(DatasetError, match=r"format .?99"):
        open_pairs(copy_with(dataset, tmp_path / "newer", format=99))
    torn = copy_with(dataset, tmp_path / "torn")
    shard = next((torn / "data").glob("train-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DatasetError, match=r"cannot read .*train-00000.parquet"):
        open_pairs(torn)
    (torn / "magicedit.json").write_text("{")
    with pytest.raises(DatasetError, match=r"magicedit.json cannot be read"):
        open_pairs(torn)


# --- Unusable rows ---


def picture(size, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("image", None, "has no picture"),
        ("image", {"bytes": b"", "path": None}, "has no picture"),
        ("image", {"bytes": b"\xff\xd8\xff\xe0 torn", "path": None}, "picture cannot be used"),
        ("image", picture((127, 128)), "127 x 128 px, expected 128 x 128"),
        ("image", picture((20_000, 20_000), "1"), "picture cannot be used"),
        ("action_units", None, "has 0 action_units, expected 12"),
        ("action_units", [], "has 0 action_units, expected 12"),
        ("action_units", [1.0] * 13, "has 13 action_units, expected 12"),
        ("action_units", [float("nan")] * 12, "action_units are not finite"),
        ("action_units", [None] * 12, "action_units are not finite"),
        ("action_units", [1e30] + [0.0] * 11, "outside 0 to 5: 0 to 1e"),
        ("action_units", [500.0] * 12, "outside 0 to 5: 500 to 500"),
        ("action_units", [-1.0] * 12, "outside 0 to 5: -1 to -1"),
        ("landmarks", None, "has 0 landmarks, expected 956"),
        ("landmarks", [1.0] * 955, "has 955 landmarks, expected 956"),
        ("landmarks", [float("inf")] * 956, "landmarks are not finite"),
        ("landmarks", [1e9] * 956, "landmarks are no face"),
        ("landmarks", [64.0] * 956, "landmarks are no face"),
        ("pose", [1.0], "has 1 pose, expected 3"),
        ("identity", None, "has no identity"),
        ("identity", "", "has no identity"),
        ("source", None, "has no source"),
    ],
)
@pytest.mark.parametrize("memory", [2**30, 1], ids=["held", "not held"])
def test_an_unusable_row_is_left_out_and_named(dataset, tmp_path, caplog, column, value, reason, memory):
    other = changed_rows(dataset, tmp_path / "other", lambda rows: rows[1].update({column: value}))
    whole, pairs = open_pairs(dataset, warped=1.0), open_pairs(other, warped=1.0, memory=memory)
    assert [r.source for r in pairs.records] == [r.source for i, r in enumerate(whole.records) if i != 1]
    (bad,) = pairs.quarantined
    assert (bad.shard, bad.row) == ("train-00000.parquet", 1)
    assert bad.source == ("" if column == "source" else whole.records[1].source)
    assert reason in bad.reason
    assert str(bad) in caplog.text
    assert all(torch.isfinite(pairs[n]["au_delta"]).all() for n in range(4))
    with pytest.raises(DatasetError, match="has 1 unusable rows of 3, more than --max_bad_fraction 0 allows"):
        open_pairs(other, max_bad_fraction=0.0)


@pytest.fixture
def unexamined(monkeypatch):
    """Opening decodes no pictures, as where there are many."""
    monkeypatch.setattr("magicedit.data.pairs.EXAMINED_WHOLE", 0)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "has no picture"),
        ({"bytes": b"\xff\xd8\xff\xe0 torn", "path": None}, "picture cannot be used"),
        (picture((127, 128)), "127 x 128 px, expected 128 x 128"),
    ],
)
def test_a_picture_that_is_unusable_when_it_is_drawn_is_named_and_drawn_again(
    dataset, tmp_path, caplog, unexamined, value, reason
):
    other = changed_rows(dataset, tmp_path / "other", lambda rows: rows[1].update(image=value))
    settings = {"warped": 1.0, "memory": 1}
    whole, pairs = open_pairs(dataset, **settings), open_pairs(other, **settings)
    assert len(pairs) == 3
    assert not pairs.quarantined
    samples = [pairs[n] for n in range(20)]
    (bad,) = pairs.quarantined
    assert (bad.shard, bad.row, bad.source) == ("train-00000.parquet", 1, whole.records[1].source)
    assert reason in bad.reason
    assert caplog.text.count(str(bad)) == 1
    drawn_again = 0
    for n, sample in enumerate(samples):
        draw = whole.pair(n)
        drawn_again += draw.source == 1
        assert sample["source_index"] == pairs.pair(n).source != 1
        assert draw.source == 1 or same(sample, whole[n])
    assert drawn_again > 2
    backwards = open_pairs(other, **settings)
    assert all(same(backwards[n], samples[n]) for n in reversed(range(20)))
    loader = torch.utils.data.DataLoader(
        open_pairs(other, **settings), batch_size=None, sampler=range(20), num_workers=2
    )
    assert all(same(*both) for both in zip(samples, loader, strict=True))
    strict = open_pairs(other, max_bad_fraction=0.0, **settings)
    with pytest.raises(DatasetError, match="has 1 unusable rows of 3, more than --max_bad_fraction 0 allows"):
        [strict[n] for n in range(20)]


def test_pictures_of_one_record_that_cannot_be_used_are_an_error(dataset, tmp_path, unexamined):
    other = changed_rows(dataset, tmp_path / "other", lambda rows: rows[1].update(image=picture((9, 9))))
    pairs = open_pairs(other, warped=1.0)
    with pytest.raises(UnusablePictureError, match=r"row 1 \(.*9 x 9 px, expected 128 x 128"):
        pairs.record_images(1)
    assert len(pairs.record_images(0)) == 2
    assert {example["index"] for example in open_pairs(other, warped=1.0).examples(10)} == {0, 2}


def test_no_usable_pair_is_an_error(dataset, tmp_path, unexamined):
    def change(rows):
        for row in rows:
            if row["identity"] == "ann":
                row["image"] = None

    pairs = open_pairs(changed_rows(dataset, tmp_path / "other", change), warped=0.0, max_bad_fraction=0.9)
    with pytest.raises(DatasetError, match="no usable pair was found"):
        pairs[0]


def test_what_prepare_writes_is_read_by_its_place(dataset, tmp_path, monkeypatch):
    """Without the shards' footers, the same as pyarrow reads it; compressed shards are read by pyarrow."""
    rows = pq.read_table(next((dataset / "data").glob("train-*"))).to_pylist()
    compressed = changed_rows(dataset, tmp_path / "other", lambda rows: None)
    with monkeypatch.context() as patch:
        patch.delattr("magicedit.data.shard_files.ShardFiles._cell")
        records = open_pairs(dataset).records
        for n, row in enumerate(rows):
            assert records.picture(n) == row["image"]["bytes"]
            assert records[n].source == row["source"]
            np.testing.assert_array_equal(records[n].landmarks.ravel(), np.float32(row["landmarks"]))
        with pytest.raises(AttributeError, match="_cell"):
            open_pairs(compressed, memory=1)[0]
    assert same(open_pairs(compressed)[0], open_pairs(dataset)[0])


def test_landmarks_beside_unusable_ones_are_their_own(dataset, tmp_path):
    """Rows too short and too long by the same, between which others would be read at a wrong place."""

    def change(rows):
        rows[0]["landmarks"], rows[2]["landmarks"] = rows[0]["landmarks"][:-2], [*rows[2]["landmarks"], 1, 1]

    rows = pq.read_table(next((dataset / "data").glob("train-*"))).to_pylist()
    expected = np.reshape(rows[1]["landmarks"], (-1, 2)).astype(np.float32)
    change(rows)
    other = shutil.copytree(dataset, tmp_path / "other")
    write_rows(other / "data" / "train-00000.parquet", [rows], {})
    pairs = open_pairs(other, warped=1.0, max_bad_fraction=0.7)
    assert [bad.row for bad in pairs.quarantined] == [0, 2]
    np.testing.assert_array_equal(pairs.records[0].landmarks, expected)


def test_a_record_takes_less_than_100_bytes(tmp_path):
    """Against a dataset of a tenth of its rows, both without pictures that decode."""
    held = {}
    for people in (20, 200):
        rows = [
            {
                "image": {"bytes": b"%d" % number, "path": None},
                "identity": f"person {number // 2:09}",
                "source": f"person {number // 2:09}/a photograph with a long name {number}.jpg",
                "action_units": [1.0] * 12,
                "landmarks": (np.arange(956) / 956 * 128).tolist(),
                "pose": [0.0, 1.0, 2.0],
                "emotion": ("fear", "anger")[number % 2],
                "attributes": [f"attribute {number % 40}"],
            }
            for number in range(20 * people)
        ]
        folder = tmp_path / str(people)
        (folder / "data").mkdir(parents=True)
        groups = [rows[first : first + 16] for first in range(0, len(rows), 16)]
        write_rows(folder / "data" / "train-00000.parquet", groups, {})
        description = {
            "format": 1,
            "action_units": list(NAMES),
            "landmarks": "mediapipe478",
            "crop_size": 128,
        }
        counts = {"photographs": {"train": len(rows)}, "variants": 0}
        (folder / "magicedit.json").write_text(json.dumps(description | counts))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("magicedit.data.pairs.EXAMINED_WHOLE", 0)
            pairs = open_pairs(folder)
        records = pairs.records
        assert records[3].attributes == {"attribute 3"}
        assert (records[3].emotion, records[3].identity) == ("anger", "person 000000001")
        assert records[3].source.endswith("a photograph with a long name 3.jpg")
        np.testing.assert_allclose(records[-1].landmarks.ravel(), np.arange(956) / 956 * 128, rtol=1e-6)
        held[people] = len(pickle.dumps(pairs))
    assert (held[200] - held[20]) / (20 * 180) < 100


def test_more_unusable_rows_than_allowed_are_an_error(dataset, tmp_path):
    def change(rows):
        for row in rows[1:]:
            row["action_units"] = [9.0] * 12

    other = changed_rows(dataset, tmp_path / "other", change)
    with pytest.raises(DatasetError, match=r"2 unusable rows of 3, .* row 1 \(.*outside 0 to 5: 9 to 9"):
        open_pairs(other, warped=1.0)
    assert len(open_pairs(other, warped=1.0, max_bad_fraction=0.7)) == 1


@pytest.mark.parametrize("damage", ["zero bytes", "text", "no such column", "fewer rows", "pipe"])
def test_a_damaged_shard_is_named(dataset, tmp_path, damage):
    shutil.copytree(dataset, tmp_path / "other")
    shard = tmp_path / "other" / "data" / "train-00000.parquet"
    table = pq.read_table(shard)
    match damage:
        case "zero bytes":
            shard.write_bytes(b"")
        case "text":
            shard.write_text("identity,source")
        case "no such column":
            pq.write_table(table.drop_columns(["pose"]), shard)
        case "fewer rows":
            pq.write_table(table.slice(0, 1), shard)
        case "pipe":
            shard.unlink()
            os.mkfifo(shard)
    with pytest.raises(DatasetError, match=r"train-00000.parquet"):
        open_pairs(tmp_path / "other", warped=1.0)


def test_the_digest_is_of_pictures_and_labels(dataset, tmp_path):
    first = open_pairs(dataset, warped=1.0).digest
    assert open_pairs(dataset, warped=0.5, resolution=32, seed=3, memory=1).digest == first
    label, pixels = (
        changed_rows(dataset, tmp_path / name, change)
        for name, change in (
            ("label", lambda rows: rows[0]["action_units"].__setitem__(0, 4.5)),
            ("pixels", lambda rows: rows[0].update(image=picture((128, 128)))),
        )
    )
    assert len({first, open_pairs(label, warped=1.0).digest, open_pairs(pixels, warped=1.0).digest}) == 3
