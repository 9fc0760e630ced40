"""Which devices a run gets, on made-up drivers and none."""

from typing import Literal

import pytest

from autotune.choices import DeviceKind
from autotune.devices.group import EmulatedDevices, GpuDevices, HostDevice
from autotune.devices.host import HostMeter
from autotune.devices.selection import DeviceSelection, open_devices
from autotune.errors import DeviceError, UsageError
from tests.support.fake_nvml import FakeDriver, FakeGpu

GIB = 2**30
Device = Literal["auto", DeviceKind]
BOTH: tuple[Device, ...] = ("auto", "cuda")


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def gpus(count: int) -> list[FakeGpu]:
    return [FakeGpu(name=f"Card {i}", uuid=f"GPU-{i}") for i in range(count)]


def opened(
    device: Device,
    cards: int | None,
    *,
    num_processes: int | None = None,
    vram_limit: int | None = None,
) -> DeviceSelection:
    """The devices on a machine with so many GPUs; with None the driver does not start."""
    driver = FakeDriver(gpus(cards or 0), fails={"nvmlInitWithFlags": 9} if cards is None else {})
    with (
        driver,
        open_devices(
            device, num_processes=num_processes, vram_limit=vram_limit, host=HostMeter()
        ) as devices,
    ):
        return devices


def error_of(device: Device, cards: int | None, num_processes: int | None = None) -> str:
    with pytest.raises(DeviceError) as caught:
        opened(device, cards, num_processes=num_processes)
    return str(caught.value)


@pytest.mark.parametrize("device", BOTH)
@pytest.mark.parametrize(("num_processes", "world_size"), [(None, 3), (2, 2)])
def test_every_card_that_is_shown_gets_a_process_unless_fewer_are_wanted(
    device: Device, num_processes: int | None, world_size: int
) -> None:
    """Fewer take the first, in CUDA's order; nothing needs to be said about it."""
    devices = opened(device, 3, num_processes=num_processes)

    assert isinstance(devices.group, GpuDevices)
    assert (devices.world_size, devices.driver, devices.notice) == (world_size, "600.10", None)
    assert devices.shared == ("GPU-0", "GPU-1", "GPU-2")[:world_size]


@pytest.mark.parametrize("device", BOTH)
def test_more_processes_than_cards_are_refused(device: Device) -> None:
    """With both numbers, and what would do."""
    assert error_of(device, 1, 2) == "2 processes, but 1 GPU; use --num-processes 1 or fewer"
    assert error_of(device, 2, 4) == "4 processes, but 2 GPUs; use --num-processes 2 or fewer"


def test_a_card_that_is_hidden_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process could not use it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    assert opened("auto", 3).world_size == 1
    assert error_of("auto", 3, 2).startswith("2 processes, but 1 GPU;")


HIDDEN = "CUDA_VISIBLE_DEVICES hides every card"
NONE_SHOWN = "the driver shows no card; check CUDA_VISIBLE_DEVICES, or use --device cpu"
NO_DRIVER = "no NVIDIA driver answers (Driver Not Loaded)"


@pytest.mark.parametrize(
    ("cards", "shown", "why", "refusal"),
    [
        (2, "", HIDDEN, NONE_SHOWN),
        (2, "-1", HIDDEN, NONE_SHOWN),
        (0, "0", "there is no card", NONE_SHOWN),  # the environment is not to blame
        (None, "0", NO_DRIVER, f"{NO_DRIVER}; use --device cpu, or check nvidia-smi"),
    ],
)
def test_without_a_card_auto_takes_the_cpu_and_says_why_and_cuda_is_refused(
    monkeypatch: pytest.MonkeyPatch, cards: int | None, shown: str, why: str, refusal: str
) -> None:
    """In one line each."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)

    devices = opened("auto", cards)

    assert isinstance(devices.group, HostDevice)
    assert devices.world_size == 1
    assert devices.notice == f"{why}: on the CPU, against host RAM"
    assert error_of("cuda", cards) == refusal


def test_the_cpu_never_asks_for_a_driver() -> None:
    """It takes as many processes as are wanted."""
    driver = FakeDriver(gpus(1))

    with driver, open_devices("cpu", num_processes=3, vram_limit=None, host=HostMeter()) as devices:
        opened_driver = driver.opened

    assert opened_driver == 0
    assert devices.world_size == 3
    assert devices.notice == "on the CPU, against host RAM"


def test_the_driver_is_closed_when_the_block_ends() -> None:
    """Also by an error."""
    driver = FakeDriver(gpus(1))

    with driver:
        with open_devices("cuda", num_processes=None, vram_limit=None, host=HostMeter()):
            within = driver.opened
        with (
            pytest.raises(DeviceError),
            open_devices("cuda", num_processes=9, vram_limit=None, host=HostMeter()),
        ):
            pass
        after = driver.opened

    assert (within, after) == (1, 0)


def test_a_limit_on_the_cpu_plays_a_card() -> None:
    """One for each process."""
    devices = opened("cpu", None, num_processes=2, vram_limit=GIB // 4)

    assert isinstance(devices.group, EmulatedDevices)
    assert devices.notice == "on the CPU, which emulates a card of 256 MiB"


def test_cards_that_host_memory_cannot_play_are_refused() -> None:
    """All of them have to fit in it."""
    with pytest.raises(DeviceError) as caught:
        opened("cpu", None, num_processes=2, vram_limit=2**50)

    assert str(caught.value).startswith("2 emulated card(s) of 1048576 GiB do not fit into ")
    assert str(caught.value).endswith(" of host RAM; use a smaller --vram-limit")


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_no_processes_are_refused(device: Device, count: int) -> None:
    """On whatever device."""
    with pytest.raises(UsageError) as caught:
        opened(device, 1, num_processes=count)

    assert str(caught.value) == f"--num-processes {count} is out of range; give 1 or more"


def test_more_processes_than_any_run_has_are_refused() -> None:
    """Before a process is started for each."""
    with pytest.raises(UsageError) as caught:
        opened("cpu", 1, num_processes=10**9)

    assert str(caught.value) == "--num-processes 1000000000 is out of range; give 65,536 or less"


def test_a_card_that_cannot_be_read_is_named_before_a_worker_starts() -> None:
    """And every driver's error, whatever language it is in, is a reason to take the CPU."""
    driver = FakeDriver([*gpus(1), FakeGpu(name="Odd", uuid="GPU-9", total=0)])
    unknown = FakeDriver(gpus(1), fails={"nvmlInitWithFlags": 700})

    with (
        driver,
        open_devices("auto", num_processes=None, vram_limit=None, host=HostMeter()) as two,
        pytest.raises(DeviceError, match=r"GPU 1 \(Odd\) reports 0 free of 0 bytes"),
    ):
        two.group.read_baseline()
    with unknown, open_devices("auto", num_processes=None, vram_limit=None, host=HostMeter()) as on:
        notice = on.notice

    assert notice == (r"no NVIDIA driver answers ('Fehler \\xfc\n'): on the CPU, against host RAM")
