"""The flags as a user sees and gives them."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

import chatlm
import cli
from trainer.config.flags import parse
from trainer.config.options import AutotuneOptions, TrainOptions

SWITCHES = ("gradient_checkpointing", "compile", "fsdp", "length_grouping")


@pytest.fixture
def shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What `chatlm` prints in 80 columns; it must succeed."""

    def run(*arguments: str) -> str:
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr("sys.argv", ["chatlm", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("command", ["autotune", "train"])
def test_no_flag_is_cut_in_80_columns(command: str, shown: Callable[..., str]) -> None:
    """A name with its end cut off cannot be typed."""
    text = shown(command, "--help")

    assert "--gradient-checkpointing" in text
    assert "…" not in text


@pytest.mark.parametrize(
    ("command", "options"), [("autotune", AutotuneOptions), ("train", TrainOptions)]
)
def test_help_tells_every_default(
    command: str, options: type[Any], shown: Callable[..., str]
) -> None:
    """In the order of the panels, so that each stands with its own flag."""
    text = " ".join(shown(command, "--help").replace("│", " ").split())

    missing = []
    for field in fields(options):
        if field.default is None or isinstance(field.default, bool):
            continue
        flag = f"--{field.name.replace('_', '-')} "
        own = text[text.index(flag) + len(flag) :].split(" --")[0]
        if f"[default: {field.default}]" not in own:
            missing.append(field.name)
    assert missing == []


@pytest.mark.parametrize("command", ["autotune", "train"])
def test_the_model_and_the_data_come_first(command: str, shown: Callable[..., str]) -> None:
    """They are what every user has to say."""
    words = shown(command, "--help").split()
    flags = [word for word in words if word.startswith("--") and word.removeprefix("--no-NAME")]

    assert flags[:2] == ["--model", "--data"]


@pytest.mark.parametrize(
    "command", ["autotune", "train", "monitor", "profiles list", "profiles show"]
)
def test_help_ends_with_two_examples(command: str, shown: Callable[..., str]) -> None:
    """Commands that can be copied."""
    examples = shown(*command.split(), "--help").partition("Examples:")[2]

    assert examples.count(f"chatlm {command.split()[0]}") == 2


def test_the_version_is_the_package_s(shown: Callable[..., str]) -> None:
    """`chatlm --version`."""
    assert shown("--version") == f"chatlm {chatlm.__version__}\n"


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_can_be_denied(name: str) -> None:
    """The profile may say yes: `--no-x` is a choice too, of two that are given the denial holds."""
    flag = name.replace("_", "-")

    def given(*flags: str) -> dict[str, object]:
        return parse(list(flags), help=None, read=lambda _: {})

    assert given() == {}
    assert given(f"--{flag}") == {name: True}
    assert given(f"--no-{flag}") == {name: False}
    assert given(f"--{flag}", f"--no-{flag}") == {name: False}
