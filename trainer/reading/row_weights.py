"""How much each row of an Arrow column takes once it is made of Python's objects.

A short column may hold long rows: a dictionary's text, or a part of a view, counts for each row that names it.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from trainer.reading.faults import ROW_VALUES, VALUE_BYTES, Fault, shown

TEXTS = {
    pa.string(): np.int32, pa.binary(): np.int32, pa.large_string(): np.int64, pa.large_binary(): np.int64,
}  # fmt: skip
"""Types of text by those of their offsets."""
VIEWS = (pa.string_view(), pa.binary_view())


def check_type(kind: Any, column: str) -> None:
    """Raises Fault where a type in the column is none that text comes in."""
    kind = _stored(kind)
    inner = kind.value_type if pa.types.is_dictionary(kind) else None
    if kind in TEXTS or kind in VIEWS or pa.types.is_null(kind) or _is_number(inner or kind):
        return
    if inner is not None and (inner in TEXTS or inner in VIEWS):
        return
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind)
    if not (is_list or pa.types.is_fixed_size_list(kind) or pa.types.is_struct(kind)):
        what = f"has the type {str(kind)[:80]} in column {shown(column)}, which is not read"
        raise Fault(what, "save it as text, or as lists and structs of text")
    for number in range(kind.num_fields):
        check_type(kind.field(number).type, column)


def is_plain(kind: Any) -> bool:
    """Whether each value of a row takes bytes of its own in the column."""
    kind = _stored(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_struct(kind):
        fields = [kind.field(number).type for number in range(kind.num_fields)]
        return bool(fields) and all(map(is_plain, fields))
    return kind in TEXTS or _is_number(kind)


def weights_of(column: Any) -> Any:
    """Bytes of each row: of its text, and `VALUE_BYTES` for each value."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    kind, many = column.type, len(column)
    weights = np.full(many, VALUE_BYTES, np.int64)
    if pa.types.is_dictionary(kind):
        if len(column.dictionary) and (kind.value_type in TEXTS or kind.value_type in VIEWS):
            places = _numbers(column.indices, np.dtype(str(kind.index_type)))
            weights += _sizes(column.dictionary, np.clip(places, 0, len(column.dictionary) - 1))
    elif kind in TEXTS or kind in VIEWS:
        weights += _sizes(column, np.arange(many))
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            weights += weights_of(column.field(number))
    elif pa.types.is_fixed_size_list(kind):
        offsets = (column.offset + np.arange(many + 1)) * kind.list_size
        weights += _of_lists(column.values, offsets)
    elif kind.num_fields:  # lists and maps
        wide = np.int64 if pa.types.is_large_list(kind) else np.int32
        weights += _of_lists(column.values, _offsets(column, wide))
    return weights


def _of_lists(items: Any, offsets: Any) -> Any:
    """Bytes of the items of each list; those of a list that is too long are not looked at."""
    counts = np.diff(offsets)
    weights = VALUE_BYTES * counts
    first = 0
    while first < len(counts):
        end = int(np.searchsorted(offsets, offsets[first] + ROW_VALUES, side="right")) - 1
        if end > first:
            begin, many = int(offsets[first]), int(offsets[end] - offsets[first])
            passed = np.concatenate([[0], np.cumsum(weights_of(items.slice(begin, many)))])
            weights[first:end] += np.diff(passed[offsets[first : end + 1] - begin])
        first = max(end, first + 1)
    return weights


def _sizes(texts: Any, places: Any) -> Any:
    """Bytes of the texts in those places."""
    data = texts.buffers()[1]
    if data is None or not len(places):
        return np.zeros(len(places), np.int64)
    places = places + texts.offset
    if texts.type in VIEWS:  # 16 bytes each, which begin with the length
        return np.frombuffer(data, np.int32).reshape(-1, 4)[places, 0].astype(np.int64)
    offsets = np.frombuffer(data, TEXTS[texts.type])
    return offsets[places + 1].astype(np.int64) - offsets[places]


def _numbers(array: Any, form: Any) -> Any:
    """The numbers of an array; those of its nulls may be any."""
    data = array.buffers()[1]
    if data is None:
        return np.zeros(len(array), np.int64)
    return np.frombuffer(data, form)[array.offset : array.offset + len(array)].astype(np.int64)


def _offsets(column: Any, form: Any) -> Any:
    data = column.buffers()[1]
    if data is None or not len(column):
        return np.zeros(len(column) + 1, np.int64)
    offsets = np.frombuffer(data, form)[column.offset : column.offset + len(column) + 1]
    return offsets.astype(np.int64)


def _stored(kind: Any) -> Any:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_number(kind: Any) -> bool:
    if pa.types.is_fixed_size_binary(kind):
        return bool(0 < kind.byte_width <= 64)
    return bool(pa.types.is_primitive(kind) or pa.types.is_decimal(kind))
