"""Advice for launches that fail in a known way, by what NCCL, gloo, torchrun or a loader printed.

Their errors have no types, so the text is matched; tests quote each text. Imports no torch.
"""

import os
import re
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from autotune.devices.shared_memory import NEEDED, free_shared_memory, shared_memory
from autotune.errors import named
from trainer.data.cache_folder import cache_folder


@dataclass(frozen=True, slots=True)
class Fault:
    """A way in which a launch fails."""

    pattern: str
    """A regular expression for what a process printed last."""
    advice: str | Callable[[], str]
    """What it is and what to try; a function where this machine's numbers are part of it."""


def advice(said: str, *, exit_code: int | None = None) -> str | None:
    """What to try after a process printed `said` and exited with `exit_code`; None if unknown."""
    # of a process that a signal ended the text is other ranks', about the one that is gone
    told = BY_SIGNAL.get(-exit_code) if exit_code else None
    if told is None and (fault := _fault(said)) is not None:
        told = fault.advice
    return told() if callable(told) else told


def lost_a_peer(said: str) -> bool:
    """Whether a process crashed only because another rank ended first."""
    return _fault(said) is PEER


def _fault(said: str) -> Fault | None:
    """The first that matches: full shared memory makes NCCL fail, and that disconnects the peers."""
    return next((f for f in FAULTS if re.search(f.pattern, said, re.IGNORECASE)), None)


def _nccl_memory() -> str:
    cure = "in Docker, run with --shm-size 1g"
    if (free_shared_memory() or 0) >= 2 * NEEDED:
        # the size is not the cause: https://github.com/NVIDIA/nccl/pull/2059
        cure = "set NCCL_CUMEM_HOST_ENABLE=0"
    return (
        f"NCCL could not share memory between processes ({shared_memory()}): {cure}, or set "
        f"NCCL_SHM_DISABLE=1, or use --backend gloo"
    )


def _loaders() -> str:
    return (
        f"shared memory ran out, and loader workers need it ({shared_memory()}): in Docker, run with "
        f"--shm-size 1g, or set loader_workers = 0 in the profile"
    )


def _bus_error() -> str:
    if (free_shared_memory() or 0) <= NEEDED:
        return _loaders()
    return (
        f"a bus error ended a process, and {shared_memory()}: so most likely a file that was mapped into "
        f"memory has been cut, or its disk failed or is full; such files are the token cache in "
        f"{named(cache_folder())} and the model's safetensors; check the disk (`dmesg`, `df`), remove that "
        f"folder, and fetch or copy the model anew"
    )


KILLED = (
    "no kill for lack of memory was counted where this process can see it, so it was a job scheduler's limit of "
    "memory or time, a limit around this container, or somebody's `kill -9`; if it comes again, use less host "
    "memory: fewer processes, loader_workers = 0 in the profile, a smaller --micro-batch"
)
LOADER_KILLED = (
    "a loader worker was killed, most likely because host memory ran out: set loader_workers = 0 in the profile, "
    "use fewer processes, or end what else uses host memory"
)
LOADER_ENDED = (
    "a loader worker ended; if nobody ended it, host memory most likely ran out: set loader_workers = 0 in the "
    "profile, with which an error of its own is the run's"
)
"""Without a signal's name. Where it ends while it hands a tensor over, the error is an EOFError or
ConnectionResetError in multiprocessing's resource_sharer (torch 2.13)."""
SEGFAULT = (
    "a segmentation fault is a fault of compiled code, most often of packages built for other versions: run "
    "`pip check` and install torch anew; with PYTHONFAULTHANDLER=1 the log shows where it was"
)
LOADER_SEGFAULT = (
    f"{SEGFAULT}; if it is in loader workers alone, set loader_workers = 0 in the profile"
)
ILLEGAL = (
    "this CPU lacks an instruction that a package was built for, such as AVX2 or AVX-512 in torch or a library "
    "under it: install a build for this CPU, or use another machine"
)


def _nccl() -> str:
    return (
        f"NCCL failed without a reason ({shared_memory()}): set NCCL_DEBUG=WARN to see it; use "
        f"--backend gloo to train without NCCL, or NCCL_SHM_DISABLE=1 if shared memory is the cause"
    )


