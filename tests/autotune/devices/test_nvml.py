"""The driver, through the real binding on a made-up library."""

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.devices.nvml import NoDriver, Nvml, NvmlDevice, visible
from autotune.errors import DeviceError
from autotune.readings import DeviceReading
from tests.support.fake_nvml import FakeDriver, FakeGpu

GIB = 2**30
UUIDS = ("GPU-aa11", "GPU-aa22", "GPU-bb33")
MEMORY_V1, MEMORY_V2 = "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"

PROCESSES = "nvmlDeviceGetComputeRunningProcesses_v3"
LOST = (
    "is lost: it fell off the bus or stopped answering, and most often only a restart of the "
    "machine brings it back (dmesg shows why, as an Xid); until then, hide it with "
    "CUDA_VISIBLE_DEVICES"
)


def three() -> list[FakeGpu]:
    return [FakeGpu(uuid=uuid, name=f"Card {i}") for i, uuid in enumerate(UUIDS)]


def read_one(gpu: FakeGpu) -> DeviceReading:
    with FakeDriver([gpu]), Nvml.open() as nvml:
        return nvml.devices[0].read()


def error_of(gpu: FakeGpu) -> str:
    with pytest.raises(DeviceError) as caught:
        read_one(gpu)
    return str(caught.value)


def shown(environ: dict[str, str], gpus: list[FakeGpu]) -> list[str]:
    with FakeDriver(gpus), Nvml.open() as nvml:
        return [device.uuid for device in visible(nvml, environ)]


def test_a_reading_tells_what_the_driver_tells() -> None:
    """Bytes, a share, degrees and watts, whatever the driver's own units are."""
    gpu = FakeGpu(
        name="Card", uuid="GPU-1", total=20 * GIB, used=5 * GIB,
        utilization=73, temperature=61, power=215_500,
    )  # fmt: skip

    reading = read_one(gpu)

    assert reading == DeviceReading(
        device="GPU-1", name="Card", total=20 * GIB, used=5 * GIB,
        utilization=0.73, temperature=61.0, power=215.5,
    )  # fmt: skip


def test_the_driver_names_its_version_and_its_gpus_in_order() -> None:
    """Index, UUID and name are known without a reading."""
    with FakeDriver(three(), driver_version="580.65.06"), Nvml.open() as nvml:
        listed = [(device.index, device.uuid, device.name) for device in nvml.devices]

    assert nvml.driver_version == "580.65.06"
    assert listed == [
        (0, "GPU-aa11", "Card 0"),
        (1, "GPU-aa22", "Card 1"),
        (2, "GPU-bb33", "Card 2"),
    ]


@settings(deadline=None)
@given(
    total=st.integers(GIB, 200 * GIB),
    shares=st.tuples(st.floats(0, 0.1), st.floats(0, 0.9)),
)
def test_used_is_total_less_free_under_both_versions(
    total: int, shares: tuple[float, float]
) -> None:
    """The driver's reserve counts as used, also under version 2, which keeps it apart."""
    reserved, used = (int(total * share) for share in shares)

    v2, v1 = (
        read_one(FakeGpu(total=total, used=used, reserved=reserved, no_v2=no_v2))
        for no_v2 in (False, True)
    )

    assert v2.used == v1.used == used + reserved
    assert v2.total == v1.total == total


@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        pynvml.NVML_ERROR_UNKNOWN,
    ],
)
def test_the_memory_version_that_works_is_remembered(code: int) -> None:
    """Version 2 is asked for once where a driver does not know it, or errs on it as WSL's does."""
    gpu = FakeGpu(used=3 * GIB, fails={MEMORY_V2: code})

    with FakeDriver([gpu]), Nvml.open() as nvml:
        readings = [nvml.devices[0].read() for _ in range(3)]

    assert [reading.used for reading in readings] == [3 * GIB] * 3
    assert gpu.asked.count(MEMORY_V2) == 1
    assert gpu.asked.count(MEMORY_V1) == 3


def test_a_library_without_version_2_is_read_by_version_1() -> None:
    """An old library has no such symbol at all."""
    with FakeDriver([FakeGpu(used=GIB)], missing=[MEMORY_V2]), Nvml.open() as nvml:
        reading = nvml.devices[0].read()

    assert reading.used == GIB


