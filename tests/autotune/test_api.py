"""The tuner in somebody else's program: its own process, and workers."""

import mmap
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from autotune import Found, find_micro_batch
from autotune.devices.allocator import HostMemory
from autotune.devices.current import OwnDevice, card_of
from autotune.devices.group import GpuDevices
from autotune.devices.host import HostMeter
from autotune.devices.nvml import Nvml
from autotune.devices.processes import anonymous, trim
from autotune.errors import ChatlmError, DeviceError, NothingFits, UsageError, WorkerError
from autotune.events import Emit, ProbeEnded, ProbeStarted, TuningEnded, TuningStarted
from autotune.verdict import Verdict
from tests.support.fake_nvml import FakeDriver, FakeGpu
from tests.support.processes import each_within, printed_by, workers_of
from tests.support.toy_workload import MIB, PATH, ROOT, allocate, toy

DOCUMENT = ROOT / "docs" / "library.md"
nothing_hangs = each_within(300)


@pytest.fixture
def card() -> int:
    """Bytes of a card of which half is what this process holds now and 100 MiB more."""
    trim()
    return 2 * (anonymous() + 100 * MIB)


def step(size: int) -> None:
    """Holds a MiB a sample, in pages of their own."""
    allocate(size * MIB).close()


def failing_from(at: int, error: Callable[[], BaseException]) -> Callable[[int], None]:
    def step(size: int) -> None:
        if size >= at:
            raise error()

    return step


def sizes(found: Found, *verdicts: Verdict) -> list[int]:
    return [trial.size for trial in found.trials if trial.verdict in verdicts]


def test_the_answer_is_the_largest_size_that_ran_and_fits(card: int) -> None:
    """And its figures are its own trial's."""
    found = find_micro_batch(step, ceiling=512, target=0.5, vram_limit=card)

    (trial,) = [trial for trial in found.trials if trial.size == found.size]
    assert 85 <= found.size <= 100
    assert found.size == max(sizes(found, Verdict.FITS))
    assert found.peak == trial.peak
    assert found.peak <= found.budget == card // 2
    assert found.peak - found.fixed == pytest.approx(found.size * MIB, abs=4 * MIB)


def test_the_ceiling_is_the_answer_where_it_fits(card: int) -> None:
    """No larger size is tried."""
    found = find_micro_batch(step, ceiling=20, target=0.5, vram_limit=card)

    assert found.size == max(trial.size for trial in found.trials) == 20


def test_what_the_first_step_leaves_behind_is_resident_in_every_probe(card: int) -> None:
    """An optimizer's state, for one: without it the first probe would read too little."""
    state: list[mmap.mmap] = []

    def step_with_state(size: int) -> None:
        state.extend([] if state else [allocate(40 * MIB)])
        step(size)

    before = anonymous()
    found = find_micro_batch(step_with_state, ceiling=512, target=0.5, vram_limit=card)

    assert 45 <= found.size <= 60
    assert all(
        trial.static_bytes is not None
        and trial.static_bytes - before == pytest.approx(40 * MIB, abs=4 * MIB)
        for trial in found.trials
    )


@pytest.mark.parametrize(
    "error",
    [
        lambda: RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be reported late"
        ),
        lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        lambda: type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to"),
        MemoryError,
    ],
    ids=["async", "cublas", "torch", "python"],
)
def test_out_of_memory_in_any_words_is_a_size_that_does_not_fit(
    error: Callable[[], BaseException], card: int
) -> None:
    """The search goes on below it."""
    found = find_micro_batch(failing_from(7, error), ceiling=64, target=0.5, vram_limit=card)

    assert found.size == 6
    assert sizes(found, Verdict.OVER, Verdict.OOM)


def test_an_allocation_past_the_margin_is_refused_and_the_process_goes_on(card: int) -> None:
    """Nobody else is harmed by a size that is far too large."""
    found = find_micro_batch(step, ceiling=4000, target=0.5, vram_limit=card, guess=3000)

    first = found.trials[0]
    assert (first.size, first.verdict, first.peak) == (3000, Verdict.OVER, None)
    assert first.reason == "stopped at the hard limit: [Errno 12] Cannot allocate memory"
    assert 85 <= found.size <= 100


