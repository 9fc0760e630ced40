"""Special tokens as text: ends that the data has already, and tokens that its prose spells."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from trainer.reading.row import Row


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The special tokens of a tokenizer."""

    ids: frozenset[int]
    spelling: re.Pattern[str]
    """Any of them in a text."""
    ends: re.Pattern[str]
    """Ends of an answer at the end of a text."""

    @classmethod
    def of(cls, tokenizer: Any, *, ends: Iterable[int]) -> Self:
        """The tokenizer's; `ends` are the ids that may end an answer."""
        texts = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        texts |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        end = _any_of(texts[i] for i in ends if i in texts)
        return cls(
            frozenset(texts), re.compile(_any_of(texts.values())), re.compile(rf"(?:{end}\s*)+\Z")
        )

    def without_end(self, text: str) -> str:
        """The text without the ends of an answer that stand at its end: the encoder adds one."""
        return self.ends.sub("", text)

    def spelled_in(self, row: Row) -> str | None:
        """The first special token that a message spells, None without one."""
        for message in row.messages:
            if message.content and (found := self.spelling.search(message.content)):
                return found.group()
        return None


def _any_of(texts: Iterable[str]) -> str:
    """A regular expression for any of them, the longest first; without any it matches nothing."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})"