def test_memory_is_read_each_time_and_the_rest_once_a_second() -> None:
    """Memory at 20 Hz must not cost the driver's other, slower questions."""
    now, held = 100.0, 0
    gpu = FakeGpu(used=lambda: held, utilization=10)

    with FakeDriver([gpu]), Nvml.open(clock=lambda: now) as nvml:
        first = nvml.devices[0].read()
        gpu.utilization, held, now = 90, GIB, 100.9
        second = nvml.devices[0].read()
        now = 101.0
        third = nvml.devices[0].read()

    assert [reading.used for reading in (first, second, third)] == [0, GIB, GIB]
    assert [reading.utilization for reading in (first, second, third)] == [0.1, 0.1, 0.9]


def test_no_driver_is_an_error_that_says_what_to_do() -> None:
    """The usual case on a laptop: the library is not there."""
    codes = {"nvmlInitWithFlags": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}

    with FakeDriver(fails=codes), pytest.raises(NoDriver) as caught:
        Nvml.open()

    assert str(caught.value) == (
        "no NVIDIA driver answers (NVML Shared Library Not Found); "
        "use --device cpu, or check nvidia-smi"
    )


def test_a_driver_that_starts_but_lists_nothing_is_let_go() -> None:
    """A failure between the start and the list leaves no driver open."""
    codes = {"nvmlDeviceGetCount_v2": pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH}

    with FakeDriver(fails=codes) as driver, pytest.raises(DeviceError) as caught:
        Nvml.open()

    assert "version mismatch" in str(caught.value)
    assert driver.opened == 0


def test_the_driver_is_held_open_until_closed() -> None:
    """Closing twice is closing once, and a reading after it is an error, not a number."""
    with FakeDriver([FakeGpu(name="Card")]) as driver:
        with Nvml.open() as nvml:
            held = driver.opened
        nvml.close()
        with pytest.raises(DeviceError) as caught:
            nvml.devices[0].read()

    assert (held, driver.opened) == (1, 0)
    assert str(caught.value) == (
        "GPU 0 (Card) does not report its memory (Uninitialized); check nvidia-smi"
    )


def test_a_driver_that_is_gone_can_be_closed() -> None:
    """The end of a run does not fail for a driver that was unloaded in between."""
    codes = {"nvmlShutdown": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}

    with FakeDriver([FakeGpu()], fails=codes):
        nvml = Nvml.open()
        nvml.close()

    assert len(nvml.devices) == 1


def test_one_bad_gpu_never_blanks_the_others() -> None:
    """It keeps its place, so that the indices of the others hold, and says why when read."""
    gpus = three()
    gpus[1].broken = True

    with FakeDriver(gpus), Nvml.open() as nvml:
        used = [nvml.devices[i].read().used for i in (0, 2)]
        bad = nvml.devices[1]
        with pytest.raises(DeviceError) as caught:
            bad.read()

    assert used == [0, 0]
    assert (bad.index, bad.uuid, bad.name) == (1, "GPU 1", "GPU 1")
    assert bad.slices() == ()
    assert str(caught.value) == f"GPU 1 {LOST}"


def test_a_gpu_lost_in_mid_run_is_an_error_with_the_reason_until_it_comes_back() -> None:
    """A lost GPU must not read as an empty one, nor take the others with it."""
    gpus = three()

    with FakeDriver(gpus), Nvml.open() as nvml:
        before = nvml.devices[0].read()
        gpus[0].broken = True
        with pytest.raises(DeviceError) as caught:
            nvml.devices[0].read()
        other = nvml.devices[1].read()
        gpus[0].broken = False
        after = nvml.devices[0].read()

    assert (before.device, other.device) == UUIDS[:2]
    assert str(caught.value) == f"GPU 0 (Card 0) {LOST}"
    assert after == before


def test_memory_that_this_user_may_not_read_is_an_error_that_says_so() -> None:
    """It is not tried by version 1: who may not read it, may not read it so either."""
    gpu = FakeGpu(name="Card", fails={MEMORY_V2: pynvml.NVML_ERROR_NO_PERMISSION})

    message = error_of(gpu)

    assert message == (
        "GPU 0 (Card) may not be read by this user (Insufficient Permissions); ask for access to "
        "/dev/nvidia*, or hide it with CUDA_VISIBLE_DEVICES"
    )
    assert MEMORY_V1 not in gpu.asked