def test_a_step_that_failed_holds_no_memory_even_where_its_error_is_kept(card: int) -> None:
    """Frames hold locals; a logger, or a debugger, may hold the frames."""
    kept: list[Exception] = []

    def keeps_its_error(size: int) -> None:
        batch = allocate(size * MIB)
        if size > 10:
            kept.append(RuntimeError("CUDA error: out of memory"))
            raise kept[-1]
        batch.close()

    before = anonymous()
    found = find_micro_batch(keeps_its_error, ceiling=64, target=0.5, vram_limit=card, guess=60)

    assert kept
    assert found.size == 10
    assert anonymous() - before < 8 * MIB


def test_any_other_error_passes_through_as_it_is(card: int) -> None:
    """A bug in the step is the caller's to see, from the line that raised it."""
    bug = ValueError("shapes do not match")

    with pytest.raises(ValueError, match="shapes") as caught:
        find_micro_batch(failing_from(2, lambda: bug), ceiling=64, target=0.5, vram_limit=card)

    assert caught.value is bug
    assert bug.__cause__ is None


@pytest.mark.parametrize("fails", [False, True])
def test_a_limit_of_the_callers_own_is_back_afterwards(fails: bool, card: int) -> None:
    """However the search ends."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    own = (64 * 2**30, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, own)
    run = failing_from(2, KeyboardInterrupt) if fails else step

    try:
        with pytest.raises(KeyboardInterrupt) if fails else nullcontext():
            find_micro_batch(run, ceiling=4000, target=0.5, vram_limit=card)
        after = resource.getrlimit(resource.RLIMIT_DATA)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)

    assert after == own


def test_where_nothing_fits_the_error_has_the_numbers(card: int) -> None:
    """What it peaked at, what was resident, and what it was held against."""

    def heavy(size: int) -> None:
        step(102 + size)

    with pytest.raises(NothingFits) as caught:
        find_micro_batch(heavy, ceiling=64, target=0.5, vram_limit=card)

    assert re.fullmatch(
        r"nothing fits: micro-batch 1 peaks at \S+ [MG]iB, \S+ [MG]iB held before the step, and the "
        r"budget of .+ is \S+ [MG]iB, with 0 B of \S+ [MG]iB held by others; "
        r"use a smaller model or shorter samples, or a higher target",
        str(caught.value),
    )


def test_a_first_step_that_runs_out_of_memory_says_so(card: int) -> None:
    """There is nothing to measure yet."""
    with pytest.raises(NothingFits) as caught:
        find_micro_batch(failing_from(1, MemoryError), ceiling=64, target=0.5, vram_limit=card)

    assert str(caught.value) == (
        "the first step, at size 1, ran out of memory (MemoryError); use a smaller model or "
        "shorter samples, or a device with more memory"
    )


def test_only_sizes_that_divide_the_effective_batch_are_tried(card: int) -> None:
    """The answer is the largest of them that fits."""
    found = find_micro_batch(step, ceiling=240, target=0.5, vram_limit=card, divides=240)

    assert found.size == 80
    assert all(240 % trial.size == 0 for trial in found.trials)


@pytest.mark.parametrize(("ceiling", "first"), [(512, 70), (20, 20)])
def test_a_guess_is_tried_first_and_means_the_ceiling_above_it(
    ceiling: int, first: int, card: int
) -> None:
    """As one from an earlier tuning, which may have had a higher ceiling."""
    found = find_micro_batch(step, ceiling=ceiling, target=0.5, vram_limit=card, guess=70)

    assert found.trials[0].size == first
    assert max(trial.size for trial in found.trials) <= ceiling


def test_a_limit_may_be_written_as_people_do() -> None:
    """The card is that large."""
    found = find_micro_batch(lambda size: None, ceiling=2, target=0.5, vram_limit="4 GiB")

    assert found.budget == 2 * 2**30


def test_a_limit_that_host_memory_cannot_play_is_refused() -> None:
    """As the command refuses it: the host would run out of memory before the card."""
    with pytest.raises(DeviceError) as caught:
        find_micro_batch(lambda size: None, ceiling=2, target=0.5, vram_limit=2**50)

    assert caught.value.what.startswith("1 emulated card(s) of 1048576 GiB do not fit into ")


def test_without_a_limit_the_host_is_the_device() -> None:
    """What others hold of it is subtracted, what we hold is not."""
    found = find_micro_batch(step, ceiling=4, target=0.99)

    total = HostMeter().read().total
    (budget,) = found.trials[0].budgets
    assert budget.total == total
    assert found.budget == int(0.99 * total) - budget.others


def test_every_event_is_emitted_and_a_listener_that_fails_stops_nothing(
    card: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Silence is the default; a reader that left, as `head` does, is no failure to tell of."""
    events: list[object] = []

    def breaks(event: object) -> None:
        raise OSError("the terminal is gone")

    def leaves(event: object) -> None:
        raise BrokenPipeError

    found = find_micro_batch(step, ceiling=512, target=0.5, vram_limit=card, emit=events.append)
    find_micro_batch(step, ceiling=2, target=0.5, vram_limit=card, emit=leaves)
    quiet = caplog.text
    find_micro_batch(step, ceiling=2, target=0.5, vram_limit=card, emit=breaks)

    kinds = [type(event) for event in events]
    assert kinds[0] is TuningStarted
    assert kinds[1:-1] == [ProbeStarted, ProbeEnded] * len(found.trials)
    assert isinstance(events[-1], TuningEnded)
    assert events[-1].answer == found.size
    assert quiet == ""
    assert "a listener failed on TuningStarted and was dropped" in caplog.text


