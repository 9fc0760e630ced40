"""From rows to token ids: one encoder for each kind of model.

Source: all before the last answer; target: that answer and its end. The chat template writes both, if
the model has one. Without one, a seq2seq model gets what its tokenizer puts around a source and around a
target, and a causal model the turns end to end. The loss counts the target, and in a causal source the
earlier answers and their ends (`loss_spans`).
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jinja2 import TemplateError

from autotune.errors import DataError, ModelError
from trainer.data.chat_template import Rendered, Span, check_template, render
from trainer.data.frame import Frame, read_frame
from trainer.data.special_tokens import SpecialTokens
from trainer.data.token_places import place
from trainer.reading.faults import FIX_ROW
from trainer.reading.row import ANSWERS, Message, Row

PROBE = Row.pair("a", "b")
"""Its template's text shows how an answer ends."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row, untruncated."""

    source: list[int]
    target: list[int]
    loss_spans: tuple[Span, ...] = ()
    """The parts of the source that the loss counts as well."""
    is_last_only: bool = False
    """Whether the loss counts the last answer alone, though there are earlier ones."""
    is_altered: bool = False
    """Whether the chat template leaves out a part of the last answer, or a question or system message."""
    spelled: str | None = None
    """A special token that the text spells, and that becomes this token; None without one."""

    def loss_spans_in_last(self, length: int) -> list[Span]:
        """`loss_spans` within the last `length` tokens, without the first one, which nothing predicts."""
        gone = len(self.source) - length
        spans = [(max(1, first - gone), last - gone) for first, last in self.loss_spans]
        return [(first, last) for first, last in spans if first < last]


