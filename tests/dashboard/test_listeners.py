"""Where events go: logs of their own, and listeners that fail while the others hear on."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO, cast

import pytest

from autotune.errors import OutputError
from autotune.events import Listeners, Notice
from autotune.terminal import Output
from dashboard.event_log import record_events
from dashboard.listeners import open_listeners, open_log
from dashboard.plain_lines import PlainLines


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@contextmanager
def full_disk(name: str) -> Iterator[TextIO]:
    """A stream of that name on a disk without room."""
    with Path("/dev/full").open("w") as stream:
        yield cast(TextIO, Output(stream, name))


def test_commands_of_one_second_have_logs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds the lines of its own command."""
    monkeypatch.setattr("dashboard.listeners.time.strftime", lambda form: "20250101-000000")
    with ExitStack() as stack:
        opened = [
            stack.enter_context(open_listeners("a", as_json=True, plain=True, events=None))
            for _ in range(3)
        ]
        for number, (emit, _) in enumerate(opened):
            emit(Notice(text=f"command {number}"))

    paths = [path for _, path in opened]
    assert [str(path) for path in paths] == [
        "logs/a_20250101-000000.log",
        "logs/a_20250101-000000-2.log",
        "logs/a_20250101-000000-3.log",
    ]
    assert [path.read_text() for path in paths] == [f"note    command {n}\n" for n in range(3)]


def test_a_log_is_never_what_a_link_points_to() -> None:
    """Another user of a shared folder may have put it there."""
    Path("logs").mkdir()
    Path("logs/a.log").symlink_to("../precious")
    Path("precious").write_text("kept")

    with open_log("a") as (log, path):
        log.write("said\n")

    assert str(path) == "logs/a-2.log"
    assert path.read_text() == "said\n"
    assert Path("precious").read_text() == "kept"


def test_a_log_that_cannot_be_opened_is_said() -> None:
    """With what to do."""
    Path("logs").touch()

    with pytest.raises(OutputError) as caught, open_log("a"):
        pass

    assert str(caught.value) == (
        "cannot write the log logs/a.log: File exists; run in a folder that you can write to"
    )


def test_a_listener_whose_disk_is_full_is_told_to_the_others_once() -> None:
    """They hear every event."""
    heard: list[object] = []
    events = [Notice(text="one"), Notice(text="two")]
    with full_disk("logs/a.log") as log:
        emit = Listeners([PlainLines(log), heard.append])
        for event in events:
            emit(event)

    told = Notice(text="cannot write to logs/a.log: No space left on device; going on without it")
    assert heard == [events[0], told, events[1]]


def test_two_that_fail_at_once_are_both_told() -> None:
    """And nobody is asked twice."""
    heard: list[object] = []
    with full_disk("a") as a, full_disk("b") as b:
        Listeners([PlainLines(a), heard.append, PlainLines(b)])(Notice(text="one"))

    texts = [event.text for event in heard if isinstance(event, Notice)]
    assert [text.split(":")[0] for text in texts] == [
        "one",
        "cannot write to a",
        "cannot write to b",
    ]


def test_a_screen_without_a_name_is_told_as_one() -> None:
    """rich draws on the terminal itself."""
    heard: list[object] = []

    def draw(event: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    Listeners([draw, heard.append])(Notice(text="one"))

    assert heard[1] == Notice(
        text="cannot write to the screen: Input/output error; going on without it"
    )


def test_a_reader_that_leaves_is_told_to_nobody() -> None:
    heard: list[object] = []
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        emit = Listeners([PlainLines(cast(TextIO, Output(stream, "a"))), heard.append])
        emit(Notice(text="one"))

    assert heard == [Notice(text="one")]


def test_a_record_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, record_events(tmp_path):
        pass

    assert str(caught.value) == f"cannot write {tmp_path}: Is a directory; choose another file"


def test_a_log_in_memory_takes_lines_too() -> None:
    """As tests have it."""
    stream = io.StringIO()

    PlainLines(cast(TextIO, Output(stream, "a")))(Notice(text="模型"))

    assert stream.getvalue() == "note    模型\n"
