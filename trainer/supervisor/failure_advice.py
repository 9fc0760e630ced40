"""Launches that are known to fail: by what NCCL, gloo, torchrun or a loader says, what to try.

They have no types of their own, so that their words must do; tests quote them. What is out of memory,
or wrong with the user's settings, has an error of ours and is not looked for here. Imports no torch.
"""

import os
import re
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autotune.devices.shared_memory import NEEDED, SHARED_MEMORY, free_shared_memory, shared_memory


@dataclass(frozen=True, slots=True)
class Fault:
    """A way in which a launch fails."""

    words: str
    """A regular expression, found in what a process said last."""
    advice: Callable[[], str]
    """What it is and what to try, with this machine's numbers."""


def advice(said: str, *, exit_code: int | None = None) -> str | None:
    """What is known of a process that said that, or was ended by a signal; None of an unknown fault.

    The first that is found counts: a shared memory that is full comes before the NCCL that it fails, and
    that before the neighbours that lose their connection.
    """
    if exit_code == -signal.SIGBUS:
        return _loaders()
    if (
        exit_code == -signal.SIGKILL
    ):  # it was whole until then, and the others' words are about its end
        return None
    for fault in FAULTS:
        if re.search(fault.words, said, re.IGNORECASE):
            return fault.advice()
    return None


def lost_a_peer(said: str) -> bool:
    """Whether these are the words of a process whose neighbour ended, and not the cause themselves."""
    known = [fault for fault in FAULTS if re.search(fault.words, said, re.IGNORECASE)]
    return known[:1] == [PEER]


def _nccl_memory(folder: Path = SHARED_MEMORY) -> str:
    cures = ["set NCCL_SHM_DISABLE=1", "use --backend gloo"]
    free = free_shared_memory(folder)
    if free is None or free < 2 * NEEDED:
        cures.insert(0, "in Docker, run with --shm-size 1g")
    else:  # then it is not the size: https://github.com/NVIDIA/nccl/pull/2059
        cures.insert(0, "set NCCL_CUMEM_HOST_ENABLE=0")
    return (
        f"NCCL could not share memory between processes ({shared_memory(folder)}): {_any_of(cures)}"
    )


def _loaders(folder: Path = SHARED_MEMORY) -> str:
    return (
        f"shared memory ran out, as loader workers find out by a bus error ({shared_memory(folder)}): in "
        f"Docker, run with --shm-size 1g, or set loader_workers = 0 in the profile"
    )


def _nccl() -> str:
    return (
        f"NCCL failed, and does not say why ({shared_memory()}): set NCCL_DEBUG=WARN to hear it; use "
        f"--backend gloo to train without NCCL, or NCCL_SHM_DISABLE=1 where shared memory is the fault"
    )


def _nccl_network() -> str:
    return (
        f"NCCL found no way to the other processes: set NCCL_SOCKET_IFNAME to the network interface that "
        f"they share ({_interfaces()}), or use --backend gloo; NCCL_DEBUG=INFO tells which one it takes"
    )


def _gloo() -> str:
    host = socket.gethostname()
    return (
        f"gloo could not connect the processes: set GLOO_SOCKET_IFNAME to the network interface that they "
        f"share ({_interfaces()}); {host} is {_address(host)} here, and on several nodes no name may stand "
        f"for 127.x.x.x in /etc/hosts"
    )


def _head_node() -> str:
    head = f"{os.environ.get('MASTER_ADDR', 'HOST')}:{os.environ.get('MASTER_PORT', 'PORT')}"
    return (
        f"the first node did not answer at {head}: start all nodes with the same address and port, "
        f"open the port in the firewall, and give an address that the other nodes reach"
    )


def _port() -> str:
    return (
        "the port of the rendezvous is taken, by an earlier run perhaps: give another --master-port "
        "(torchrun) or --main_process_port (accelerate launch)"
    )


def _two_on_a_card() -> str:
    return (
        "two processes are on one card: start no more processes a node than it has cards, and leave "
        "CUDA_VISIBLE_DEVICES as it is; --backend gloo shares a card, slowly"
    )


def _late() -> str:
    return (
        "a process waited for another that did not come: it hangs, has ended, or does more than the "
        "others; `py-spy dump --pid PID` shows where each of them is"
    )


def _peer() -> str:
    return "another process ended first: what it said, on its node or further up, is the cause"


PEER = Fault(
    r"ncclRemoteError|Connection closed by (remote )?peer|Connection reset by peer|Broken pipe",
    _peer,
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
    Fault(r"Duplicate GPU detected", _two_on_a_card),
    Fault(
        r"no socket interface found|No NCCL_SOCKET_IFNAME interface found"
        r"|neither AF_INET|socketStartConnect: Connect to|NCCL WARN.*(Connection refused|timed out)",
        _nccl_network,
    ),
    Fault(
        r"EADDRINUSE|Address already in use|server socket has failed to (bind|listen)",
        _port,
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
    Fault(r"Watchdog caught collective operation timeout|Timed out waiting \d+ms", _late),
    PEER,
    Fault(r"nccl(System|UnhandledCuda|Internal|InvalidUsage)\w*|NCCL error", _nccl),
)


def _any_of(cures: list[str]) -> str:
    return ", or ".join(cures)


def _interfaces() -> str:
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    return f"here {', '.join(names)}" if names else "here is only lo"


def _address(host: str) -> str:
    with suppress(OSError):
        return socket.gethostbyname(host)
    return "no known address"
