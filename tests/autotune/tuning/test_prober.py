"""Every way in which a probe can end, with real worker processes that hold real memory."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.errors import ChatlmError, DeviceError, WorkerError
from autotune.events import ProbeStarted, ReadingTaken
from autotune.trial import Trial
from autotune.tuning.extras import tune_evaluation
from autotune.tuning.loop import Extras, tune
from autotune.verdict import Verdict
from tests.support.probers import CARD, GIB, TARGET, Host, notices, peak_of, prober_of
from tests.support.processes import each_within, still_running, wait_until, workers_of
from tests.support.toy_workload import MIB, ROOT, toy

nothing_hangs = each_within(300)


def test_a_peak_within_the_budget_fits_and_above_it_is_over(tmp_path: Path) -> None:
    """Both ran; the peaks are as far apart as what the two sizes hold."""
    with prober_of(tmp_path, toy()) as prober:
        small = prober.probe(10)
        beyond = 10 + (CARD // 2 - peak_of(small)) // MIB + 6
        large = prober.probe(beyond)

    budget = prober.budgets[0].budget
    assert budget == CARD * TARGET
    assert (small.verdict, large.verdict) == (Verdict.FITS, Verdict.OVER)
    assert peak_of(small) <= budget < peak_of(large)
    assert peak_of(large) - peak_of(small) == pytest.approx((beyond - 10) * MIB, abs=4 * MIB)


def test_what_is_resident_is_told_apart_from_what_grows(tmp_path: Path) -> None:
    """The search's first slope rests on it."""
    with prober_of(tmp_path, toy(fixed=40 * MIB)) as prober:
        trial = prober.probe(30)

    assert trial.static_bytes is not None
    assert trial.activation_peak is not None
    assert trial.activation_peak - trial.static_bytes == pytest.approx(30 * MIB, abs=2 * MIB)
    assert trial.static_bytes == pytest.approx(40 * MIB, abs=2 * MIB)


def test_one_group_of_workers_serves_many_sizes(tmp_path: Path) -> None:
    """A peak of an earlier and larger size is not the next one's."""
    with prober_of(tmp_path, toy()) as prober:
        first = prober.probe(10)
        (worker,) = workers_of(os.getpid())
        prober.probe(80)
        again = prober.probe(10)
        workers = workers_of(os.getpid())

    assert again.peak == pytest.approx(peak_of(first), abs=2 * MIB)
    assert workers == [worker]


def test_a_refused_allocation_is_out_of_memory_and_the_next_size_gets_a_fresh_worker(
    tmp_path: Path,
) -> None:
    """The card refuses what is beyond it; the worker that met this is not used again."""
    with prober_of(tmp_path, toy(), target=1.0) as prober:
        refused = prober.probe(400)
        after = workers_of(os.getpid())
        fits = prober.probe(10)

    assert (refused.verdict, refused.peak) == (Verdict.OOM, None)
    assert "Cannot allocate memory" in (refused.reason or "")
    assert after == []
    assert fits.verdict is Verdict.FITS


def test_beyond_the_guards_limit_a_workers_own_allocation_fails(tmp_path: Path) -> None:
    """Long before the card is full: others may want what is left of it."""
    with prober_of(tmp_path, toy()) as prober:
        stopped = prober.probe(150)
        fits = prober.probe(10)

    assert (stopped.verdict, stopped.peak, fits.verdict) == (Verdict.OVER, None, Verdict.FITS)
    assert (stopped.reason or "").startswith("stopped at the hard limit: ")


def test_a_reading_past_the_hard_limit_stops_the_probe(tmp_path: Path) -> None:
    """What an allocator's limit cannot see, the meters do; the worker has not ended by itself."""
    settings = toy(beside=190 * MIB, how="hang", at=3)
    with prober_of(tmp_path, settings) as prober:
        stopped = prober.probe(3)
        left = workers_of(os.getpid())

    assert stopped.verdict is Verdict.OVER
    assert stopped.reason is not None
    assert stopped.reason.startswith("stopped at ")
    assert stopped.reason.endswith(" on emulated card, past the hard limit of 141 MiB")
    assert left == []


