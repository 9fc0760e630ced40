"""The flags as a user sees and gives them."""

import pytest

import cli
from trainer.config.flags import parse
from trainer.config.options import TrainOptions

SWITCHES = ("gradient_checkpointing", "compile", "fsdp", "length_grouping")


@pytest.mark.parametrize("command", ["autotune", "train"])
def test_no_flag_is_cut_in_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name with its end cut off cannot be typed."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["chatlm", command, "--help"])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "--gradient-checkpointing" in shown
    assert "…" not in shown


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_can_be_denied(name: str) -> None:
    """The profile may say yes: `--no-x` is a choice too, of two that are given the denial holds."""
    flag = name.replace("_", "-")

    def given(*flags: str) -> dict[str, object]:
        return parse(TrainOptions, list(flags), program="trainer", help=None, read=lambda _: {})

    assert given() == {}
    assert given(f"--{flag}") == {name: True}
    assert given(f"--no-{flag}") == {name: False}
    assert given(f"--{flag}", f"--no-{flag}") == {name: False}
