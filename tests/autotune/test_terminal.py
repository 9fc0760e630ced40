"""Text that cannot steer a terminal, and streams that fail."""

import errno
import io
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from autotune.terminal import (
    Output,
    OutputFailed,
    clean,
    encodable,
    escaped,
    spaced,
    standard_outputs,
    toml_escape,
    unclean,
    write,
)
from tests.support.hostile import HOSTILE, unsafe
from tests.support.processes import printed_by

CONTROLS = f"{HOSTILE}\u2028\ud800\U000e0001"
FULL = Path("/dev/full")
words = st.text(st.characters(codec=None))


@contextmanager
def full_disk() -> Iterator[TextIO]:
    with FULL.open("w") as stream:
        yield stream


def test_what_steers_a_terminal_is_written_out() -> None:
    """As Python writes it; lines stay lines."""
    assert escaped(f"a\n{CONTROLS}\t") == (
        "a\n\\x1b[2J\\x9b31m\\x07\\u202e\\r\\u2028\\ud800\\U000e0001\\t"
    )
    assert escaped("a\nb", keep="") == "a\\nb"


@pytest.mark.parametrize("text", ["模型", "👩\u200d💻", "می\u200cخواهم", "a\u3000b\xa0c", "\ue000"])
def test_what_people_write_is_left_as_it_is(text: str) -> None:
    """Emoji and Persian need joiners; a space may be any space."""
    assert escaped(text) == spaced(text) == text


@given(words)
def test_nothing_unsafe_is_left(text: str) -> None:
    """A row keeps its length: its colours are places in it."""
    assert unsafe(escaped(text)) == unsafe(spaced(text)) == []
    assert len(spaced(text)) == len(text)


@given(st.text())
def test_toml_that_is_written_out_is_the_same_document(text: str) -> None:
    """Keys and values; `profiles show` prints it."""
    document = {text: text}

    shown = escaped(tomli_w.dumps(document), escape=toml_escape)

    assert tomllib.loads(shown) == document
    assert unsafe(shown) == []


def test_what_an_encoding_cannot_write_is_replaced() -> None:
    """Our glyphs by ASCII."""
    assert encodable("1 … 4 × 模型", "ascii") == "1 .. 4 x ??"
    assert encodable("1 … 4", "utf-8") == "1 … 4"


def test_a_line_is_written_at_once_and_clean() -> None:
    """Whatever the stream's encoding."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")

    write(f"模型 … {CONTROLS}\n", stream)

    assert stream.buffer.getvalue() == (
        b"?? .. \\x1b[2J\\x9b31m\\x07\\u202e\\r\\u2028\\ud800\\U000e0001\n"
    )


def test_a_full_disk_has_a_name() -> None:
    """The error says which stream, and nothing is left to fail once more at the end."""
    with full_disk() as stream, pytest.raises(OutputFailed) as caught:
        write("a\n", cast(TextIO, Output(stream, "logs/a.log")))

    assert str(caught.value) == "cannot write to logs/a.log: No space left on device"
    assert caught.value.errno == errno.ENOSPC


def test_an_output_without_a_name_drops_what_cannot_be_written() -> None:
    with full_disk() as stream:
        write("a\n", clean(stream))


def test_a_progress_bar_of_a_library_becomes_lines() -> None:
    r"""A `\r` would write over the line before."""
    stream = io.StringIO()

    clean(stream).write("a\r\n 10 %\r 20 %\r\x1b[A\tb")

    assert stream.getvalue() == "a\n 10 %\n 20 %\n\\x1b[A    b"


def test_who_draws_gets_the_stream_below() -> None:
    """Its escape sequences are its own."""
    stream = io.StringIO()

    assert unclean(clean(stream)) is stream
    assert unclean(stream) is stream


def test_the_standard_streams_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr

    with standard_outputs():
        write("a\n", sys.stdout)
        write("b\n", sys.stderr)

    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("a\n", "b\n")


def test_a_file_never_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """It would get what is meant for the terminal; a write fails instead."""
    code = (
        "import os, sys\n"
        "from autotune.terminal import OutputFailed, standard_outputs, write\n"
        "with standard_outputs(), open('file', 'w') as file:\n"
        "    write('dropped', sys.stderr)\n"
        "    try: write('a', sys.stdout)\n"
        "    except OutputFailed as error: print(file.fileno() > 2, error, file=file)\n"
    )

    command = f"exec '{sys.executable}' -c \"$CODE\" <&- >&- 2>&-"
    done = subprocess.run(
        ["sh", "-c", command], check=False, cwd=tmp_path, env={**os.environ, "CODE": code}
    )

    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == (
        "True cannot write to standard output: Bad file descriptor\n"
    )


def test_the_writer_loads_nothing_slow() -> None:
    """Every command imports it."""
    code = "import sys, autotune.terminal; print({'rich', 'torch', 'pydantic'} & set(sys.modules))"

    assert printed_by(code) == "set()\n"
