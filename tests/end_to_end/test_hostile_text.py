"""Names and texts of others cannot steer the terminal, wherever they come from and wherever they are shown."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import cli
from autotune.workers.group import WorkerGroup
from tests.support import tiny
from tests.support.command_toy import TOY
from tests.support.commands import CHATLM
from tests.support.data_files import json_lines
from tests.support.fake_nvml import FakeDriver, FakeGpu
from tests.support.hostile import HOSTILE, unsafe
from tests.support.processes import each_within
from trainer.artifacts import loss_plot
from trainer.launch.standalone import train_standalone

PROFILE = "schema = 1\n[batch]\nmicro_batch_size = 1\ngradient_accumulation_steps = 1\neffective_batch_size = 1\n"
IN_TOML = json.dumps(HOSTILE)
"""A TOML string of the same text."""
TRAIN = ("train", "--profile", "fast", "--device", "cpu", "--num-processes", "1", "--plain")
nothing_hangs = each_within(300)
Say = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder: each thing in it has the hostile text in its name or its content."""
    folder = tmp_path / "here"
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles" / f"{HOSTILE}.toml").write_text(PROFILE)
    (folder / "profiles" / "broken.toml").write_text(f"schema = 1\n{IN_TOML} = 2\n")
    (folder / "content.toml").write_text(f"{PROFILE}[run]\nmodel = {IN_TOML}\n")
    (folder / "run.toml").write_text(f"{IN_TOML} = 1\n")
    (folder / "file").touch()
    (folder / f"{HOSTILE}.txt").write_text("no data")
    json_lines(folder, [{HOSTILE: "a", "b": HOSTILE}] * 4, "columns.jsonl")
    json_lines(folder, [{"prompt": "a", "response": "b", HOSTILE: "c"}] * 4, f"{HOSTILE}.jsonl")
    json_lines(folder, [{"prompt": "a", "response": "b"}] * 4, "good.jsonl")
    (folder / "columns.csv").write_text(f"{HOSTILE.rstrip()},{HOSTILE.rstrip()}\na,b\n")
    model = folder / f"model{HOSTILE}"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": HOSTILE}))
    monkeypatch.chdir(folder)
    return folder