@pytest.mark.parametrize(
    ("function", "figure", "code"),
    [
        ("nvmlDeviceGetUtilizationRates", "utilization", pynvml.NVML_ERROR_NOT_SUPPORTED),
        ("nvmlDeviceGetUtilizationRates", "utilization", pynvml.NVML_ERROR_NO_PERMISSION),
        ("nvmlDeviceGetTemperature", "temperature", pynvml.NVML_ERROR_UNKNOWN),
        ("nvmlDeviceGetPowerUsage", "power", pynvml.NVML_ERROR_NO_PERMISSION),
    ],
)
def test_one_figure_that_the_driver_does_not_give_is_none_and_hides_no_other(
    function: str, figure: str, code: int
) -> None:
    """Utilization under MIG, power on some laptops: neither is 0, and memory is read."""
    gpu = FakeGpu(used=GIB, fails={function: code})

    reading = read_one(gpu)

    figures = {name: getattr(reading, name) for name in ("utilization", "temperature", "power")}
    assert [name for name, value in figures.items() if value is None] == [figure]
    assert reading.used == GIB


def processes_of(gpu: FakeGpu, missing: tuple[str, ...] = ()) -> dict[int, int] | None:
    with FakeDriver([gpu], missing=missing), Nvml.open() as nvml:
        return nvml.devices[0].processes()


def test_processes_are_told_with_what_they_hold() -> None:
    """None at all is an answer too, and not the same as no answer."""
    assert processes_of(FakeGpu(processes={71: 3 * GIB, 72: GIB})) == {71: 3 * GIB, 72: GIB}
    assert processes_of(FakeGpu()) == {}


@pytest.mark.parametrize(
    ("gpu", "missing"),
    [
        (FakeGpu(fails={PROCESSES: pynvml.NVML_ERROR_NOT_SUPPORTED}), ()),
        (FakeGpu(fails={PROCESSES: pynvml.NVML_ERROR_NO_PERMISSION}), ()),
        (FakeGpu(fails={PROCESSES: pynvml.NVML_ERROR_GPU_IS_LOST}), ()),
        (FakeGpu(processes={71: GIB, 72: None}), ()),  # WSL2 says "not available", which is 2⁶⁴ - 1
        (FakeGpu(broken=True), ()),  # it has no handle to ask by
        (FakeGpu(), (PROCESSES,)),  # an old library has no such function
    ],
)
def test_processes_that_the_driver_does_not_tell_are_none(
    gpu: FakeGpu, missing: tuple[str, ...]
) -> None:
    """They are for diagnosis alone, so that nothing fails for them."""
    assert processes_of(gpu, missing) is None


def test_an_unknown_error_from_both_versions_is_an_error() -> None:
    """Falling back does not hide that neither version works, now or later."""
    unknown = pynvml.NVML_ERROR_UNKNOWN
    gpu = FakeGpu(fails={MEMORY_V2: unknown})

    with FakeDriver([gpu]), Nvml.open() as nvml:
        nvml.devices[0].read()
        gpu.fails = {MEMORY_V1: unknown, MEMORY_V2: unknown}
        with pytest.raises(DeviceError, match=r"\(Unknown Error\)"):
            nvml.devices[0].read()


def test_unified_memory_is_an_error_that_says_so() -> None:
    """GB10 and Jetson have no memory of their own to report (NeMo-RL#2203)."""
    message = error_of(FakeGpu(name="GB10", no_memory=True))

    assert message == (
        "GPU 0 (GB10) reports no memory of its own: it shares the host's (unified memory), "
        "so no VRAM target can be held on it; use --device cpu"
    )


@pytest.mark.parametrize(
    ("listed", "indices"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("0,2,-1,1", [0, 2]),
        ("0,3,1", [0]),
        ("0,,1", [0]),
        ("1,1", []),
        ("GPU-bb33", [2]),
        ("GPU-bb", [2]),
        ("GPU-bb33,GPU-aa1", [2, 0]),
        ("GPU-aa", []),
        ("GPU-bb,GPU-aa,GPU-aa11", [2]),
        ("GPU-bb,GPU-bb33", []),
        ("GPU-bb,1", [2]),
        ("1,GPU-bb", [1]),
        ("bb33", []),
        ("MIG-bb33", []),
    ],
)
def test_cuda_visible_devices_shows_what_cuda_shows(listed: str, indices: list[int]) -> None:
    """The rules are CUDA's; torch's own reading of the variable gives the same lists."""
    assert shown({"CUDA_VISIBLE_DEVICES": listed}, three()) == [UUIDS[i] for i in indices]


