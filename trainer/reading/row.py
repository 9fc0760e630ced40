"""One sample as text: the messages of a conversation, whatever the file called them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

ANSWERS = "assistant"
"""The role whose messages are answers."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message, as the chat template gets it."""

    role: str
    content: str | None
    """None where the data has null, as beside tool calls."""
    is_learnt: bool = False
    """Whether the loss counts it: an answer that the data does not mask."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other fields that a template may write: `tool_calls`, `name`, `reasoning_content`."""

    @property
    def text(self) -> str:
        return self.content or ""

    def as_dict(self) -> dict[str, Any]:
        """The message for a template; null content is left out, since templates write it as `None`."""
        content = {} if self.content is None else {"content": self.content}
        return {"role": self.role, **content, **self.extra}


@dataclass(frozen=True, slots=True)
class Row:
    """One sample. Its last message is its last learnt answer: what follows cannot change the loss."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    """Descriptions of the tools that the model may call, for the template."""

    @classmethod
    def pair(cls, prompt: str, response: str) -> Self:
        """A prompt and its response."""
        return cls((Message("user", prompt), Message(ANSWERS, response, is_learnt=True)))

    @classmethod
    def conversation(cls, turns: Sequence[tuple[str, str]]) -> Self:
        """A conversation of (role, content) that ends with an answer; every answer is learnt."""
        return cls(tuple(Message(r, c, is_learnt=r == ANSWERS) for r, c in turns))

    @property
    def prompt(self) -> str:
        """All messages before the last, as one text, for a model without a chat template."""
        return "\n".join(message.text for message in self.messages[:-1])

    @property
    def response(self) -> str:
        """The text of the last message."""
        return self.messages[-1].text
