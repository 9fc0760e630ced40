"""docs/cases.md names a test for each case, and each test that it names is there."""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cases.md"
REFERENCE = re.compile(r"[A-Za-z][\w.-]*#\d+")
MODULE = re.compile(r"`((?:autotune|trainer|profiles)/[\w/]+\.py)`")


@dataclass(frozen=True, slots=True)
class Row:
    """One case of the table."""

    number: int
    case: str
    answer: str
    tests: tuple[tuple[str, str], ...]
    """File and function."""


def rows() -> list[Row]:
    """The table's, without its head."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if re.match(r"\| *\d", line)
    ]
    return [
        Row(int(number), case, answer, tuple(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)))
        for number, case, answer, tests in cells
    ]


@functools.cache
def functions(file: str) -> frozenset[str]:
    """The test functions of a file; none where there is no such file."""
    path = ROOT / file
    tree = ast.parse(path.read_text() if path.exists() else "")
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_the_cases_are_numbered_in_their_order() -> None:
    """None is left out, and none counted twice."""
    assert len(rows()) >= 26
    assert [row.number for row in rows()] == list(range(1, len(rows()) + 1))


def test_every_case_says_where_it_comes_from_and_what_becomes_of_it() -> None:
    """A public issue, and a module that answers for it."""
    without = [
        row.number
        for row in rows()
        if not REFERENCE.search(row.case) or not MODULE.search(row.answer)
    ]

    assert without == []


def test_every_case_has_a_test_that_is_there() -> None:
    """By name, in the file that is named; a test function, not a fixture."""
    missing = [
        f"{row.number}: {file}::{name}"
        for row in rows()
        for file, name in row.tests
        if not name.startswith("test_") or name not in functions(file)
    ]
    untested = [row.number for row in rows() if not row.tests]

    assert (missing, untested) == ([], [])
