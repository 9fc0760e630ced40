"""How near answers come to their references: corpus BLEU-4, chrF, exact match. No tensors.

BLEU counts over the whole corpus at once, by sacrebleu, whose words are Chinese characters where the
references are Chinese: 13a, made for English, would take a whole sentence for a single word.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CJK = (("\u3040", "\u30ff"), ("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"))
"""First and last of kana and of the ideographs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of a whole set of answers; all but `exact_match`, a share, are of 100, as sacrebleu says them."""

    bleu: float
    chrf: float
    exact_match: float
    words: str
    """sacrebleu's name of what BLEU took for words: `zh` or `13a`."""


def score(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """The scores of those answers, at least one, each against its own reference.

    References are to have been through the tokenizer as the answers were: where it makes a full-width
    comma a plain one, no answer could match the text of the file.
    """
    # a third of a second of imports, in workers and where nothing else needs it
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
    """Whether most of their letters are Chinese or Japanese."""
    letters = [c for text in texts for c in text if c.isalpha()]
    return 2 * sum(any(a <= c <= z for a, z in CJK) for c in letters) > len(letters)
