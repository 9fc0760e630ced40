"""The screen behind a real terminal: it leaves the terminal as it found it, however it ends."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pexpect
import pyte
import pytest

from dashboard.live import ENDING
from tests.support.toy_workload import ROOT

SCRIPT = ROOT / "tests" / "support" / "screen_script.py"
OTHER_PAGE, NORMAL_PAGE = "\x1b[?1049h", "\x1b[?1049l"
UNFINISHED = re.compile(r"\x1b(\[[?;\d]*)?\Z")
"""The beginning of an escape sequence at the end of what was read."""


class Terminal:
    """What a user sees: pyte knows no second page, so each page has a screen of its own."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.normal = pyte.Screen(columns, lines)
        self.other = pyte.Screen(columns, lines)
        self.is_other = False
        self.written = self.unfinished = ""
        self.process: pexpect.spawn[str]

    def write(self, text: str) -> None:
        self.written += text
        text = self.unfinished + text
        cut = UNFINISHED.search(text)
        self.unfinished = cut[0] if cut else ""
        for piece in split(text.removesuffix(self.unfinished)):
            if piece in (OTHER_PAGE, NORMAL_PAGE):
                self.is_other = piece == OTHER_PAGE
            else:
                pyte.Stream(self.other if self.is_other else self.normal).feed(piece)

    def flush(self) -> None:
        pass

    @property
    def cursor_is_visible(self) -> bool:
        """The last of show and hide counts, on whichever page."""
        return self.written.rfind("\x1b[?25h") >= self.written.rfind("\x1b[?25l")

    def resize(self, columns: int, lines: int) -> None:
        self.other.resize(lines=lines, columns=columns)
        self.normal.resize(lines=lines, columns=columns)
        self.process.setwinsize(lines, columns)

    def finish(self) -> str:
        """The normal page, once the script has ended."""
        self.process.expect(pexpect.EOF)
        self.process.close()
        return "\n".join(self.normal.display)


def split(text: str) -> Iterator[str]:
    for index, part in enumerate(text.split(OTHER_PAGE)):
        if index:
            yield OTHER_PAGE
        for number, piece in enumerate(part.split(NORMAL_PAGE)):
            if number:
                yield NORMAL_PAGE
            yield piece


def run(*arguments: str, **environment: str) -> AbstractContextManager[Terminal]:
    return opened([sys.executable, str(SCRIPT), *arguments], **environment)


@contextmanager
def opened(command: list[str], **environment: str) -> Iterator[Terminal]:
    """That command behind a terminal."""
    terminal = Terminal()
    terminal.process = pexpect.spawn(
        command[0], command[1:], dimensions=(24, 80), timeout=300, encoding="utf-8",
        env={**without_choices(), "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **environment},
    )  # fmt: skip
    terminal.process.logfile_read = terminal
    try:
        yield terminal
    finally:
        terminal.process.close(force=True)


def without_choices() -> dict[str, str]:
    """Our environment, less what says how to draw."""
    names = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "PYTHONIOENCODING", "TTY_COMPATIBLE"}
    return {name: value for name, value in os.environ.items() if name not in names}


def test_the_result_stays_on_the_normal_page() -> None:
    with run("tuning") as terminal:
        page = terminal.finish()

    assert "answer    ✓ 56" in page
    assert "128  ✗ out of memory" in page
    assert "after the screen" in page
    assert page.count("chatlm autotune") == 1
    assert terminal.cursor_is_visible
    assert not terminal.is_other
    assert terminal.process.exitstatus == 0


def test_training_leaves_its_last_figures() -> None:
    with run("training") as terminal:
        page = terminal.finish()

    assert "100 of 100" in page
    assert "done" in page
    assert "runs/made-up/step-100" in page
    assert terminal.cursor_is_visible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_usable_terminal(number: signal.Signals) -> None:
    with run("waiting") as terminal:
        terminal.process.expect("ready")
        assert not terminal.cursor_is_visible
        assert terminal.is_other

        terminal.process.kill(number)
        page = terminal.finish()

    assert terminal.cursor_is_visible
    assert not terminal.is_other
    assert "56  ✓ fits" in page
    assert "after the screen" not in page


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_that_ends_a_process_finds_the_normal_page(number: signal.Signals) -> None:
    """Ctrl-\\ and all the others; it then ends the process as it always does."""
    with run("waiting") as terminal:
        terminal.process.expect("ready")

        terminal.process.kill(number)
        terminal.finish()

    assert terminal.process.signalstatus == number
    assert terminal.cursor_is_visible
    assert not terminal.is_other


