"""What a worker on a CPU is started with: its memory is what its tensors take, whatever ran before."""

import os
from pathlib import Path

import pytest

from autotune.workers.channel import SOCKET_VARIABLE
from autotune.workers.launch import CPU_ENVIRONMENT, memory_environment, reexec_with_environment
from tests.support.processes import printed_by

HOLES = """
import torch
from autotune.devices.processes import resident
blocks = [torch.ones(2**15) for _ in range(400)]  # 128 KiB each
before = resident("self")
del blocks[::2]
print(before - resident("self"))
"""

SHAPES = """
import torch
from autotune.devices.processes import resident, trim
layer = torch.nn.Linear(128, 512)
def steps(sizes):
    for size in sizes:
        with torch.autocast("cpu", torch.bfloat16):
            layer(torch.ones(size, 128)).sum().backward()
    trim()
    return resident("self")
before = steps(range(300, 340))
print(steps(range(340, 500)) - before)
"""


def test_a_freed_tensor_leaves_no_hole() -> None:
    """Every second of 400 tensors of 128 KiB is 25 MiB, given back at once; new pages of code take some."""
    assert int(printed_by(HOLES, **memory_environment("cpu"))) >= 20 * 2**20


def test_new_shapes_in_bf16_take_no_more_memory() -> None:
    """160 of them: oneDNN would keep what it compiled for each; a CPU without its bf16 never fails here."""
    assert int(printed_by(SHAPES, **memory_environment("cpu"))) <= 8 * 2**20


@pytest.mark.parametrize(
    ("value", "is_on_cpu"), [("True", True), ("1", True), ("yes", True), ("False", False)]
)
def test_accelerate_may_say_in_each_of_its_spellings_that_it_stays_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, value: str, is_on_cpu: bool
) -> None:
    """On a machine with a card: the process restarts with the variables of the device it runs on."""
    restarts: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, env: restarts.append(env))
    monkeypatch.setattr(Path, "exists", lambda path: True)
    for name in (SOCKET_VARIABLE, *CPU_ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)

    reexec_with_environment("trainer", [])

    (environment,) = restarts
    assert ({*CPU_ENVIRONMENT} <= environment.keys()) is is_on_cpu
