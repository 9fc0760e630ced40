"""What is wrong with a record, and values as messages show them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

ROW_BYTES = 16 << 20
"""Of the text of a row: four million tokens, far more than a model is trained on at once."""
ROW_VALUES = 1 << 20
"""Of the texts, numbers, lists and objects in a row: each takes up to 200 bytes in memory."""
VALUE_BYTES = ROW_BYTES // ROW_VALUES
"""What a value counts beside its text, so that one limit holds for both."""
MOST_SHOWN, MOST_NAME = 40, 80
"""Characters of a value, and of a column's name, in a message."""
SPLIT = "split it or drop it"
FIX_ROW = "fix the row or drop it"
NOT_TEXT = "make it a string or drop the row"


class Fault(Exception):
    """What is wrong, in which column, and what to do; the reader adds the file and the row."""

    def __init__(self, what: str, hint: str, *, column: str | None = None) -> None:
        super().__init__(what)
        self.what, self.hint, self.column = what, hint, column


def check_text(value: Any, column: str, turn: str = "") -> None:
    """Raises Fault where it is no text, or no whole text; `turn` says where in the column."""
    if not isinstance(value, str):
        what = "is missing or null" if value is None else f"is {kind(value)}, not text"
        raise Fault(f"{turn or 'it'} {what}", NOT_TEXT, column=column)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"half a character, {value[error.start]!r}, at place {error.start}"
        raise Fault(half, "fix the text or drop the row", column=column) from error


def check_names(names: Sequence[str], where: str = "") -> None:
    """Raises Fault where a column, or a field in `where`, has the name of another."""
    for name, count in Counter(names).items():
        if count > 1 and name.strip():
            raise Fault(f"has {shown(name)} {count} times{where}", "drop or rename all but one")


def kind(value: Any) -> str:
    """The type and the beginning of a value."""
    return f"{type(value).__name__} {quoted(value if isinstance(value, str) else str(value))}"


def quoted(value: Any) -> str:
    """The beginning of a value, as Python writes it."""
    if isinstance(value, str):
        return repr(value[:MOST_SHOWN])
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def shown(name: str) -> str:
    """The name of a column, safe for a terminal."""
    if len(name) > MOST_NAME:
        name = f"{name[:MOST_NAME]}…"
    return name if name and name.isprintable() and name == name.strip() else repr(name)
