"""Two tunings on one device, as two real processes; and lock files that someone else left."""

import fcntl
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotune.devices import lock
from autotune.devices.lock import locked
from tests.support.processes import deadline

ROOT = Path(__file__).parents[3]
CARD = "GPU-aa11"
HOLD = """
import sys
from pathlib import Path
from autotune.devices.lock import locked
say = lambda text: print(text, flush=True)
with locked(sys.argv[2:], notify=say, folder=Path(sys.argv[1])):
    say("held")
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def _no_test_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lock, "POLL", 0.01)
    with deadline(60):
        yield


@contextmanager
def tuning(folder: Path, *devices: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that locks these devices and, once it has them, holds them until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *devices],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said_by(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def file_of(folder: Path, device: str = CARD) -> Path:
    return folder / f"chatlm-{device}.lock"


def is_free(file: Path) -> bool:
    """Whether nobody holds it, by a look of its own."""
    if not file.exists():
        return True
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_free_device_is_locked_without_a_word(tmp_path: Path) -> None:
    """Until the block ends, however it ends."""
    said, held = list[str](), list[bool]()

    def fail() -> None:
        held.append(not is_free(file_of(tmp_path)))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), locked([CARD], notify=said.append, folder=tmp_path):
        fail()

    assert held == [True]
    assert is_free(file_of(tmp_path))
    assert said == []


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_second_tuning_says_who_holds_the_device_and_waits_for_its_end(
    tmp_path: Path, is_killed: bool
) -> None:
    """A process that is killed releases nothing itself: the kernel does."""
    said: list[str] = []
    with tuning(tmp_path, CARD) as holder:
        assert said_by(holder) == "held"

        def notify(text: str) -> None:
            said.append(text)
            assert holder.stdin is not None
            holder.kill() if is_killed else print(file=holder.stdin, flush=True)

        with locked([CARD], notify=notify, folder=tmp_path):
            signed, held = file_of(tmp_path).read_text(), not is_free(file_of(tmp_path))
        code = holder.wait()

    (text,) = said
    before, _, after = text.partition(f"is being tuned by process {holder.pid} (")
    assert (before, held, code) == ("GPU-aa11 ", True, -signal.SIGKILL if is_killed else 0)
    assert after.endswith("; waiting for it")
    assert re.search(r", since \d\d:\d\d:\d\d\): \S", after)
    assert signed.startswith(f"{os.getpid()} ")


def test_waiting_ends_with_ctrl_c_and_the_holder_keeps_the_device(tmp_path: Path) -> None:
    """Nothing of what was locked while waiting is left locked."""
    with tuning(tmp_path, "GPU-b") as holder:
        assert said_by(holder) == "held"
        with tuning(tmp_path, "GPU-a", "GPU-b") as waiter:
            waiting = said_by(waiter)
            was_held = not is_free(file_of(tmp_path, "GPU-a"))
            waiter.send_signal(signal.SIGINT)
            code = waiter.wait()
        left = [is_free(file_of(tmp_path, device)) for device in ("GPU-a", "GPU-b")]

    assert f"by process {holder.pid} " in waiting
    assert was_held
    assert code == -signal.SIGINT
    assert left == [True, False]


def test_devices_are_locked_in_one_order_whatever_order_they_are_given_in(tmp_path: Path) -> None:
    """Two tunings that each hold what the other waits for would wait for ever."""
    free_meanwhile: list[bool] = []
    file_of(tmp_path, "GPU-b").touch()
    with tuning(tmp_path, "GPU-a") as holder:
        assert said_by(holder) == "held"

        def notify(text: str) -> None:
            free_meanwhile.append(is_free(file_of(tmp_path, "GPU-b")))
            holder.kill()

        with locked(["GPU-b", "GPU-a", "GPU-b"], notify=notify, folder=tmp_path):
            held = [is_free(file_of(tmp_path, device)) for device in ("GPU-a", "GPU-b")]

    assert free_meanwhile == [True]
    assert held == [False, False]


def test_other_users_can_lock_the_file_too_and_not_write_it(tmp_path: Path) -> None:
    """Whatever the umask of the user who came first: a lock needs only reading."""
    before = os.umask(0o077)
    try:
        with locked([CARD], notify=print, folder=tmp_path):
            mode = stat.S_IMODE(file_of(tmp_path).stat().st_mode)
    finally:
        os.umask(before)

    assert mode == 0o644


def test_a_slice_of_the_old_kind_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Its name holds slashes, which are no folders here."""
    with locked(["MIG-GPU-aa/3/0", "../cpu:1"], notify=print, folder=tmp_path):
        files = sorted(file.name for file in tmp_path.iterdir())

    assert files == ["chatlm-.._cpu_1.lock", "chatlm-MIG-GPU-aa_3_0.lock"]


def test_a_file_that_is_not_ours_to_write_is_locked_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's in a sticky folder: the kernel refuses to open it but for reading."""
    file_of(tmp_path).write_text("")
    real, said = os.open, list[str]()

    def read_only(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_CREAT):
            raise (FileExistsError if flags & os.O_EXCL else PermissionError)(13, "no")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    with locked([CARD], notify=said.append, folder=tmp_path):
        monkeypatch.undo()
        held = not is_free(file_of(tmp_path))

    assert held
    assert is_free(file_of(tmp_path))
    assert said == []


@pytest.mark.parametrize(
    "kind", ["symlink", "dangling", "hard link", "folder", "pipe", "no parent"]
)
def test_without_a_lock_the_tuning_goes_on_and_says_so(tmp_path: Path, kind: str) -> None:
    """Someone's trap, or a broken folder: never followed, never waited for, never written to."""
    target, folder = tmp_path / "target", tmp_path
    target.write_text("precious")
    mode = target.stat().st_mode
    match kind:
        case "symlink":
            file_of(folder).symlink_to(target)
        case "dangling":
            file_of(folder).symlink_to(tmp_path / "nothing")
        case "hard link":
            file_of(folder).hardlink_to(target)
        case "folder":
            file_of(folder).mkdir()
        case "pipe":
            os.mkfifo(file_of(folder))
        case "no parent":
            folder = tmp_path / "absent"
    said: list[str] = []

    with locked([CARD], notify=said.append, folder=folder):
        entered = True

    (text,) = said
    assert entered
    assert text.startswith(f"{CARD} cannot be locked ({file_of(folder)}: ")
    assert text.endswith("; another tuning of it at the same time would spoil both")
    assert (target.read_text(), target.stat().st_mode) == ("precious", mode)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "1 12:30:05 \x1b[2Jroot chatlm",
        "999999999 12:30:05 root chatlm",
        "\xff",
        "0 12:30:05 root chatlm",
    ],
)
def test_a_holder_that_did_not_sign_is_another_process(tmp_path: Path, text: str) -> None:
    """A name of a process that is gone is an earlier holder's; anyone may write into the file."""
    said: list[str] = []
    file_of(tmp_path).write_text(text, encoding="latin-1")
    with file_of(tmp_path).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def notify(text: str) -> None:
            said.append(text)
            held.close()

        with locked([CARD], notify=notify, folder=tmp_path):
            pass

    assert said == ["GPU-aa11 is being tuned by another process; waiting for it"]


def test_the_folder_is_the_machines_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for every user of a machine, unless they say otherwise."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with locked([CARD], notify=print):
        held = not is_free(file_of(tmp_path))

    assert held
