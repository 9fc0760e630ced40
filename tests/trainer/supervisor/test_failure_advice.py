"""What libraries say when a launch fails, quoted from where it was reported, and what we add."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from autotune.devices.host import HostMeter
from autotune.devices.shared_memory import SHARED_MEMORY, shared_memory
from autotune.workers.group import WorkerGroup
from autotune.workers.messages import FromProbe
from trainer.launch.standalone import tell
from trainer.supervisor.failure_advice import advice, lost_a_peer
from trainer.supervisor.training import explain_exit

SHARED_MEMORY_OF_NCCL = {
    "the user's own": "Error while attaching to shared memory segment",
    "NVIDIA/nccl#1589": (
        "g148:14937:69361 [0] misc/shmutils.cc:129 NCCL WARN Error while attaching to shared memory "
        "segment /dev/shm/nccl-glnlGK (size 14156128), error: No such file or directory (2)"
    ),
    "vllm-project/vllm#14537": (
        "DistBackendError: NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:317, unhandled "
        "system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5\n"
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device "
        "error. \nLast error:\n"
        "Error while creating shared memory segment /dev/shm/nccl-EoOvZr (size 7340384)"
    ),
    "NVIDIA/nccl-tests#166": (
        "misc/shmutils.cc:71 NCCL WARN Error: failed to extend /dev/shm/nccl-fjwOOB to 5967876 bytes"
    ),
    "pytorch/ci-infra#490": (
        "misc/shmutils.cc:88 NCCL WARN Error: failed to extend /dev/shm/nccl-WU88OE to 9637892 bytes, "
        "error: No space left on device (28)"
    ),
    "NVIDIA/nccl#290": (
        "include/shm.h:28 NCCL WARN Call to posix_fallocate failed : No space left on device"
    ),
    "NVIDIA/nccl#328": "include/shm.h:27 NCCL WARN Call to shm_open failed : Permission denied",
}
LOADERS = {
    "pytorch/pytorch#108861": (
        "RuntimeError: DataLoader worker (pid 11011) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory. Please try to raise your shared memory limit."
    ),
    "facebookresearch/mmf#441": (
        "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared "
        "memory (shm)."
    ),
}
OTHERS = {
    "NVIDIA/nccl#1837": (
        "ncclInternalError: Internal check failed.\nLast error:\nncclSocketInit: connecting to address  "
        "with family 59936 is neither AF_INET(2) nor AF_INET6(10)",
        "set NCCL_SOCKET_IFNAME",
    ),
    "marin-community/marin#6940": (
        "NCCL WARN Bootstrap : no socket interface found",
        "set NCCL_SOCKET_IFNAME",
    ),
    "NVIDIA/nccl-tests#15": (
        "include/socket.h:360 NCCL WARN Call to connect failed : Connection timed out",
        "set NCCL_SOCKET_IFNAME",
    ),
    "sehoffmann/dmlcloud#47": (
        "RuntimeError: Gloo connectFullMesh failed with [../third_party/gloo/gloo/transport/tcp/"
        "pair.h:301] Connect timeout [none]",
        "set GLOO_SOCKET_IFNAME",
    ),
    "pytorch/pytorch#108732": (
        "RuntimeError: [third_party/gloo/gloo/transport/tcp/pair.cc:799] connect [172.31.71.170]:13195: Connection refused",
        "no host name may be 127.x.x.x in /etc/hosts",
    ),
    "torch 2.13, no first node": (
        "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying "
        "to connect to (10.0.0.1, 29500).",
        "the first node did not answer",
    ),
    "torch 2.13, a port in use": (
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network "
        "address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
        "give another --master-port",
    ),
    "hiyouga/LlamaFactory#7396": (
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1580, OpType=ALLREDUCE, "
        "NumelIn=466119168, NumelOut=466119168, Timeout(ms)=600000) ran for 600060 milliseconds",
        "py-spy dump",
    ),
    "torch 2.13, a peer that died": (
        "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer "
        "[127.0.0.1]:21844",
        "another process ended first",
    ),
    "NCCL without a reason": (
        "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:1970, unhandled cuda "
        "error (run with NCCL_DEBUG=INFO for details)\nncclUnhandledCudaError: Call to CUDA function failed.",
        "set NCCL_DEBUG=WARN",
    ),
    "two processes on one card": (
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
        "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000",
        "no more processes per node than it has cards",
    ),
}


@pytest.mark.parametrize("said", SHARED_MEMORY_OF_NCCL.values(), ids=SHARED_MEMORY_OF_NCCL)
def test_nccls_shared_memory_is_answered_with_its_size_and_each_cure(said: str) -> None:
    """Among all else that is said then, of NCCL's system error too."""
    told = advice(f"some words before\n{said}\nConnection closed by peer\n") or ""

    assert shared_memory() in told
    assert "set NCCL_SHM_DISABLE=1, or use --backend gloo" in told


