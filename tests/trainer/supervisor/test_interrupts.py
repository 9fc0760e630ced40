"""Which signals count, on a clock that the test moves."""

import signal
import subprocess
import sys

import pytest

from trainer.supervisor.interrupts import (
    SIGNALS,
    Interrupts,
    collected_interrupts,
    held_interrupts,
)

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
Signals = list[tuple[float, signal.Signals]]
"""When each comes, in seconds."""


def counted(signals: Signals) -> Signals:
    """Those that raise."""
    clock = 0.0
    interrupts = Interrupts(now=lambda: clock)
    raised = []
    for clock, number in signals:
        try:
            interrupts(number, None)
        except KeyboardInterrupt:
            raised.append((clock, number))
    return raised


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_at_once_changes_nothing(
    first: signal.Signals, second: signal.Signals
) -> None:
    """A closed terminal and `timeout` send two, whatever they are."""
    assert counted([(100.0, first), (100.004, second), (100.9, second)]) == [(100.0, first)]


@pytest.mark.parametrize("first", SIGNALS)
def test_only_ctrl_c_counts_again(first: signal.Signals) -> None:
    """A second after the first."""
    later: Signals = [(0.0, first), (5.0, TERM), (6.0, HUP), (7.0, INT)]

    assert counted(later) == [(0.0, first), (7.0, INT)]


def test_a_key_that_is_held_down_cuts_no_end() -> None:
    """Each Ctrl-C that counts starts the second anew."""
    held: Signals = [(n / 4, INT) for n in range(8)]

    assert counted(held) == [(0.0, INT), (1.0, INT)]


def test_collected_signals_do_not_raise_and_the_first_stays_the_first() -> None:
    """Also after the block."""
    clock = 0.0
    interrupts = Interrupts(now=lambda: clock)

    with interrupts.collected() as came:
        for clock, number in ((0.0, HUP), (0.1, TERM), (0.2, INT), (2.0, INT)):  # noqa: B007
            interrupts(number, None)
    interrupts(TERM, None)

    assert came == [HUP, INT]
    clock = 4.0
    with pytest.raises(KeyboardInterrupt):
        interrupts(INT, None)


def test_no_signal_counts_once_the_command_is_over() -> None:
    """Nor while Python ends, which restores the default of a handler and would die of it."""
    script = (
        "import atexit, os, signal, sys\n"
        "from trainer.supervisor.interrupts import SIGNALS, Interrupts\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid(), numbers=SIGNALS):\n"
        "        for number in numbers:\n"
        "            kill(pid, number)\n"
        "sys.late = Late()\n"  # goes with the interpreter itself
        "interrupts = Interrupts()\ninterrupts.install()\ninterrupts.end()\nsys.exit(130)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (130, "")


def test_the_handler_of_the_command_collects() -> None:
    """So the time of the first signal is known in every part of a command."""
    interrupts = Interrupts()
    interrupts.install()

    with collected_interrupts() as came:
        signal.raise_signal(TERM)
        signal.raise_signal(INT)

    assert came == [TERM]


def test_without_a_command_the_handlers_are_put_back() -> None:
    """As in a program of the user's own."""
    before = [signal.getsignal(number) for number in SIGNALS]

    with collected_interrupts() as came:
        signal.raise_signal(HUP)

    assert came == [HUP]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_held_signal_interrupts_after_the_block() -> None:
    """What the block does is done in full."""
    written = []

    def write() -> None:
        with held_interrupts():
            signal.raise_signal(INT)
            written.append("profile")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert written == ["profile"]


def test_an_error_of_the_block_is_not_hidden_by_a_held_signal() -> None:
    """It says why nothing was written."""

    def write() -> None:
        with held_interrupts():
            signal.raise_signal(INT)
            raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        write()


def test_nohup_is_kept() -> None:
    """A hangup does not end what was started to survive it."""
    signal.signal(HUP, signal.SIG_IGN)

    Interrupts().install()

    assert signal.getsignal(HUP) == signal.SIG_IGN