def test_a_memory_error_is_out_of_memory(tmp_path: Path) -> None:
    """Python's own, which says nothing but its name."""
    with prober_of(tmp_path, toy(how="memory error"), target=1.0) as prober:
        trial = prober.probe(5)

    assert (trial.verdict, trial.reason) == (Verdict.OOM, "MemoryError")


@pytest.mark.parametrize(
    ("how", "what"),
    [("kill", "was killed (SIGKILL)"), ("crash", "crashed (ValueError: the toy broke)")],
)
def test_what_ends_a_worker_once_is_tried_once_more(how: str, what: str, tmp_path: Path) -> None:
    """Someone else may have sent the signal. The notice is one line, however many the error has."""
    events: list[object] = []
    settings = toy(how=how, once=tmp_path / "once")
    with prober_of(tmp_path, settings, emit=events.append) as prober:
        trial = prober.probe(5)

    assert trial.verdict is Verdict.FITS
    assert notices(events) == [f"probe 5: the worker {what}; trying once more"]


def test_where_the_kernel_kills_large_sizes_the_search_ends_in_one_that_fitted(
    tmp_path: Path,
) -> None:
    """Killed twice is out of memory, even where no counter tells of the kernel's killer."""
    with prober_of(tmp_path, toy(how="kill", at=7)) as prober:
        outcome = tune(prober, ceiling=lambda workload_info: 64, emit=lambda event: None)

    assert outcome.answer is not None
    assert outcome.answer.size == 6
    failed = [trial for trial in outcome.trials if trial.size >= 7]
    assert {(trial.verdict, trial.reason) for trial in failed} == {
        (Verdict.OOM, "was killed (SIGKILL)")
    }


def test_a_kill_that_the_kernel_counts_is_out_of_memory_at_once(tmp_path: Path) -> None:
    """No second try: it would be killed again, and something else of the user's might be."""
    events: list[object] = []
    host = Host(tmp_path)
    settings = toy(how="kill", oom_counter=host.counter)
    with prober_of(tmp_path, settings, host=host, emit=events.append) as prober:
        trial = prober.probe(5)

    assert trial.verdict is Verdict.OOM
    assert trial.reason == "host memory: the kernel killed the worker"
    assert notices(events) == []


def test_workers_are_stopped_before_the_host_runs_out(tmp_path: Path) -> None:
    """The kernel would choose a victim itself, and not always ours."""
    host = Host(tmp_path)
    with prober_of(tmp_path, toy(how="hang"), host=host) as prober:
        prober.open()
        host.set_free(GIB)

        trial = prober.probe(5)

        left = workers_of(os.getpid())

    assert trial.verdict is Verdict.OOM
    assert trial.reason == "host memory ran out, the workers were stopped"
    assert left == []


def test_above_the_share_of_host_memory_a_size_is_over(tmp_path: Path) -> None:
    """--target-ram holds whatever the device has free."""
    host = Host(tmp_path)
    with prober_of(tmp_path, toy(), host=host) as prober:
        prober.open()
        host.set_free(10 * GIB)

        trial = prober.probe(5)

    assert trial.verdict is Verdict.OVER
    assert trial.reason == "host memory: 54.0 GiB in use, 51.2 GiB allowed"


@pytest.mark.parametrize(
    ("how", "silence", "what"),
    [
        ("crash", 60.0, "crashed (ValueError: the toy broke)"),
        ("quit", 60.0, "died (exit code 0)"),
        ("hang", 2.0, "was silent for 2 s"),
    ],
)
def test_an_ending_twice_that_says_nothing_of_memory_is_an_error(
    how: str, silence: float, what: str, tmp_path: Path
) -> None:
    """A bug in the step must not look like a size that is too large."""
    with (
        prober_of(tmp_path, toy(how=how), silence=silence) as prober,
        pytest.raises(WorkerError) as caught,
    ):
        prober.probe(5)

    log = tmp_path / "log"
    assert str(caught.value) == f"the worker {what} at micro-batch 5, twice; its log is {log}"
    assert ("ValueError: the toy broke" in log.read_text()) == (how == "crash")
    assert workers_of(os.getpid()) == []


def test_workers_that_do_nothing_are_ended_long_before_their_time(tmp_path: Path) -> None:
    """A hang costs no processor: one that waits in a collective for ever is told from one at work."""
    settings = toy(how="hang", once=tmp_path / "once")
    with prober_of(tmp_path, settings, idle=2.0) as prober:
        trial = prober.probe(5)

    assert trial.verdict is Verdict.FITS