def test_without_the_variable_every_gpu_is_visible() -> None:
    """A broken one too: hiding it would shift the others."""
    gpus = three()
    gpus[0].broken = True

    assert shown({}, gpus) == ["GPU 0", *UUIDS[1:]]


@settings(deadline=None)
@given(st.text("0123,-GPU-ab ²x", max_size=12))
def test_any_text_shows_each_gpu_at_most_once(listed: str) -> None:
    """Whatever stands in the variable, the answer is a list of GPUs."""
    uuids = shown({"CUDA_VISIBLE_DEVICES": listed}, three())

    assert len(uuids) == len(set(uuids))
    assert set(uuids) <= set(UUIDS)


@pytest.mark.parametrize(
    ("listed", "uuids"),
    [
        ("MIG-c1", ["MIG-c1"]),
        ("MIG-d", ["MIG-d2"]),
        ("MIG-d2,MIG-c1", ["MIG-d2"]),
        ("MIG-", []),
        ("0", ["GPU-m"]),
    ],
)
def test_a_mig_slice_is_found_by_its_uuid(listed: str, uuids: list[str]) -> None:
    """Empty slots and broken tenants aside; CUDA shows one slice to a process, the first."""
    parts = (
        FakeGpu(uuid="MIG-c1"),
        None,
        FakeGpu(uuid="MIG-x", broken=True),
        FakeGpu(uuid="MIG-d2"),
    )
    no_mig = {"nvmlDeviceGetMaxMigDeviceCount": pynvml.NVML_ERROR_NOT_SUPPORTED}
    gpus = [FakeGpu(uuid="GPU-m", slices=parts), FakeGpu(uuid="GPU-n", fails=no_mig)]

    assert shown({"CUDA_VISIBLE_DEVICES": listed}, gpus) == uuids


def test_a_slice_is_read_like_a_gpu() -> None:
    """Its memory is its own; its index is its GPU's."""
    part = FakeGpu(uuid="MIG-c1", name="Card MIG 1g.5gb", total=5 * GIB, used=GIB)
    gpus = [FakeGpu(uuid="GPU-l"), FakeGpu(uuid="GPU-m", slices=(part,))]

    with FakeDriver(gpus), Nvml.open() as nvml:
        (device,) = nvml.devices[1].slices()
        reading = device.read()

    assert isinstance(device, NvmlDevice)
    assert (device.index, reading.device, reading.name) == (1, "MIG-c1", "Card MIG 1g.5gb")
    assert (reading.total, reading.used) == (5 * GIB, GIB)


CODES = sorted(
    {code for name, code in vars(pynvml).items() if name.startswith("NVML_ERROR_")} | {77, 700}
)
"""Every error that the binding knows, one that only the driver names, and one whose name is not UTF-8."""
ON_DRIVER = (
    "nvmlInitWithFlags", "nvmlSystemGetDriverVersion", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2",
    "nvmlShutdown",
)  # fmt: skip
ON_GPU = (
    "nvmlDeviceGetUUID", "nvmlDeviceGetName", MEMORY_V1, MEMORY_V2, "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetTemperature", "nvmlDeviceGetPowerUsage", PROCESSES, "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
)  # fmt: skip


def look(nvml: Nvml) -> list[str]:
    """What each device answers: its name, or its error."""
    said = []
    for device in nvml.devices:
        device.processes()
        device.slices()
        try:
            said.append(device.read().name)
        except DeviceError as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize("function", ON_GPU)
def test_no_error_of_one_gpu_at_any_moment_hides_another(function: str) -> None:
    """From the start on, or in between: each code of each question."""
    for code in set(CODES) - {0}:
        gpu = FakeGpu(name="Odd", slices=(FakeGpu(),), processes={1: 2})
        with FakeDriver([gpu, FakeGpu(name="Good")]):
            with Nvml.open() as nvml:
                gpu.fails = {function: code}
                later = look(nvml)
            with Nvml.open() as nvml:
                at_first = look(nvml)

        for odd, good in (later, at_first):
            assert good == "Good"
            assert odd in ("Odd", "GPU 0") or odd.startswith("GPU 0 ")
            assert odd.isprintable()