@pytest.mark.parametrize("path", ["nonsense", "", "json:", ":build", "a b:c"])
def test_a_workload_of_another_form_is_refused_before_a_worker_starts(path: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_micro_batch(path, ceiling=2, target=0.5)

    assert str(caught.value) == (
        f"workload {path!r} is not of the form module:function; write it like trainer.workload:build"
    )


def test_settings_that_cannot_be_meant_are_refused() -> None:
    """Before anything runs."""
    with pytest.raises(UsageError, match="target 60 is not a share"):
        find_micro_batch(step, ceiling=8, target=60)
    with pytest.raises(UsageError, match="ceiling 0 is out of range; give 1 or more"):
        find_micro_batch(step, ceiling=0, target=0.5)
    with pytest.raises(UsageError, match="divides 0 is out of range; give 1 or more"):
        find_micro_batch(step, ceiling=8, target=0.5, divides=0)
    with pytest.raises(UsageError, match="guess -1 is out of range; give 1 or more"):
        find_micro_batch(step, ceiling=8, target=0.5, guess=-1)
    with pytest.raises(UsageError, match="settings are for a workload that is named by its path"):
        find_micro_batch(step, ceiling=8, target=0.5, settings={})


@contextmanager
def fake_card(used: Callable[[], int]) -> Iterator[Nvml]:
    gpu = FakeGpu(uuid="GPU-1", total=16 * 2**30, used=used)
    with FakeDriver([gpu]), Nvml.open() as nvml:
        yield nvml


def test_on_a_card_others_are_subtracted_and_what_torch_does_not_see_is_added() -> None:
    """A library that loads in a step allocates beside the allocator."""
    unseen = 0
    memory = HostMemory()
    memory.device = "GPU-1"

    with fake_card(lambda: 2 * 2**30 + unseen + memory.resident()) as nvml:
        device = OwnDevice(memory, GpuDevices(nvml.devices), 0.5)
        before = device.peak() - memory.peak()
        unseen = 300 * MIB
        after = device.peak() - memory.peak()

    assert device.budget.others == pytest.approx(2 * 2**30, abs=4 * MIB)
    assert device.budget.budget == 8 * 2**30 - device.budget.others
    assert before < 4 * MIB
    assert after == pytest.approx(300 * MIB, abs=4 * MIB)


def test_the_card_is_found_by_its_uuid() -> None:
    """An index would be another card under CUDA_VISIBLE_DEVICES."""
    with fake_card(lambda: 0) as nvml:
        found = card_of(nvml, "GPU-1")
        with pytest.raises(DeviceError) as caught:
            card_of(nvml, "GPU-2")

    assert found is nvml.devices[0]
    assert str(caught.value) == (
        "the driver lists no card GPU-2, only GPU-1; check CUDA_VISIBLE_DEVICES"
    )


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files. The toy computes on the CPU, wherever the tests run."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_a_workload_in_a_worker_may_be_killed(logs: Path) -> None:
    """The result is of the same kind; the workers' log goes with them."""
    found = find_micro_batch(
        PATH, settings=toy(how="kill", at=7), ceiling=64, target=0.5, vram_limit="256MiB"
    )

    assert found.size == 6
    assert found.fixed < found.peak <= found.budget == 128 * MIB
    assert not list(logs.glob("autotune-*"))


def test_a_worker_that_fails_leaves_the_log_that_its_error_names(logs: Path) -> None:
    """There is the traceback."""
    with pytest.raises(WorkerError) as caught:
        find_micro_batch(PATH, settings=toy(how="crash"), ceiling=64, target=0.5)

    (log,) = logs.glob("autotune-*/workers.log")
    assert str(caught.value).endswith(f"its log is {log}")
    assert "ValueError: the toy broke" in log.read_text()


def interrupts(event: object) -> None:
    if isinstance(event, ProbeEnded):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("settings", "emit", "end"),
    [
        (toy(), interrupts, KeyboardInterrupt),
        (toy(fixed=200 * MIB), None, NothingFits),
        (toy(per_size=200 * MIB), None, NothingFits),
        (toy(how="refuse"), None, ChatlmError),
    ],
    ids=["interrupted", "model too large", "step too large", "refused"],
)
def test_a_log_that_no_error_names_goes_however_it_ends(
    settings: dict[str, Any], emit: Emit | None, end: type[BaseException], logs: Path
) -> None:
    """Nobody would find it."""
    with pytest.raises(end):
        find_micro_batch(
            PATH, settings=settings, ceiling=8, target=0.5, vram_limit="256MiB", emit=emit
        )

    assert not list(logs.glob("autotune-*"))


