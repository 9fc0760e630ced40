"""Which devices a run gets, on made-up drivers and none."""

from collections.abc import Sequence
from typing import Literal

import pytest

from autotune.choices import DeviceKind
from autotune.devices.group import EmulatedDevices, GpuDevices, HostDevice
from autotune.devices.host import HostMeter
from autotune.devices.selection import DeviceSelection, open_devices
from autotune.errors import DeviceError, UsageError
from tests.support.fake_nvml import FakeDriver, FakeGpu

GIB = 2**30


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def gpus(count: int) -> list[FakeGpu]:
    return [FakeGpu(name=f"Card {i}", uuid=f"GPU-{i}") for i in range(count)]


def opened(
    device: Literal["auto", DeviceKind],
    there: Sequence[FakeGpu] | None,
    *,
    num_processes: int | None = None,
    vram_limit: int | None = None,
) -> DeviceSelection:
    """The devices on a machine with those GPUs; with None the driver does not start."""
    driver = FakeDriver(there or (), fails={} if there is not None else {"nvmlInitWithFlags": 9})
    with (
        driver,
        open_devices(
            device, num_processes=num_processes, vram_limit=vram_limit, host=HostMeter()
        ) as devices,
    ):
        return devices


def error_of(
    device: Literal["auto", DeviceKind],
    there: Sequence[FakeGpu] | None,
    num_processes: int | None = None,
) -> str:
    with pytest.raises(DeviceError) as caught:
        opened(device, there, num_processes=num_processes)
    return str(caught.value)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_every_card_that_is_shown_gets_a_process(device: Literal["auto", DeviceKind]) -> None:
    """And nothing needs to be said about it."""
    devices = opened(device, gpus(2))

    assert isinstance(devices.group, GpuDevices)
    assert (devices.world_size, devices.driver, devices.notice) == (2, "600.10", None)


def test_fewer_processes_take_the_first_cards() -> None:
    """In CUDA's order."""
    devices = opened("cuda", gpus(3), num_processes=2)

    assert isinstance(devices.group, GpuDevices)
    assert devices.world_size == 2


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_processes_than_cards_are_refused(device: Literal["auto", DeviceKind]) -> None:
    """With both numbers, and what would do."""
    assert error_of(device, gpus(1), 2) == "2 processes, but 1 GPU; use --num-processes 1 or fewer"
    assert error_of(device, gpus(2), 4) == "4 processes, but 2 GPUs; use --num-processes 2 or fewer"


def test_a_card_that_is_hidden_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process could not use it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    assert opened("auto", gpus(3)).world_size == 1
    assert error_of("auto", gpus(3), 2) == (
        "2 processes, but 1 GPU; use --num-processes 1 or fewer"
    )


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_with_every_card_hidden_auto_takes_the_cpu_and_says_why(
    monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    """`cuda` is refused instead."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)

    devices = opened("auto", gpus(2))
    message = error_of("cuda", gpus(2))

    assert isinstance(devices.group, HostDevice)
    assert devices.notice == ("CUDA_VISIBLE_DEVICES hides every card: on the CPU, against host RAM")
    assert message == "the driver shows no card; check CUDA_VISIBLE_DEVICES, or use --device cpu"


def test_a_driver_without_cards_is_not_blamed_on_the_environment() -> None:
    """A driver may be installed where no card is."""
    assert opened("auto", []).notice == "there is no card: on the CPU, against host RAM"


def test_without_a_driver_auto_takes_the_cpu_and_says_why() -> None:
    """In one line."""
    devices = opened("auto", None)

    assert isinstance(devices.group, HostDevice)
    assert devices.world_size == 1
    assert devices.notice == (
        "no NVIDIA driver answers (Driver Not Loaded): on the CPU, against host RAM"
    )


def test_without_a_driver_cuda_is_refused() -> None:
    """With the driver's own word for it."""
    assert error_of("cuda", None) == (
        "no NVIDIA driver answers (Driver Not Loaded); use --device cpu, or check nvidia-smi"
    )


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
    assert devices.notice == "on the CPU, which plays a card of 256 MiB"


def test_cards_that_host_memory_cannot_play_are_refused() -> None:
    """All of them have to fit in it."""
    with pytest.raises(DeviceError) as caught:
        opened("cpu", None, num_processes=2, vram_limit=2**50)

    assert str(caught.value).startswith("2 emulated card(s) of 1048576 GiB do not fit into ")
    assert str(caught.value).endswith(" of host RAM; use a smaller --vram-limit")


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("device", ["auto", "cuda", "cpu"])
def test_no_processes_are_refused(device: Literal["auto", DeviceKind], count: int) -> None:
    """On whatever device."""
    with pytest.raises(UsageError) as caught:
        opened(device, gpus(1), num_processes=count)

    assert str(caught.value) == f"--num-processes {count} is out of range; give 1 or more"