@pytest.mark.parametrize("function", ON_DRIVER)
def test_no_error_of_the_driver_is_anything_but_a_device_error(function: str) -> None:
    """Its version and its end are not needed."""
    for code in set(CODES) - {0}:
        said = ["Good"]
        with FakeDriver([FakeGpu(name="Good")], fails={function: code}):
            try:
                with Nvml.open() as nvml:
                    said = look(nvml)
            except DeviceError as error:
                said = [str(error)]

        is_needed = function not in ("nvmlSystemGetDriverVersion", "nvmlShutdown")
        assert (said == ["Good"]) is not is_needed
        assert said[0].isprintable()


def test_names_that_are_not_utf_8_or_steer_a_terminal_are_shown_as_code() -> None:
    """Of a card, a slice and the driver; a UUID is matched by what is left of it."""
    part = FakeGpu(uuid=b"MIG-\xff", name=b"\xfe")
    gpus = [
        FakeGpu(name=b"Quadro\xae", uuid=b"GPU-\xc3", slices=(part,)),
        FakeGpu(name="\x1b[2J\n", uuid=""),
    ]

    with FakeDriver(gpus, driver_version=b"600\xff"), Nvml.open() as nvml:
        names = [device.read().name for device in nvml.devices]
        uuids = [device.uuid for device in nvml.devices]
        slices = [(piece.name, piece.uuid) for piece in nvml.devices[0].slices()]
        listed = [device.uuid for device in visible(nvml, {"CUDA_VISIBLE_DEVICES": "GPU-"})]

    assert names == ["Quadro\\xae", "'\\x1b[2J\\n'"]
    assert uuids == ["GPU-\\xc3", "GPU 1"]
    assert slices == [("\\xfe", "MIG-\\xff")]
    assert nvml.driver_version == "600\\xff"
    assert listed == ["GPU-\\xc3"]


@pytest.mark.parametrize(
    ("gpu", "figures"),
    [
        (FakeGpu(name="Card", total=0), "0 free of 0 bytes"),
        (FakeGpu(name="Card", total=GIB, used=2 * GIB), f"{2**64 - GIB} free of {GIB} bytes"),
        (FakeGpu(name="Card", total=0, no_v2=True), "0 free of 0 bytes"),
    ],
)
def test_memory_that_cannot_be_is_an_error_with_its_figures(gpu: FakeGpu, figures: str) -> None:
    """None at all, or more used than there is: no share of it means anything."""
    assert error_of(gpu) == (
        f"GPU 0 (Card) reports {figures} of memory, which cannot be; check nvidia-smi"
    )


@pytest.mark.parametrize(
    "gpu",
    [
        FakeGpu(processes={71: 2**63}),
        FakeGpu(process_count=2**31),
        FakeGpu(process_count=2**32 - 1),
    ],
)
def test_a_list_of_processes_that_cannot_be_is_none(gpu: FakeGpu) -> None:
    assert processes_of(gpu) is None


def test_an_index_of_thousands_of_digits_shows_nothing() -> None:
    """Python refuses to read such a number."""
    assert shown({"CUDA_VISIBLE_DEVICES": "9" * 5000}, three()) == []


def test_the_fake_driver_leaves_the_binding_as_it_was() -> None:
    """A test that follows sees the real library, or none."""
    library = pynvml.nvmlLib

    with FakeDriver(three()):
        pynvml.nvmlInit()
        found = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByUUID("GPU-aa22"))

    assert found == "GPU-aa22"
    assert pynvml.nvmlLib is library
    assert pynvml._nvmlGetFunctionPointer_cache == {}


def test_the_fake_driver_answers_as_the_real_one_does() -> None:
    """A missing device, an error that the binding has no text for, a null handle."""
    with FakeDriver(three()):
        pynvml.nvmlInit()
        with pytest.raises(pynvml.NVMLError_NotFound):
            pynvml.nvmlDeviceGetHandleByUUID("GPU-none")
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetHandleByIndex(3)
        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetName(None)
        text = pynvml.nvmlErrorString(77)

    assert text == "fake error 77"


def test_a_fault_in_a_fake_gpu_is_not_swallowed() -> None:
    """The caller sees an unknown error, the test the fault itself."""
    gpu = FakeGpu(used=lambda: 1 // 0)

    with (
        pytest.raises(ZeroDivisionError),
        FakeDriver([gpu]),
        Nvml.open() as nvml,
        pytest.raises(DeviceError, match="Unknown Error"),
    ):
        nvml.devices[0].read()
