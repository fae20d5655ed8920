"""Where uncompressed pages of a Parquet file keep their values, so that one value is read by its place.

pyarrow reads a row only with the footer of its whole file in memory, about a kilobyte for each row of our
shards, or parsed anew for each read, which takes milliseconds. What is needed to read single values of the
columns that `magicedit.data.shards.write_rows` writes is little: headers of pages (Thrift's compact protocol)
and values in plain encoding. See https://parquet.apache.org/docs/file-format/data-pages/
"""

import struct
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq

_WRITER = "parquet-cpp-arrow"  # whose dictionaries have values in the order of their first row
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
# Of kinds of pages: the field of a header that describes it, and the field of its encoding therein
_DESCRIPTIONS = {_DATA_PAGE: (5, 2), _DICTIONARY_PAGE: (7, 2), _DATA_PAGE_V2: (8, 4)}
_PLAIN, _PLAIN_DICTIONARY, _RLE_DICTIONARY = 0, 2, 8
_LARGEST_HEADER = 2**14  # bytes; statistics of a page may hold two values of 4 kB

Read = Callable[[int, int], bytes]  # offset, size -> bytes of the file


def chunk_of(metadata: pq.FileMetaData, group: int, column: int) -> tuple[int, int]:
    """First and last offset of a column's pages in a row group; both negative, but as far apart, where
    `byte_arrays` and `floats` cannot read them: compressed, or written by another library."""
    found = metadata.row_group(group).column(column)
    if found.compression != "UNCOMPRESSED" or not str(metadata.created_by).startswith(_WRITER):
        return -1 - found.total_compressed_size, -1
    start = found.dictionary_page_offset if found.has_dictionary_page else found.data_page_offset
    return start, start + found.total_compressed_size


def byte_arrays(read: Read, start: int, end: int, rows: int) -> list[tuple[int, int]] | None:
    """Returns offset and size of the values of each row in a chunk of an optional column of byte arrays.

    None where rows have no value, or share one: their order is then written elsewhere; and where pages are of
    another kind or encoding.
    """
    found = []
    for kind, encoding, first, last in _pages(read, start, end):
        if kind == _DATA_PAGE and encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
            continue  # one value each, as in the dictionary, or the count differs
        if kind not in (_DATA_PAGE, _DICTIONARY_PAGE) or encoding not in (_PLAIN, _PLAIN_DICTIONARY):
            return None
        at = first if kind == _DICTIONARY_PAGE else first + 4 + _length(read, first)  # behind the levels
        while at < last:
            size = _length(read, at)
            found.append((at + 4, size))
            at += 4 + size
    return found if len(found) == rows else None


def floats(read: Read, start: int, end: int, count: int) -> int | None:
    """Returns the offset of a chunk's float32 values, which follow each other; None where they do not.

    count: of the values, without any missing.
    """
    pages = list(_pages(read, start, end))
    if len(pages) != 1 or pages[0][:2] != (_DATA_PAGE, _PLAIN):
        return None
    first, last = pages[0][2:]
    at = first
    for _ in range(2):  # levels of repetition and definition
        at += 4 + _length(read, at)
    return at if last - at == 4 * count else None


def _pages(read: Read, start: int, end: int) -> list[tuple[int, int, int, int]]:
    """Kind, encoding, and first and last offset of the content of each page."""
    found, at = [], start
    while at < end:
        header, length = _struct(read(at, min(_LARGEST_HEADER, end - at)), 0)
        kind, size = header[1], header[3]
        description, field = _DESCRIPTIONS[kind]
        encoding = header[description][field]
        found.append((kind, encoding, at + length, at + length + size))
        at += length + size
    return found


def _length(read: Read, at: int) -> int:
    return struct.unpack("<I", read(at, 4))[0]


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value, at


def _struct(content: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Returns the fields of a struct in Thrift's compact protocol by number, and the offset behind it."""
    fields: dict[int, Any] = {}
    number = 0
    while head := content[at]:
        at += 1
        step, kind = head >> 4, head & 15
        if step:
            number += step
        else:
            value, at = _varint(content, at)
            number = value >> 1 ^ -(value & 1)
        if kind in (1, 2):  # true, false
            fields[number] = kind == 1
        elif kind in (4, 5, 6):  # integers, zigzag
            value, at = _varint(content, at)
            fields[number] = value >> 1 ^ -(value & 1)
        elif kind == 8:  # bytes
            size, at = _varint(content, at)
            fields[number], at = content[at : at + size], at + size
        elif kind == 12:
            fields[number], at = _struct(content, at)
        else:
            raise ValueError(f"fields of kind {kind} cannot be read")
    return fields, at + 1
