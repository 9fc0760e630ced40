"""`torch.compile` is not offered: a compiled step grows with each new shape that it meets."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    ROOT / "cli.py",
    *(
        file
        for layer in ("autotune", "profiles", "trainer")
        for file in (ROOT / layer).rglob("*.py")
    ),
]


def test_nothing_of_ours_compiles_a_model() -> None:
    """Neither by torch's function nor by the method of a transformers model."""
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr == "compile"
        and ast.unparse(node.value) != "re"
    ]

    assert FILES
    assert found == []


def test_no_setting_asks_for_it() -> None:
    """What is not offered cannot be asked for, on the command line or in a profile."""
    from profiles.schema import Run
    from trainer.settings import TrainSettings, WorkloadSettings

    names = [*Run.model_fields, *TrainSettings.__slots__, *WorkloadSettings.__slots__]

    assert [name for name in names if "compile" in name or "dynamo" in name] == []
    assert "--compile" not in (ROOT / "cli.py").read_text()


def test_a_launchers_wish_to_compile_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` sets the variable from a user's configuration."""
    pytest.importorskip("torch")
    from trainer.engine import Engine, make_accelerator
    from trainer.models import load_model
    from trainer.settings import WorkloadSettings

    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    loaded, settings = load_model("chatlm-tiny", dropout=0.0, seed=0), WorkloadSettings()

    engine = Engine(make_accelerator(settings), loaded.model, settings)

    assert engine.model is loaded.model