def _nccl_network() -> str:
    return (
        f"NCCL cannot reach the other processes: set NCCL_SOCKET_IFNAME to the network interface that "
        f"they share ({_interfaces()}), or use --backend gloo; NCCL_DEBUG=INFO shows the one it uses"
    )


def _gloo() -> str:
    host = socket.gethostname()
    return (
        f"gloo could not connect the processes: set GLOO_SOCKET_IFNAME to the network interface that they "
        f"share ({_interfaces()}); {host} is {_address(host)} here; on several nodes, no host name may "
        f"be 127.x.x.x in /etc/hosts"
    )


def _head_node() -> str:
    head = f"{os.environ.get('MASTER_ADDR', 'HOST')}:{os.environ.get('MASTER_PORT', 'PORT')}"
    return (
        f"the first node did not answer at {head}: start all nodes with the same address and port, "
        f"open the port in the firewall, and give an address that the other nodes reach"
    )


PEER = Fault(
    r"ncclRemoteError|Connection closed by (remote )?peer|Connection reset by peer|Broken pipe",
    "another process ended first: its own message, on its node or further up, is the cause",
)
BY_SIGNAL: dict[int, str | Callable[[], str]] = {
    signal.SIGBUS: _bus_error,
    signal.SIGKILL: KILLED,
    signal.SIGSEGV: SEGFAULT,
    signal.SIGILL: ILLEGAL,
}
"""What ended a process that could not say so itself."""
LOADER = r"DataLoader worker .* killed by signal: "
FAULTS = (
    Fault(
        r"Error while (attaching to|creating) shared memory segment"
        r"|failed to extend /dev/shm/nccl|shm_open failed"
        r"|NCCL WARN.*No space left on device|posix_fallocate failed ?: No space left",
        _nccl_memory,
    ),
    Fault(
        r"unable to (write|resize|allocate|open) .*shared memory|/torch_\w+.*No space left on device",
        _loaders,
    ),
    Fault(rf"{LOADER}Bus error|Unexpected bus error encountered in worker", _bus_error),
    Fault(rf"{LOADER}Killed", LOADER_KILLED),
    Fault(
        rf"{LOADER}Segmentation fault|Unexpected segmentation fault encountered in worker",
        LOADER_SEGFAULT,
    ),
    Fault(rf"{LOADER}Illegal instruction", ILLEGAL),
    Fault(r"DataLoader worker .* exited unexpectedly|resource_sharer\.py", LOADER_ENDED),
    Fault(
        r"Duplicate GPU detected",
        "two processes are on one card: start no more processes per node than it has cards, and leave "
        "CUDA_VISIBLE_DEVICES as it is; --backend gloo can share a card, but slowly",
    ),
    Fault(
        r"no socket interface found|No NCCL_SOCKET_IFNAME interface found"
        r"|neither AF_INET|socketStartConnect: Connect to|NCCL WARN.*(Connection refused|timed out)",
        _nccl_network,
    ),
    Fault(
        r"EADDRINUSE|Address already in use|server socket has failed to (bind|listen)",
        "the port of the rendezvous is taken, perhaps by an earlier run: give another --master-port "
        "(torchrun) or --main_process_port (accelerate launch)",
    ),
    Fault(
        r"client socket has (timed out|failed to connect)|Timed out after \d+ seconds waiting for clients"
        r"|RendezvousConnectionError|RendezvousTimeoutError",
        _head_node,
    ),
    Fault(
        r"connectFullMesh failed|gloo.*(Connection refused|Connect timeout|timed out connecting)"
        r"|Unable to resolve hostname to a \(local\) address",
        _gloo,
    ),
    Fault(
        r"Watchdog caught collective operation timeout|Timed out waiting \d+ms",
        "a process waited for another one that hangs, has ended, or does more work; "
        "`py-spy dump --pid PID` shows where each process is",
    ),
    PEER,
    Fault(r"nccl(System|UnhandledCuda|Internal|InvalidUsage)\w*|NCCL error", _nccl),
)


def _interfaces() -> str:
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    return f"here {', '.join(names)}" if names else "here is only lo"


def _address(host: str) -> str:
    with suppress(OSError):
        return socket.gethostbyname(host)
    return "no known address"
