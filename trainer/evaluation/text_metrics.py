"""Scores of answers against references: corpus BLEU-4, chrF, exact match. No tensors.

BLEU's tokenizer is `zh` (characters) for Chinese references: 13a would take a sentence as one word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CJK = (("\u3040", "\u30ff"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"))
"""Ranges of kana and ideographs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of a set of answers: BLEU and chrF from 0 to 100, `exact_match` from 0 to 1."""

    bleu: float
    chrf: float
    exact_match: float
    words: str
    """sacrebleu's tokenizer for BLEU: `zh` or `13a`."""


def score(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """The scores of at least one answer, each against its reference.

    Encode and decode the references first, like the answers. If the tokenizer turns a full-width comma
    into a plain one, no answer could match the file's text.
    """
    # 0.3 s of imports, which nothing else needs
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    assert len(answers) == len(references) > 0
    words = "zh" if is_mostly_cjk(references) else "13a"
    bleu: Any = BLEU(tokenize=words)
    right = sum(a.strip() == r.strip() for a, r in zip(answers, references, strict=True))
    return Scores(
        bleu=float(bleu.corpus_score(answers, [references]).score),
        chrf=float(CHRF().corpus_score(answers, [references]).score),
        exact_match=right / len(references),
        words=words,
    )


def is_mostly_cjk(texts: Sequence[str]) -> bool:
    """Whether most of the letters are Chinese or Japanese."""
    letters = [c for text in texts for c in text if c.isalpha()]
    return 2 * sum(any(a <= c <= z for a, z in CJK) for c in letters) > len(letters)