def test_a_stopped_process_leaves_the_normal_page_and_comes_back() -> None:
    """Ctrl-Z gives the shell its page, twice; `fg` draws again."""
    with opened(["bash", "--noprofile", "--norc", "-i"], PS1="$ ") as terminal:
        shell = terminal.process
        shell.sendline(shlex.join([sys.executable, str(SCRIPT), "waiting"]))
        for _ in range(2):
            shell.expect("ready")
            shell.expect_exact("made-up")
            assert terminal.is_other

            shell.sendcontrol("z")
            shell.expect("Stopped")
            assert not terminal.is_other
            assert terminal.cursor_is_visible

            shell.sendline("fg")
            shell.expect_exact(OTHER_PAGE)
        shell.expect_exact("made-up")
        shell.sendintr()
        shell.expect_exact(NORMAL_PAGE)
        shell.sendline("exit")
        terminal.finish()

    assert not terminal.is_other
    assert terminal.cursor_is_visible


def test_an_exception_in_a_thread_is_read_after_the_screen() -> None:
    with run("thread") as terminal:
        page = terminal.finish()

    assert "RuntimeError: a thread failed" in page
    assert "RuntimeError" not in "\n".join(terminal.other.display)
    assert terminal.cursor_is_visible
    assert not terminal.is_other


def test_a_terminal_that_went_away_ends_the_run_quietly(tmp_path: Path) -> None:
    with run("waiting", SCREEN_SCRIPT_END=str(tmp_path / "end")) as terminal:
        terminal.process.expect("ready")

        terminal.process.ptyproc.fileobj.close()  # the kernel sends SIGHUP
        terminal.process.ptyproc.closed = True
        terminal.process.wait()

    assert (tmp_path / "end").read_text(encoding="utf-8") == "SystemExit(129)"


def test_an_exception_shows_its_traceback_on_the_normal_page() -> None:
    with run("failing") as terminal:
        page = terminal.finish()

    assert "RuntimeError: the engine failed" in page
    assert "1  ✓ fits" in page
    assert terminal.cursor_is_visible
    assert not terminal.is_other


def test_what_others_write_to_stderr_is_read_after_the_screen() -> None:
    with run("warning") as terminal:
        page = terminal.finish()

    assert page.index("answer") < page.index("a listener failed")
    assert "a listener failed" not in "\n".join(terminal.other.display)


@pytest.mark.parametrize(("columns", "lines"), [(60, 24), (50, 12), (120, 40)])
def test_a_resize_leaves_no_rubbish(columns: int, lines: int) -> None:
    with run("waiting") as terminal:
        terminal.process.expect("ready")
        terminal.resize(columns, lines)
        for _ in range(3):  # a frame under way may still be of the old size
            terminal.process.expect_exact("made-up")

        terminal.process.expect_exact("ready")
        terminal.process.kill(signal.SIGINT)
        terminal.finish()

    rows = [row.rstrip() for row in terminal.other.display]
    assert sum("chatlm autotune" in row for row in rows) == 1
    assert sum("ready" in row for row in rows) == 1
    assert len([row for row in rows if row]) <= min(24, lines)
    assert not any(row.strip() for row in rows[24:])


def test_no_color_is_kept_on_the_live_screen() -> None:
    with run("tuning", NO_COLOR="1") as terminal:
        terminal.finish()

    assert "\x1b[32m" not in terminal.written
    assert "\x1b[1;32m" not in terminal.written


def test_an_ascii_terminal_gets_ascii_glyphs() -> None:
    with run("tuning", PYTHONIOENCODING="ascii") as terminal:
        page = terminal.finish()

    assert "128  x out of memory" in page
    assert "Card ?nder test" in page
    assert terminal.written.isascii()


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(("tuning",), {"TERM": "dumb"}), (("tuning", "--plain"), {}), (("tuning",), {"TERM": ""})],
)
def test_a_dumb_terminal_gets_plain_lines(
    arguments: tuple[str, ...], environment: dict[str, str]
) -> None:
    with run(*arguments, **environment) as terminal:
        page = terminal.finish()

    assert "\x1b" not in terminal.written
    assert "answer  56" in page


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_pipe_gets_plain_lines(encoding: str) -> None:
    chosen = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONIOENCODING": encoding}

    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "training"], check=True, capture_output=True, timeout=300,
        env={**without_choices(), **chosen},
    )  # fmt: skip

    lines = ended.stdout.decode(encoding).splitlines()
    assert b"\x1b" not in ended.stdout
    assert ended.stderr == b""
    assert lines[0].startswith("train   made-up")
    assert lines[-1] == "after the screen"
    assert len([line for line in lines if line.startswith("step")]) <= 22


def test_plain_lines_load_no_rich() -> None:
    code = (
        "import sys; from dashboard import open_screen\n"
        "with open_screen(plain=True, stream=sys.stdout) as emit: emit(None)\n"
        "sys.exit('rich' in sys.modules)"
    )

    subprocess.run([sys.executable, "-c", code], check=True, cwd=SCRIPT.parents[1])