def logged(folder: Path) -> str:
    return "".join(log.read_bytes().decode() for log in folder.glob("logs/*.log"))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> Say:
    """What the command prints and logs in this process, where no worker starts."""

    def no_worker(*_: object, **__: object) -> None:
        raise RuntimeError(f"no worker is started {HOSTILE}")

    monkeypatch.setattr(WorkerGroup, "__init__", no_worker)

    def say(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["chatlm", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        return "".join(capsys.readouterr()) + logged(folder)

    return say


@pytest.mark.parametrize(
    "arguments",
    [
        ("profiles", "list"),
        ("profiles", "show", HOSTILE),
        ("profiles", "show", f"{HOSTILE}.toml"),
        ("profiles", "show", "profiles/broken.toml"),
        ("profiles", "show", "content.toml"),
        (HOSTILE,),
        (f"--{HOSTILE}",),
        ("profiles", HOSTILE),
        ("train", f"--{HOSTILE}"),
        ("train", "--epochs", HOSTILE),
        ("train", "--device", HOSTILE),
        ("train", "--profile", HOSTILE),
        ("train", "--config", f"{HOSTILE}.toml"),
        ("train", "--config", "run.toml"),
        (*TRAIN, "--data", f"gone{HOSTILE}"),
        (*TRAIN, "--data", f"{HOSTILE}.txt"),
        (*TRAIN, "--data", f"{HOSTILE}*"),
        (*TRAIN, "--data", "columns.jsonl"),
        (*TRAIN, "--data", "columns.csv"),
        (*TRAIN, "--data", "columns.jsonl", "--prompt-column", f"{HOSTILE}?"),
        (*TRAIN, "--data", f"{HOSTILE}.jsonl"),
        (*TRAIN, "--data", f"{HOSTILE}.jsonl", "--output-dir", HOSTILE),
        (*TRAIN, "--data", "good.jsonl", "--output-dir", f"file/{HOSTILE}"),
        (*TRAIN, "--data", "good.jsonl", "--model", f"./{HOSTILE}"),
        (*TRAIN, "--data", "good.jsonl", "--model", HOSTILE),
        ("autotune", "--base", HOSTILE),
        ("autotune", "--name", f"../{HOSTILE}"),
        ("autotune", "--vram-limit", HOSTILE),
        ("autotune", "--device", "cpu", "--workload", HOSTILE),
        ("autotune", "--device", "cpu", "--plain", "--data", f"{HOSTILE}.jsonl"),
        ("autotune", "--device", "cpu", "--json", "--data", f"{HOSTILE}.jsonl"),
        ("data", f"gone{HOSTILE}"),
        ("data", "columns.jsonl"),
        ("data", "good.jsonl", "--model", f"./{HOSTILE}"),
        ("data", "good.jsonl", "--model", f"./model{HOSTILE}"),
    ],
    ids=ascii,
)
def test_no_argument_and_no_file_steers_the_terminal(said: Say, arguments: tuple[str, ...]) -> None:
    text = said(*arguments)

    assert text
    assert unsafe(text) == []


@pytest.mark.parametrize("options", [(), ("--json",)], ids=str)
@pytest.mark.parametrize("broken", [False, True])
def test_no_name_of_a_card_steers_the_terminal(
    said: Say, options: tuple[str, ...], broken: bool
) -> None:
    """Nor the error of one that does not answer."""
    with FakeDriver([FakeGpu(name=HOSTILE, no_memory=broken)]):
        shown = said("monitor", "--once", *options)
        tuned = said("autotune", "--plain", "--data", "good.jsonl")

    assert "[2J" in shown
    assert unsafe(shown) == unsafe(tuned) == []


def test_a_shown_profile_is_the_same_document(said: Say, folder: Path) -> None:
    """Valid TOML, with the text written out."""
    shown = tomllib.loads(said("profiles", "show", "content.toml"))

    assert shown["run"]["model"].endswith(HOSTILE)


@pytest.mark.parametrize(
    "arguments",
    [
        (f"--{HOSTILE}",),
        ("--epochs", HOSTILE),
        ("--profile", f"gone{HOSTILE}"),
        ("--config", "run.toml"),
        ("--profile", "fast", "--device", "cpu", "--data", HOSTILE),
    ],
    ids=ascii,
)
def test_no_argument_of_a_launcher_steers_the_terminal(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["trainer", *arguments])

    with suppress(SystemExit):
        train_standalone()
    text = "".join(capsys.readouterr())

    assert "2J" in text
    assert unsafe(text) == []


def test_no_folder_of_a_plot_steers_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["loss_plot", HOSTILE])

    with pytest.raises(SystemExit):
        loss_plot.main()

    assert unsafe("".join(capsys.readouterr())) == []


def test_no_folder_of_a_module_in_our_place_steers_the_terminal(tmp_path: Path) -> None:
    """It is told before anything of ours is imported."""
    stranger = tmp_path / HOSTILE
    stranger.mkdir()
    (stranger / "cli.py").touch()
    environment = {**os.environ, "PYTHONPATH": f"{stranger}:{os.environ['PYTHONPATH']}"}

    done = subprocess.run(
        [CHATLM[0], "-m", "chatlm", "--version"], env=environment, capture_output=True, check=False,
    )  # fmt: skip

    assert b"is not chatlm's" in done.stderr
    assert unsafe(done.stderr.decode()) == []


def installed(folder: Path, *arguments: str) -> str:
    """What the command and its workers print and log."""
    done = subprocess.run(
        [*CHATLM, *arguments], cwd=folder, capture_output=True, check=False, timeout=300
    )
    return (done.stdout + done.stderr).decode() + logged(folder)


@pytest.mark.parametrize("end", ["", "raise ValueError(HOSTILE)", "raise MemoryError(HOSTILE)"])
def test_nothing_that_a_worker_prints_steers_the_terminal(
    end: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own words and its last ones go into the log, which people read with `cat`."""
    (folder / "toy_that_prints.py").write_text(
        "import sys, warnings\n"
        "from tests.support.command_toy import build as build_toy\n"
        "from tests.support.hostile import HOSTILE\n"
        "def build(settings):\n"
        "    print('printed', HOSTILE)\n"
        "    print('told', HOSTILE, file=sys.stderr)\n"
        "    warnings.warn('warned' + HOSTILE)\n"
        f"    {end}\n"
        "    return build_toy(settings)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    toy = [part if "command_toy" not in part else "toy_that_prints:build" for part in TOY]

    text = installed(folder, "autotune", "--device", "cpu", "--max-batch", "1", "--plain", *toy)

    assert all(f"{word}" in text for word in ("printed", "told", "warned"))
    assert ("Traceback" in text) is (end != "")
    assert unsafe(text) == []


@pytest.mark.parametrize(
    "template", ["{{ raise_exception(MESSAGE) }}", "{{ messages[0]['content'] + MESSAGE }}"],
    ids=["raises", "writes"],
)  # fmt: skip
def test_no_template_and_no_model_steers_the_terminal(
    template: str, folder: Path, said: Say
) -> None:
    """In the page of the data, in a run's lines, and in its log."""
    model = folder / f"llama{HOSTILE}"
    tiny.save("llama", model)
    (model / "chat_template.jinja").write_text(template.replace("MESSAGE", json.dumps(HOSTILE)))
    few: tuple[Any, ...] = ("--model", model, "--data", f"{HOSTILE}.jsonl", "--max-steps", "1")

    page = said("data", f"{HOSTILE}.jsonl", "--model", str(model))
    run = installed(folder, *TRAIN, *map(str, few), "--output-dir", f"run{HOSTILE}")

    assert "\\x1b" in page
    assert "\\x1b" in run
    assert unsafe(page) == unsafe(run) == []
