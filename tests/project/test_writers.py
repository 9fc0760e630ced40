"""Text reaches a terminal or a log through `autotune.terminal` alone, or through rich where every row is cleaned."""

import ast
from collections.abc import Iterator

import pytest

from bench.map import modules

WRITER = "autotune.terminal"
RICH = {"dashboard.live", "dashboard.data_page"}
"""Their consoles get rows that passed `spaced`."""
BEFORE_IT = {"chatlm.__init__"}
"""It checks that `autotune` is ours before it imports it, and escapes its one line itself."""
STREAMS = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}
PRINTERS = {
    "print", "traceback.print_exc", "traceback.print_exception", "traceback.print_stack", "warnings.warn",
    "typer.echo", "typer.secho", "logging.basicConfig", "logging.StreamHandler",
}  # fmt: skip
EXITS = {"sys.exit", "SystemExit", "exit", "quit", "typer.Exit"}


def raw_writes(source: str, *, has_console: bool = False) -> Iterator[str]:
    """The calls that write to the terminal past the writer."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        owner, _, method = name.rpartition(".")
        is_stream = any(owner == s or owner.startswith(f"{s}.") for s in STREAMS)
        is_descriptor = name == "os.write" and ast.unparse(node.args[0]) in ("1", "2")
        has_words = name in EXITS and any(
            isinstance(a, ast.JoinedStr)
            or (isinstance(a, ast.Constant) and isinstance(a.value, str))
            for a in node.args
        )
        is_printed = any(k.arg == "file" and ast.unparse(k.value) in STREAMS for k in node.keywords)
        if (
            name in PRINTERS
            or (is_stream and method in ("write", "writelines", "reconfigure"))
            or is_descriptor
            or has_words
            or is_printed
            or ((method or name) in ("Console", "Live") and not has_console)
        ):
            yield f"{node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("name", sorted(modules().keys() - {WRITER} - BEFORE_IT))
def test_nothing_writes_past_the_writer(name: str) -> None:
    """A name of a file, a column or a device must not steer the terminal, and a full disk has a message."""
    source = modules()[name].read_text(encoding="utf-8")

    assert list(raw_writes(source, has_console=name in RICH)) == []


@pytest.mark.parametrize(
    "line",
    [
        "print(name)",
        "sys.stdout.write(name)",
        "sys.stderr.buffer.write(name)",
        "os.write(2, name)",
        "traceback.print_exc()",
        "show(file=sys.stderr)",
        "sys.exit(f'chatlm: {name}')",
        "rich.console.Console().print(name)",
    ],
)
def test_a_write_past_the_writer_is_found(line: str) -> None:
    """By each of the ways."""
    assert list(raw_writes(line)) != []