def test_in_workers_the_answer_fits_beside_a_tenant_who_came_in_mid_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes that had fitted before are held to the new budget."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    came = tmp_path / "came"

    def used() -> int:
        held = [anonymous(worker.pid) for worker in workers_of(os.getpid())]
        return 700 * MIB * came.exists() + sum(amount + 10 * MIB for amount in held if amount)

    gpu = FakeGpu(uuid="GPU-1", total=2048 * MIB, used=used)
    settings = toy(how="touch", once=came, at=601, device="GPU-1")
    with FakeDriver([gpu]):
        found = find_micro_batch(PATH, settings=settings, ceiling=3000, target=0.5, guess=600)

    assert came.exists()
    assert found.budget == pytest.approx(324 * MIB, abs=8 * MIB)
    assert 0.95 * found.budget < found.peak <= found.budget
    assert (found.trials[0].size, found.trials[0].verdict) == (600, Verdict.OVER)


def test_importing_the_package_loads_next_to_nothing() -> None:
    """Every command imports it; the library itself loads no torch either."""
    script = (
        "import sys, autotune\n"
        "assert not {'torch', 'pynvml', 'autotune.api'} & set(sys.modules)\n"
        "from autotune import Found, find_micro_batch\n"
        "assert 'torch' not in sys.modules\n"
        "try:\n    autotune.nothing\nexcept AttributeError as error:\n    print(error)\n"
    )

    assert printed_by(script) == "module 'autotune' has no attribute 'nothing'\n"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(examples())))
def test_every_example_of_the_documentation_runs(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh folder, where those that begin with a file's name lie as that file."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads that spin while they wait are no help here
    for example in examples():
        if name := re.match(r"# (\w+\.py)\n", example):
            (tmp_path / name[1]).write_text(example)
    script = tmp_path / "example.py"
    script.write_text(examples()[number])

    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_on_a_real_card_the_answer_holds_the_budget_and_the_limit_is_gone() -> None:
    """A tenant's share is the driver's word, the peak is torch's."""
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU with a CUDA build of torch")
    model = torch.nn.Linear(4096, 4096, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters())

    def real_step(size: int) -> None:
        model(torch.randn(1024 * size, 4096, device="cuda")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    found = find_micro_batch(real_step, ceiling=4096, target=0.5, vram_limit="8GiB")

    real_step(found.size)
    assert found.peak <= found.budget
    assert found.peak > 0.9 * found.budget
    assert torch.cuda.get_per_process_memory_fraction() == 1.0