class Encoder:
    """Encodes rows for one tokenizer and kind of model.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token, does not take targets, or has a chat
            template that cannot be used.
    """

    def __init__(self, tokenizer: Any, *, is_causal: bool) -> None:
        self.tokenizer = tokenizer
        self.is_causal = is_causal
        if tokenizer.eos_token_id is None:
            raise ModelError("the model's tokenizer has no end-of-sequence token", "set eos_token")
        self.eos: int = tokenizer.eos_token_id
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.templated = bool(getattr(tokenizer, "chat_template", None))
        if self.templated:
            check_template(tokenizer)
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        end = None if is_causal else self.eos
        self._source = read_frame(tokenizer, is_target=False, end=end)
        self._target = Frame() if is_causal else read_frame(tokenizer, is_target=True, end=end)
        self._specials = SpecialTokens.of(tokenizer, ends=[self.eos])
        self._advice = FIX_ROW
        self.end = self._find_end()
        """The token that ends an answer: the template's end of turn, or the end of sequence."""
        self._specials = SpecialTokens.of(tokenizer, ends=[self.eos, self.end])

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """The smallest type that holds every token id."""
        largest = max(self.tokenizer.get_vocab().values(), default=0)
        return np.uint16 if max(largest, len(self.tokenizer)) < 1 << 16 else np.uint32

    @property
    def tokenizer_hash(self) -> str:
        """A hash of everything that encoding depends on."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        text = repr(vocabulary) if self._backend is None else self._backend.to_str()
        template = getattr(self.tokenizer, "chat_template", None)
        specials = sorted(self.tokenizer.special_tokens_map.items())  # a template may write them
        parts = (text, self.is_causal, template, specials, self._source, self._target)
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Each row, untruncated.

        Raises:
            DataError: the chat template refuses a row, or a row has tools and there is no template.
        """
        if self._backend is not None:  # the tokenizer's file may ask for truncation and padding
            self._backend.no_truncation()
            self._backend.no_padding()
        rows = [self._without_ends(row) for row in rows]
        if self.templated:
            encoded = self._encode_templated(rows)
        else:
            for row in rows:
                _refuse_tools(row)
            encoded = self._encode_turns(rows) if self.is_causal else self._encode_pairs(rows)
        spelled = [self._specials.spelled_in(row) for row in rows]
        return [replace(e, spelled=s) if s else e for e, s in zip(encoded, spelled, strict=True)]

    def fit(self, row: Encoded, *, max_source: int, max_target: int) -> tuple[list[int], list[int]]:
        """Source and target within the limits.

        Seq2seq: the first tokens of each; a source keeps its end. Causal: a conversation has the two limits
        together. Its source loses the beginning until `max_source` tokens are left, even where the loss
        would have counted them; then the target loses its end.
        """
        source, target = row.source, row.target
        if not self.is_causal:
            return self._source.fit(source, max_source), target[:max_target]
        most = max_source + max_target
        target = target[: max(max_target, most - len(source))]
        return source[max(0, len(source) + len(target) - most) :], target

    def _encode_pairs(self, rows: Sequence[Row]) -> list[Encoded]:
        sources = self._ids([row.prompt for row in rows])
        targets = self._ids([row.response for row in rows], is_target=True)
        return [
            Encoded(self._source.around(source), self._target.around(target))
            for source, target in zip(sources, targets, strict=True)
        ]

    def _encode_turns(self, rows: Sequence[Row]) -> list[Encoded]:
        """Without a template: the turns end to end, and the end of sequence after each answer."""
        pieces = [_joined(row.messages[:-1]) for row in rows]
        flat = iter(self._ids([text for parts in pieces for text, _, _ in parts]))
        targets = self._ids([row.response for row in rows])
        encoded = []
        for parts, target in zip(pieces, targets, strict=True):
            source, spans = list(self._source.before), []
            for number, (_, is_answer, is_learnt) in enumerate(parts):
                first = len(source)
                source += [*next(flat), self.eos] if is_answer else next(flat)
                if is_learnt and number > 0:  # before the first there is nothing to follow from
                    spans.append((first, len(source)))
            encoded.append(Encoded(self._begun(source), [*target, self.eos], tuple(spans)))
        return encoded

    def _encode_templated(self, rows: Sequence[Row]) -> list[Encoded]:
        rendered = [self._render(row) for row in rows]
        if not self.is_causal:
            return self._encode_apart(rendered)
        return [
            Encoded(
                self._begun(each.ids[: each.begin]),
                self._ended(each.ids[each.begin :], each.ids[each.tail :]),
                each.loss_spans,
                is_last_only=text.is_last_only or not each.is_complete,
                is_altered=text.is_altered,
            )
            for text, each in zip(rendered, place(self.tokenizer, rendered), strict=True)
        ]

    def _encode_apart(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """A seq2seq model's template: its encoder reads the prompt, its decoder the last answer."""
        sources = self._ids([each.text[: each.begin] for each in rendered])
        targets = self._ids([each.text[each.begin :] for each in rendered], is_target=True)
        return [
            Encoded(
                source, self._ended([*self._target.before, *target], target), (), False, is_altered
            )
            for source, target, is_altered in zip(
                sources, targets, (each.is_altered for each in rendered), strict=True
            )
        ]

    def _ended(self, target: list[int], tail: list[int]) -> list[int]:
        """The target, with the end of sequence where its tail has no special token that ends it."""
        return target if self._specials.ids.intersection(tail) else [*target, self.eos]

    def _render(self, row: Row) -> Rendered:
        try:
            return render(self.tokenizer, row)
        except TemplateError as error:
            raise DataError(
                f"the model's chat template refuses {_beginning(row)}: {error}", self._advice
            ) from error

    def _find_end(self) -> int:
        if not self.templated:
            return self.eos
        try:
            rendered = self._render(PROBE)
        except DataError:  # it wants more than a prompt and an answer, or is broken
            self._advice = "it refuses any prompt and answer alone: check the model's chat_template"
            return self.eos
        (tail,) = self._ids([rendered.text[rendered.content[1] :]])
        return next((token for token in tail if token in self._specials.ids), self.eos)

    def _without_ends(self, row: Row) -> Row:
        """The row without the ends that its texts spell: a seq2seq prompt and each answer get one."""
        messages = [
            replace(message, content=self._specials.without_end(message.text))
            if message.text and (message.role == ANSWERS or not self.is_causal)
            else message
            for message in row.messages
        ]
        return replace(row, messages=tuple(messages))

    def _begun(self, source: list[int]) -> list[int]:
        """The source, or one start token if it is empty: a causal model needs a token before the target."""
        start = self.tokenizer.bos_token_id
        return source or [self.eos if start is None else start]

    def _ids(self, texts: list[str], *, is_target: bool = False) -> list[list[int]]:
        if self._backend is not None:  # transformers' own call takes twice the time, for its masks
            return [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        if not texts:
            return []
        argument = {"text_target" if is_target else "text": texts}
        ids: list[list[int]] = self.tokenizer(
            **argument, add_special_tokens=False, truncation=False
        )["input_ids"]
        return ids


def _joined(messages: Sequence[Message]) -> list[tuple[str, bool, bool]]:
    """(text, whether it is an answer, whether it is learnt); other messages in a row are joined."""
    pieces: list[tuple[str, bool, bool]] = []
    for is_answer, group in itertools.groupby(messages, lambda message: message.role == ANSWERS):
        if is_answer:
            pieces += [(message.text, True, message.is_learnt) for message in group]
        else:
            pieces.append(("\n".join(message.text for message in group), False, False))
    return pieces


def _refuse_tools(row: Row) -> None:
    if row.tools or any("tool_calls" in message.extra for message in row.messages):
        raise DataError(
            f"{_beginning(row)} has tools, and the model has no chat template to write them",
            "train a model whose template writes tools, or drop the row",
        )


def _beginning(row: Row) -> str:
    lines = row.prompt.strip().splitlines()[:1] or [""]
    return f"the conversation that begins {lines[0][:40]!r}"
