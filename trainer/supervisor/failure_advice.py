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


@dataclass(frozen=True, slots=True)
class Fault:
    """A way in which a launch fails."""

    pattern: str
    """A regular expression for what a process printed last."""
    advice: str | Callable[[], str]
    """What it is and what to try; a function where this machine's numbers are part of it."""


def advice(said: str, *, exit_code: int | None = None) -> str | None:
    """What to try after a process printed `said` and exited with `exit_code`; None if unknown."""
    if exit_code == -signal.SIGBUS:
        return _loaders()
    if exit_code == -signal.SIGKILL:  # the text is other ranks', about the killed one
        return None
    if (fault := _fault(said)) is None:
        return None
    return fault.advice if isinstance(fault.advice, str) else fault.advice()


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
        f"shared memory ran out, and a bus error ended a loader worker ({shared_memory()}): in "
        f"Docker, run with --shm-size 1g, or set loader_workers = 0 in the profile"
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
FAULTS = (
    Fault(
        r"Error while (attaching to|creating) shared memory segment"
        r"|failed to extend /dev/shm/nccl|shm_open failed"
        r"|NCCL WARN.*No space left on device|posix_fallocate failed ?: No space left",
        _nccl_memory,
    ),
    Fault(
        r"DataLoader worker .* killed by signal: Bus error|Unexpected bus error encountered in worker"
        r"|unable to (write|resize|allocate|open) .*shared memory|/torch_\w+.*No space left on device",
        _loaders,
    ),
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