def test_a_crash_above_a_size_that_ran_is_a_limit_of_size(tmp_path: Path) -> None:
    """As of kernels that take no batch of 65,536: smaller ones are searched on."""
    with prober_of(tmp_path, toy(how="crash", at=30)) as prober:
        outcome = tune(prober, ceiling=lambda workload_info: 90, emit=lambda event: None)

    assert outcome.answer is not None
    assert 25 <= outcome.answer.size < 30
    reasons = {trial.reason for trial in outcome.trials if trial.verdict is not Verdict.FITS}
    assert reasons == {"size limit: ValueError: the toy broke"}


def test_a_worker_that_holds_more_than_at_first_is_replaced(tmp_path: Path) -> None:
    """What it would show of the next size would not be a fresh one's."""
    with prober_of(tmp_path, toy(leak=4 * MIB)) as prober:
        first = prober.probe(5)
        (before,) = workers_of(os.getpid())
        prober.probe(5)
        prober.data_wait(5, loaders=0, busy=0.0)
        (kept,) = workers_of(os.getpid())
        again = prober.probe(5)
        (after,) = workers_of(os.getpid())

    assert before.pid == kept.pid  # what else is asked of it needs no fresh one
    assert before.pid != after.pid
    # three steps leak twice that
    assert again.static_bytes == pytest.approx(first.static_bytes, abs=6 * MIB)


def test_the_evaluation_batch_holds_the_target_too(tmp_path: Path) -> None:
    """It is probed forward alone, and is no smaller than the micro-batch, which has run forward."""
    with prober_of(tmp_path, toy()) as prober:
        trained, evaluated = prober.probe(40), prober.probe(40, "evaluate")
        size = tune_evaluation(prober, trained)
        largest = prober.probe(size, "evaluate")

    assert peak_of(trained) - peak_of(evaluated) == pytest.approx(20 * MIB, abs=2 * MIB)
    assert size >= 40
    assert peak_of(largest) <= CARD * TARGET


def test_of_unequal_micro_batches_the_evaluation_batch_is_no_smaller_than_the_smallest(
    tmp_path: Path,
) -> None:
    """The largest ran on its own card alone: it says nothing about the others."""
    with prober_of(tmp_path, toy(per_size=10 * MIB)) as prober:
        trained = replace(prober.probe(2), size=400, sizes=(400, 2))
        size = tune_evaluation(prober, trained)

    assert 2 <= size <= 8


@pytest.mark.parametrize("building", [True, False], ids=["building", "probing"])
def test_what_a_worker_refuses_is_told_in_its_own_words(building: bool, tmp_path: Path) -> None:
    """It is the user's to fix, whenever it is found: no second try, no log to read."""
    settings = toy(how="refuse", building=building)
    with prober_of(tmp_path, settings) as prober, pytest.raises(ChatlmError) as caught:
        prober.probe(5)

    assert (caught.value.what, caught.value.hint) == ("no such toy", "use another")
    assert workers_of(os.getpid()) == []


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crash", "the worker crashed (ValueError: the toy broke) while it built the workload; "),
        ("kill", "the worker was killed (SIGKILL) while it built the workload; "),
        ("memory error", "the model and its optimizer alone do not fit: MemoryError; "),
    ],
)
def test_a_workload_that_cannot_be_built_is_an_error(
    how: str, message: str, tmp_path: Path
) -> None:
    """There is no size to try."""
    with (
        prober_of(tmp_path, toy(how=how, building=True)) as prober,
        pytest.raises(ChatlmError) as caught,
    ):
        prober.open()

    assert str(caught.value).startswith(message)


def test_where_others_hold_the_target_no_worker_starts(tmp_path: Path) -> None:
    """There is nothing to measure."""
    with (
        prober_of(tmp_path, toy(), card=0) as prober,
        pytest.raises(DeviceError, match="the whole target of 50 % already"),
    ):
        prober.open()

    assert not (tmp_path / "log").exists()


