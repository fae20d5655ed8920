"""Values by their places in a file, against pyarrow's own."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from magicedit.data.parquet_pages import byte_arrays, chunk_of, floats


def reader(path):
    handle = os.open(path, os.O_RDONLY)
    return lambda offset, size: os.pread(handle, size, offset)


def column(metadata, group, name):
    numbers = {metadata.row_group(0).column(n).path_in_schema: n for n in range(metadata.num_columns)}
    return chunk_of(metadata, group, numbers[name])


def written(path, pictures, **settings):
    cells = [None if content is None else {"bytes": content, "path": None} for content in pictures]
    pq.write_table(pa.table({"image": cells}), path, row_group_size=4, **{"compression": "none"} | settings)
    return pq.read_metadata(path)


@pytest.mark.parametrize(
    "settings",
    [
        {},  # a dictionary
        {"use_dictionary": False},
        {"dictionary_pagesize_limit": 2000, "write_batch_size": 1},  # both: the dictionary overflows
        {"use_dictionary": False, "data_page_size": 1000, "write_batch_size": 1},  # several pages
    ],
)
def test_byte_arrays_are_found_in_every_layout_of_pages(tmp_path, settings):
    rng = np.random.default_rng(0)
    pictures = [rng.bytes(size) for size in (900, 1, 1200, 800, 5000, 0, 70, 300, 10)]
    metadata = written(tmp_path / "x.parquet", pictures, **settings)
    read, found = reader(tmp_path / "x.parquet"), []
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        found += byte_arrays(read, *column(metadata, group, "image.bytes"), rows)
    assert [read(*place) for place in found] == pictures


@pytest.mark.parametrize("pictures", [[b"a", None, b"b"], [b"a", b"b", b"a"]], ids=["missing", "shared"])
def test_rows_without_a_value_of_their_own_are_left_to_pyarrow(tmp_path, pictures):
    metadata = written(tmp_path / "x.parquet", pictures)
    read = reader(tmp_path / "x.parquet")
    assert byte_arrays(read, *column(metadata, 0, "image.bytes"), 3) is None


@pytest.mark.parametrize(
    "settings",
    [
        {"data_page_version": "2.0"},
        {"use_dictionary": False, "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
    ids=["second version", "lengths apart"],
)
def test_pages_of_other_kinds_are_left_to_pyarrow(tmp_path, settings):
    metadata = written(tmp_path / "x.parquet", [b"a", b"bb", b"ccc"], **settings)
    read = reader(tmp_path / "x.parquet")
    assert byte_arrays(read, *column(metadata, 0, "image.bytes"), 3) is None


def test_compressed_chunks_are_left_to_pyarrow_but_have_a_size(tmp_path):
    metadata = written(tmp_path / "x.parquet", [b"a" * 100], compression="snappy")
    start, end = column(metadata, 0, "image.bytes")
    assert start < end < 0


def test_lists_of_floats_follow_each_other(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 956)).astype(np.float32)
    cells = pa.array(values.tolist(), pa.list_(pa.float32()))
    for plain in (True, False):
        path = tmp_path / f"{plain}.parquet"
        pq.write_table(pa.table({"x": cells}), path, use_dictionary=not plain, compression="none")
        place = column(pq.read_metadata(path), 0, "x.list.element")
        found = floats(reader(path), *place, values.size)
        assert (found is not None) == plain
        if plain:
            content = reader(path)(found, values.nbytes)
            np.testing.assert_array_equal(np.frombuffer(content, "<f4").reshape(values.shape), values)
            assert floats(reader(path), *place, values.size - 1) is None
