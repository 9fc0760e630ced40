"""What every test needs: caches of its own, no hub, no process left behind by a test that failed."""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

# threads that spin while they wait starve the other half of the tests; read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for children too: two tests share two cores
gc.disable()  # until all modules are imported, see pytest_collection_finish


def pytest_collection_finish() -> None:
    """A look for garbage among all that torch and transformers define takes 0.3 s, and probes look often."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tokens are cached where the session ends, and nothing is asked of the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        yield


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """`cli.main` leaves its handlers to the process, which ends with it; here a next test comes."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


PR_SET_CHILD_SUBREAPER = 36
CHILD_EVENTS = {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec"}
"""Python's audit events of a process that starts another."""
DEFAULTS: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler, signal.SIGQUIT: signal.SIG_DFL,
}  # fmt: skip
_is_quick_test_running = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="skip tests that start a child process")


def pytest_configure(config: pytest.Config) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # whose parent has ended is ours to end
    for number, handler in DEFAULTS.items():
        if signal.getsignal(number) == signal.SIG_IGN:  # a script's `&` leaves it to all children
            signal.signal(number, handler)
    if config.getoption("--quick"):
        sys.addaudithook(_skip_at_a_child)


def _skip_at_a_child(event: str, _: tuple[Any, ...]) -> None:
    if _is_quick_test_running and event in CHILD_EVENTS:
        pytest.skip("starts a child process, and --quick was given")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Says to the audit hook when a test and its fixtures run."""
    global _is_quick_test_running
    _is_quick_test_running = item.config.getoption("--quick")
    try:
        return (yield)
    finally:
        _is_quick_test_running = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Ends what a test that failed has started and left."""
    report = yield
    if report.failed:
        end_processes(psutil.Process().children(recursive=True))
    return report


def end_processes(left: list[psutil.Process]) -> None:
    """Kills these processes, and returns when they are gone."""
    for child in left:
        try:
            child.kill()
        except psutil.NoSuchProcess:  # it has ended since
            continue
    psutil.wait_procs(left, timeout=5)