def test_the_largest_size_that_fits_is_found(tmp_path: Path) -> None:
    """By the peaks that were measured: it ran, it fits, and little of the budget is left."""
    with prober_of(tmp_path, toy()) as prober:
        outcome = tune(prober, ceiling=lambda workload_info: 1000, emit=lambda event: None)

    assert outcome.answer is not None
    assert outcome.answer.verdict is Verdict.FITS
    assert 0.97 * CARD * TARGET < peak_of(outcome.answer) <= CARD * TARGET
    assert not outcome.interrupted


def test_what_fails_after_the_search_costs_no_answer(tmp_path: Path) -> None:
    """The evaluation batch is unknown then, and why is said."""
    events: list[object] = []

    def fails(trial: Trial) -> Extras:
        raise DeviceError("the meters have not answered")

    with prober_of(tmp_path, toy(), emit=events.append) as prober:
        outcome = tune(prober, ceiling=lambda workload_info: 10, after=fails, emit=events.append)

    assert outcome.answer is not None
    assert (outcome.answer.size, outcome.extras) == (10, Extras())
    assert "evaluation and loaders stay as they were: the meters have not answered" in notices(
        events
    )


@pytest.mark.parametrize(("probes", "found"), [(1, True), (0, False)])
def test_an_interrupted_search_keeps_the_best_so_far(
    probes: int, found: bool, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of a probe, which is then no trial."""
    left = probes

    def interrupt(event: object) -> None:
        nonlocal left
        if isinstance(event, ProbeStarted):
            if left == 0:
                signal.raise_signal(signal.SIGINT)
            left -= 1

    with prober_of(tmp_path, toy()) as prober:
        outcome = tune(prober, ceiling=lambda workload_info: 1000, emit=interrupt)

    assert outcome.interrupted
    assert len(outcome.trials) == probes
    assert outcome.answer == max(
        (t for t in outcome.trials if t.verdict is Verdict.FITS),
        key=lambda t: t.size,
        default=None,
    )
    assert (outcome.answer is not None) == found
    assert workers_of(os.getpid()) == []


def test_a_closed_prober_leaves_no_worker(tmp_path: Path) -> None:
    """Nor one that is in the middle of a step."""
    with prober_of(tmp_path, toy()) as prober:
        prober.probe(3)
        workers = workers_of(os.getpid())

    assert len(workers) == 1
    assert still_running(workers) == []


SUPERVISOR = """
import sys
from pathlib import Path
from tests.support.probers import prober_of
from tests.support.toy_workload import toy
folder = Path(sys.argv[1])
with prober_of(folder, toy(how="hang", at=int(sys.argv[2]))) as prober:
    prober.probe(1)
    print("probed", flush=True)
    sys.stdin.read() if sys.argv[2] == "9" else prober.probe(2)
"""


@pytest.mark.parametrize("at", [9, 2], ids=["idle", "in a step"])
def test_workers_end_with_their_supervisor(at: int, tmp_path: Path) -> None:
    """However it dies: no orphan holds a device."""

    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), str(at)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with supervisor:
        assert supervisor.stdout is not None
        said = supervisor.stdout.readline()
        workers = workers_of(supervisor.pid)

        supervisor.kill()

    assert (said, len(workers)) == (b"probed\n", 1)
    assert still_running(workers) == []


def test_of_several_ranks_the_killed_one_explains_the_crash_of_the_others(tmp_path: Path) -> None:
    """A rank that is left alone crashes in its next collective: that is not the cause.

    Here the supervisor hears of both at once.
    """
    events: list[object] = []
    after = tmp_path / "after"
    settings = toy(how="kill", victim=1, once=tmp_path / "once", after=after)

    def look_away(event: object) -> None:
        events.append(event)
        if isinstance(event, ReadingTaken) and is_probing and not after.exists():
            after.touch()
            assert wait_until(lambda: not workers_of(os.getpid()))

    is_probing = False
    with prober_of(tmp_path, settings, world_size=2, emit=look_away) as prober:
        prober.open()
        is_probing = True

        trial = prober.probe(5)

        workers = workers_of(os.getpid())

    assert trial.verdict is Verdict.FITS
    assert notices(events) == ["probe 5: the worker was killed (SIGKILL); trying once more"]
    assert len(workers) == len(trial.device_peaks) == 2
    assert still_running(workers) == []