def set_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Lets /dev/shm be of 1 GiB, with so many bytes free."""
    usage = SimpleNamespace(total=2**30, used=2**30 - free, free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)


FULL, FREE = 2**26, 2**29
NEARLY_FULL = (
    "shared memory ran out, and loader workers need it (/dev/shm has 1.00 GiB, 64 MiB of them free): in "
    "Docker, run with --shm-size 1g, or set loader_workers = 0 in the profile"
)
A_FILE = (
    "a bus error ended a process, and /dev/shm has 1.00 GiB, 512 MiB of them free: so most likely a file that "
    "was mapped into memory has been cut, or its disk failed or is full; such files are the token cache in "
    "/somewhere/cache and the model's safetensors; check the disk (`dmesg`, `df`), remove that folder, and "
    "fetch or copy the model anew"
)


@pytest.mark.parametrize(
    ("said", "exit_code"),
    [*((said, None) for said in LOADERS.values()), ("", -signal.SIGBUS)],
    ids=[*LOADERS, "the signal"],
)
def test_a_bus_error_is_blamed_on_shared_memory_only_where_it_is_nearly_full(
    monkeypatch: pytest.MonkeyPatch, said: str, exit_code: int | None
) -> None:
    """Else on a file in memory; whatever torch says, and where a killed process can say nothing."""
    monkeypatch.setenv("CHATLM_CACHE", "/somewhere/cache")

    set_free(monkeypatch, FULL)
    full = advice(said, exit_code=exit_code)
    set_free(monkeypatch, FREE)
    free = advice(said, exit_code=exit_code)

    assert (full, free) == (NEARLY_FULL, A_FILE)


def test_a_loader_that_names_shared_memory_is_answered_with_its_cures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However much of it is free by now; NCCL's cures would not help."""
    set_free(monkeypatch, FREE)

    told = (
        advice("RuntimeError: unable to write to file </torch_29_1>: No space left on device") or ""
    )

    assert told.startswith("shared memory ran out, and loader workers need it (/dev/shm has ")
    assert "NCCL" not in told


ENDED = "RuntimeError: DataLoader worker (pid(s) 17067) exited unexpectedly"
"""What torch 2.13 raises; the signal is in the error that caused it, further up in the log."""
BY_SIGNAL = {
    "Killed": (
        signal.SIGKILL,
        "a loader worker was killed, most likely because host memory ran out: set loader_workers = 0 in the "
        "profile, use fewer processes, or end what else uses host memory",
        "no kill for lack of memory was counted where this process can see it, so it was a job scheduler's "
        "limit of memory or time, a limit around this container, or somebody's `kill -9`; if it comes again, "
        "use less host memory: fewer processes, loader_workers = 0 in the profile, a smaller --micro-batch",
    ),
    "Segmentation fault": (
        signal.SIGSEGV,
        "a segmentation fault is a fault of compiled code, most often of packages built for other versions: "
        "run `pip check` and install torch anew; with PYTHONFAULTHANDLER=1 the log shows where it was; if it "
        "is in loader workers alone, set loader_workers = 0 in the profile",
        "a segmentation fault is a fault of compiled code, most often of packages built for other versions: "
        "run `pip check` and install torch anew; with PYTHONFAULTHANDLER=1 the log shows where it was",
    ),
    "Illegal instruction": (
        signal.SIGILL,
        "this CPU lacks an instruction that a package was built for, such as AVX2 or AVX-512 in torch or a "
        "library under it: install a build for this CPU, or use another machine",
        "this CPU lacks an instruction that a package was built for, such as AVX2 or AVX-512 in torch or a "
        "library under it: install a build for this CPU, or use another machine",
    ),
}


@pytest.mark.parametrize("name", BY_SIGNAL)
def test_a_signal_that_ended_a_loader_or_a_worker_is_answered_with_what_to_try(name: str) -> None:
    """A loader is named by torch, a worker by its exit code, whatever the others said then."""
    number, of_loader, of_worker = BY_SIGNAL[name]

    assert (
        advice(f"DataLoader worker (pid 7) is killed by signal: {name}. \n\n{ENDED}") == of_loader
    )
    assert advice("Connection closed by peer", exit_code=-number) == of_worker


