"""`python -m trainer` under torchrun: two nodes on loopback, which share no folder, and a signal to one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.commands import steps
from tests.support.processes import deadline
from tests.support.shared import once

TRAINER = (
    "-m", "trainer", "--profile", "small", "--device", "cpu", "--dropout", "0", "--seed", "5",
    "--max-steps", "100000", "--warmup", "0", "--output-dir", "run",
)  # fmt: skip
"""Far more steps than are waited for: they are stopped."""
COMPARED = 2
"""Steps; how many more there are depends on when a signal arrives, and rounding adds up."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a launcher that has ended left behind."""

    folder: Path
    exit_code: int
    out: str
    err: str


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """An interpreter with a folder and a token cache of its own, as on a node."""
    folder.mkdir()
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "CHATLM_CACHE": str(folder / "cache")},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            text=True,
        )


def end(process: subprocess.Popen[str], folder: Path) -> None:
    """Waits for its end; the exit code is then beside the outputs."""
    (folder / "code").write_text(str(process.wait(300)))


def ended(folder: Path) -> Launch:
    code, out, err = ((folder / name).read_text() for name in ("code", "out", "err"))
    return Launch(folder, int(code), out, err)


def wait_for_steps(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Returns when the run in that folder has taken that many steps."""
    metrics = folder / "run" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < count:
        assert process.poll() is None, (folder / "err").read_text()
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Launch]:
    """Two nodes of one process each, of which the second's torchrun is told to end; and one process."""
    root = once(tmp_path_factory, "nodes", launch)
    return {name: ended(root / name) for name in ("main", "other", "alone")}


def launch(root: Path) -> None:
    names = ("main", "other")
    meet = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "1", *meet)
    nodes = [
        started(root / name, *torchrun, "--node-rank", str(rank), *TRAINER, "--micro-batch", "3")
        for rank, name in enumerate(names)
    ]
    processes = [*nodes]
    try:
        with deadline(300):
            wait_for_steps(nodes[0], root / "main", COMPARED)
            nodes[1].send_signal(signal.SIGTERM)
            for name, node in zip(names, nodes, strict=True):
                end(node, root / name)
            alone = started(root / "alone", *TRAINER, "--micro-batch", "16")
            processes.append(alone)
            wait_for_steps(alone, root / "alone", COMPARED)
            alone.send_signal(signal.SIGTERM)
            end(alone, root / "alone")
    finally:
        for process in processes:
            process.kill()


def test_two_nodes_train_as_one_process(launches: dict[str, Launch]) -> None:
    """In micro-batches of 3 against all 16 samples at once: loss and gradient norm to 1e-5."""
    nodes = steps(launches["main"].folder / "run")
    alone = steps(launches["alone"].folder / "run")

    for parts, whole in zip(nodes[:COMPARED], alone[:COMPARED], strict=True):
        assert parts["tokens"] == whole["tokens"]
        assert parts["micro_batches"] > whole["micro_batches"]
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)
        assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-5)
        assert parts["host_bytes"] > 1.5 * whole["host_bytes"]  # over all nodes


def test_only_the_main_process_writes_and_speaks(launches: dict[str, Launch]) -> None:
    """Its standard output is lines of JSON and nothing else; the other node has a token cache alone."""
    main, other = launches["main"], launches["other"]

    kinds = [json.loads(line)["type"] for line in main.out.splitlines()]

    # how far tokenising is, is said where it takes a while
    assert [kind for kind in kinds if kind != "tokenising"][:2] == ["built", "started"]
    assert other.out == ""
    assert {path.name for path in other.folder.iterdir()} == {"cache", "out", "err", "code"}
    assert any((other.folder / "cache").iterdir())


def test_a_signal_to_one_node_saves_the_run_of_all(launches: dict[str, Launch]) -> None:
    """After the step, as Ctrl-C does under `chatlm train`: SLURM and others send SIGTERM."""
    run = launches["main"].folder / "run"
    *_, checkpoint, done = map(json.loads, launches["main"].out.splitlines())
    number = len(steps(run))

    assert (run / f"checkpoint-{number}").is_dir()
    assert checkpoint["step"] == done["result"]["steps"] == number
    assert done["interrupted"]
    assert launches["alone"].exit_code == 130
    assert launches["main"].exit_code == 1  # torchrun's own, for a worker's 130
    assert "exitcode  : 130" in launches["main"].err


def test_a_flag_that_does_not_exist_is_told_without_a_traceback() -> None:
    """As `chatlm train` does: exit status 2."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainer", "--micro-bach", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 2
    assert "--micro-bach" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
