"""Records from Parquet and Arrow files, a batch at a time."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autotune.errors import DataError, first_line
from trainer.reading.faults import check_names, shown
from trainer.reading.layouts import Columns, useful
from trainer.reading.streams import COPY_AGAIN, DataFile, Table

STREAM = b"\xff\xff\xff\xff"
"""What an Arrow stream begins with; a file begins with ARROW1."""
BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20
"""A batch ends at either limit, as far as the file says how large its rows are."""


def parquet_table(file: DataFile, columns: Columns, skip: int) -> Table:
    """The records after the first `skip`; does not read a row group that is skipped whole."""
    with _named(file), file.seekable() as path, pq.ParquetFile(path, memory_map=True) as table:
        names = _names(table.schema_arrow)
    return Table("Parquet", names, _parquet_records(file, useful(names, columns), skip))


def arrow_table(file: DataFile, columns: Columns, skip: int) -> Table:
    """The records after the first `skip` of a file or a stream."""
    with _named(file), _opened(file) as reader:
        names = _names(reader.schema)
    return Table("Arrow", names, _arrow_records(file, useful(names, columns), skip))


def _parquet_records(file: DataFile, names: list[str], skip: int) -> Iterator[dict[str, Any]]:
    with _named(file), file.seekable() as path, pq.ParquetFile(path, memory_map=True) as table:
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            if skip >= about.num_rows:
                skip -= about.num_rows
                continue
            for batch in table.iter_batches(
                batch_size=_batch_rows(about.num_rows, about.total_byte_size), row_groups=[group],
                columns=names, use_threads=False,
            ):  # fmt: skip
                yield from batch.slice(skip).to_pylist()
                skip = max(0, skip - len(batch))


def _arrow_records(file: DataFile, names: list[str], skip: int) -> Iterator[dict[str, Any]]:
    with _named(file), _opened(file, names) as reader:
        for batch in _batches(reader):
            size = _batch_rows(len(batch), batch.get_total_buffer_size())
            for first in range(min(skip, len(batch)), len(batch), size):
                yield from batch.slice(first, size).to_pylist()
            skip = max(0, skip - len(batch))


@contextmanager
def _opened(file: DataFile, names: Sequence[str] | None = None) -> Iterator[Any]:
    """A reader of the file or the stream, with those columns alone."""
    is_stream = file.head.startswith(STREAM)
    with ExitStack() as stack:
        source = stack.enter_context(
            file.open()
            if is_stream and file.codec
            else pa.memory_map(stack.enter_context(file.seekable()))
        )
        open_ = pa.ipc.open_stream if is_stream else pa.ipc.open_file
        options = pa.ipc.IpcReadOptions()
        if names is not None:
            with _opened(file) as whole:
                options.included_fields = [whole.schema.names.index(name) for name in names]
        yield stack.enter_context(open_(source, options=options))


def _batches(reader: Any) -> Iterator[Any]:
    if isinstance(reader, pa.RecordBatchFileReader):
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from reader


def _batch_rows(rows: int, size: int) -> int:
    """How many of the rows, which take `size` bytes, are taken at once."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(1, size)))


def _names(schema: Any) -> list[str]:
    """The names of the columns; raises Fault where a struct within one has a field twice."""
    for field in schema:
        _check_fields(field.type, field.name)
    names: list[str] = schema.names
    return names


def _check_fields(kind: Any, column: str) -> None:
    while (inner := getattr(kind, "value_type", None)) is not None:  # of a list or a dictionary
        kind = inner
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        check_names([field.name for field in fields], f" in {shown(column)}")
        for field in fields:
            _check_fields(field.type, column)


@contextmanager
def _named(file: DataFile) -> Iterator[None]:
    """Turns errors of Arrow into one that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.path} is damaged or cut off: {first_line(error)}", COPY_AGAIN
        ) from error