@pytest.mark.parametrize(
    "said",
    [
        ENDED,
        # torch 2.13, Python 3.11: it was killed while it handed a tensor over
        '  File "/lib/python3.11/multiprocessing/resource_sharer.py", line 57, in detach\n'
        "    with _resource_sharer.get_connection(self._id) as conn:\nEOFError",
        '  File "/lib/python3.11/multiprocessing/resource_sharer.py", line 86, in get_connection\n'
        "ConnectionResetError: [Errno 104] Connection reset by peer",
    ],
)
def test_a_loader_that_ends_without_a_signals_name_is_answered_with_what_to_try(said: str) -> None:
    assert advice(said) == (
        "a loader worker ended; if nobody ended it, host memory most likely ran out: set loader_workers = 0 "
        "in the profile, with which an error of its own is the run's"
    )


def test_a_process_of_its_own_names_the_signal_that_ended_its_loader(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is in the error that caused the one that reaches us."""
    cause = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    error = RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")
    error.__cause__ = cause

    tell(error)

    assert capsys.readouterr().err.splitlines()[-1] == f"chatlm: {BY_SIGNAL['Killed'][1]}"


@pytest.mark.parametrize(("said", "cure"), OTHERS.values(), ids=OTHERS)
def test_a_network_that_fails_is_answered_with_what_to_set(said: str, cure: str) -> None:
    """The interface, the address, the port, or the process to look at."""
    told = advice(said) or ""

    assert cure in told


def test_an_unknown_fault_is_not_explained() -> None:
    """A bug of ours, a full disk elsewhere, a signal that somebody sent."""
    assert advice("IndexError: list index out of range") is None
    assert advice("OSError: [Errno 28] No space left on device: 'model_save/x'") is None
    assert advice("", exit_code=-signal.SIGTERM) is None


def test_shared_memory_is_said_by_size_and_what_is_free(tmp_path: Path) -> None:
    """Or that there is none."""
    assert shared_memory(tmp_path / "absent") == f"there is no {tmp_path / 'absent'}"
    assert shared_memory(tmp_path).endswith("of them free")
    assert str(SHARED_MEMORY) in shared_memory()


def test_a_crash_after_a_peers_end_is_no_cause() -> None:
    """The peer tells the cause; where shared memory is named too, that is the cause."""
    gone = OTHERS["torch 2.13, a peer that died"][0]

    assert lost_a_peer(gone)
    assert not lost_a_peer(f"{gone}\n{SHARED_MEMORY_OF_NCCL['NVIDIA/nccl#1589']}")
    assert not lost_a_peer("IndexError: list index out of range")


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (
            f"print({SHARED_MEMORY_OF_NCCL['NVIDIA/nccl#1589']!r}); raise SystemExit(1)",
            "set NCCL_SHM_DISABLE=1, or use --backend gloo",
        ),
        ("import os; os.kill(os.getpid(), 11)", "a training worker died (SIGSEGV); its log is "),
        ("import os; os.kill(os.getpid(), 9)", "it was a job scheduler's limit of memory or time"),
        ("import os; os._exit(137)", "a training worker was killed (SIGKILL); its log is "),
    ],
    ids=["what its log says", "the signal that ended it", "a kill", "a shell's code of a kill"],
)
def test_a_worker_that_is_gone_is_explained(tmp_path: Path, script: str, told: str) -> None:
    """Under `chatlm train`, beside where its log lies and that the same command resumes."""
    log = tmp_path / "log"
    with WorkerGroup[FromProbe](
        [sys.executable, "-c", script],
        messages=FromProbe,
        environment=os.environ,
        log_path=log,
        host=HostMeter(),
    ) as workers:
        error = explain_exit(workers)

    assert told in str(error)
    assert str(log) in str(error)
    assert "resumes from the last checkpoint" in str(error)


def test_a_process_of_its_own_says_what_to_try_after_its_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Under torchrun, on standard error."""
    tell(RuntimeError(SHARED_MEMORY_OF_NCCL["vllm-project/vllm#14537"]))

    *traceback, last = capsys.readouterr().err.splitlines()
    assert "Error while creating shared memory segment /dev/shm/nccl-EoOvZr" in "\n".join(traceback)
    assert last.startswith("chatlm: NCCL could not share memory between processes (/dev/shm has")
