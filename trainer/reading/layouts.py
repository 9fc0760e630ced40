"""Which columns of a record are what: the layouts of public data sets, each as one `Row`.

A record's layout follows from the names of its columns that are not null; capitals and surrounding
blanks do not count.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.reading.conversations import (
    earlier_turns,
    messages_of,
    said,
    through_last_learnt,
    tools_of,
)
from trainer.reading.faults import NOT_TEXT, Fault, check_text, shown
from trainer.reading.row import ANSWERS, Message, Row

PAIRS = (
    ("prompt", "response"), ("prompt", "completion"), ("question", "answer"), ("query", "response"),
    ("instruction", "output"),
)  # fmt: skip
"""Names of a prompt and its answer; the first pair that a record has wins, also over messages."""
CONVERSATIONS = ("messages", "conversations", "conversation")
KNOWN = frozenset(
    [name for pair in PAIRS for name in pair]
    + [*CONVERSATIONS, "input", "system", "history", "tools"]
)
MOST_LISTED = 20
"""Names in a message."""
MOST_KNOWN = 1 << 20
"""Characters of the names whose layouts are kept: each row of JSON may have other names."""
NAME_THEM = "name them with --prompt-column and --response-column, or --messages-column"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that the user named; None leaves the choice to the known layouts."""

    prompt: str | None = None
    response: str | None = None
    messages: str | None = None

    @property
    def named(self) -> tuple[str, ...]:
        return tuple(name for name in (self.prompt, self.response, self.messages) if name)


BY_NAME = Columns()
"""Nothing named: a record's columns are known by their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns to read, by their names in the record: prompt and response, or messages. Empty: none."""

    prompt: str = ""
    input: str = ""
    """The second part of the prompt."""
    response: str = ""
    messages: str = ""
    system: str = ""
    history: str = ""
    tools: str = ""

    @property
    def used(self) -> tuple[str, ...]:
        """The names of the columns that are read."""
        main = (self.prompt, self.input, self.response, self.messages)
        return tuple(name for name in (*main, self.system, self.history, self.tools) if name)

    @property
    def is_bare(self) -> bool:
        return not (self.system or self.history or self.tools)

    @property
    def words(self) -> str:
        """How the columns are read, for people."""
        if self.messages:
            text = f"{shown(self.messages)} is the conversation"
        else:
            also = f" and {shown(self.input)} are" if self.input else " is"
            text = f"{shown(self.prompt)}{also} the prompt, {shown(self.response)} the answer"
        beside = [shown(name) for name in (self.system, self.history, self.tools) if name]
        return f"{text}, with {' and '.join(beside)}" if beside else text

    def row(self, record: Mapping[str, Any]) -> Row:
        """The record as a row; raises Fault."""
        if self.messages:
            messages = messages_of(record[self.messages], self.messages)
        else:
            prompt, response = self._prompt(record), record[self.response]
            if self.is_bare and isinstance(prompt, str) and isinstance(response, str):
                check_text(prompt, self.prompt)
                check_text(response, self.response)
                return Row.pair(prompt, response)  # nearly every row
            messages = [*said(prompt, "user", self.prompt), *said(response, ANSWERS, self.response)]
        if self.history:
            messages = [*earlier_turns(record[self.history], self.history), *messages]
        if self.system:
            messages = [*self._system(record[self.system], messages), *messages]
        learnt = through_last_learnt(messages, self.messages or self.response)
        return Row(tuple(learnt), tools_of(record[self.tools], self.tools) if self.tools else ())

    def _prompt(self, record: Mapping[str, Any]) -> Any:
        """The prompt, and the input in a line of its own; a blank one of the two is left out."""
        prompt = record[self.prompt]
        if not self.input or not isinstance(prompt, str):
            return prompt
        check_text(record[self.input], self.input)
        return "\n".join(text for text in (prompt, record[self.input]) if text.strip()) or prompt

    def _system(self, text: Any, messages: Sequence[Message]) -> list[Message]:
        check_text(text, self.system)
        if not text.strip():
            return []
        if messages[0].role != "system":
            return [Message("system", text)]
        if messages[0].content != text:
            what = "the conversation begins with another system message"
            raise Fault(what, "drop one of the two", column=self.system)
        return []


def find_layout(names: tuple[str, ...], columns: Columns) -> Layout | None:
    """The layout of a record with those columns; None if it has none. Raises Fault."""

    def find(known: str, named: str | None = None) -> str:
        if named in names:
            return named or ""
        same = [name for name in names if normal(name) == normal(named or known)]
        if len(same) > 1:
            both = " and ".join(map(shown, same))
            raise Fault(f"has the columns {both}, which are one name here", "drop one")
        return same[0] if same else ""

    beside = {"system": find("system"), "tools": find("tools")}
    if columns.messages:
        messages = find("messages", columns.messages)
        return Layout(messages=messages, **beside) if messages else None
    for prompt, response in PAIRS:
        asked, answered = find(prompt, columns.prompt), find(response, columns.response)
        if asked and answered:
            beside["history"] = find("history")
            more = find("input") if normal(asked) == "instruction" else ""
            return Layout(prompt=asked, input=more, response=answered, **beside)
    for name in () if columns.named else CONVERSATIONS:
        if find(name):
            return Layout(messages=find(name), **beside)
    return None


class Layouts:
    """The layouts of a file's records, each found once."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._known: dict[tuple[str, ...], Layout] = {}
        self._characters = 0

    def of(self, record: Mapping[str, Any]) -> Layout:
        """The layout of the columns that are not null; raises Fault where there is none."""
        names = tuple([name for name, v in record.items() if v is not None])
        return self._known.get(names) or self._found(names, record)

    def row(self, record: Mapping[str, Any]) -> Row:
        """The record as a row; raises Fault."""
        return self.of(record).row(record)

    def _found(self, names: tuple[str, ...], record: Mapping[str, Any]) -> Layout:
        if layout := find_layout(names, self._columns):
            self._characters += sum(100 + len(name) for name in names)
            if self._characters < MOST_KNOWN:
                self._known[names] = layout
            return layout
        layout = find_layout(tuple(record), self._columns)
        if layout is None:
            raise missing_column(record, self._columns)
        null = next(name for name in layout.used if record[name] is None)
        raise Fault("it is missing or null", NOT_TEXT, column=null)


def missing_column(names: Iterable[str], columns: Columns) -> Fault:
    """What a record with those columns lacks."""
    names = list(names)
    found = f"(found: {listed(sorted(names))})"
    known = set(map(normal, names))
    for name in columns.named:
        if normal(name) not in known:
            near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
            hint = f"did you mean {' or '.join(map(shown, near))}?" if near else "name another"
            return Fault(f"has no column {shown(name)} {found}", hint)
    for prompt, response in PAIRS:
        if columns.prompt or prompt in known:
            return Fault(f"has no column {response} {found}", NAME_THEM)
        if columns.response or response in known:
            return Fault(f"has no column {prompt} {found}", NAME_THEM)
    return Fault(f"has no columns that are known {found}", NAME_THEM)


def listed(names: Sequence[str]) -> str:
    """The names, or the first of many."""
    more = f" and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else ""
    return (", ".join(map(shown, names[:MOST_LISTED])) or "none") + more


def useful(names: Iterable[str], columns: Columns) -> list[str]:
    """Those of the columns that a layout may read."""
    wanted = KNOWN | set(map(normal, columns.named))
    return [name for name in names if normal(name) in wanted]


def normal(name: str) -> str:
    """The name as layouts compare it."""
    return name.strip().lower()
