"""What answers are worth: sacrebleu's figures, over the corpus, in the words of the language."""

import pytest

from trainer.evaluation.text_metrics import is_mostly_cjk, score

CHINESE = ["意大利的首都是罗马。", "春天", "6、5、4、3、2、1"]


def test_right_answers_score_full() -> None:
    """Spaces around them do not count."""
    found = score([f" {text}\n" for text in CHINESE], CHINESE)

    assert found.exact_match == 1.0
    assert found.bleu == pytest.approx(100)
    assert found.chrf == pytest.approx(100)


def test_bleu_is_of_the_corpus_not_a_mean_of_sentences() -> None:
    """The short answer has no 4-gram of its own: a sentence's BLEU would be 0, and the mean 50."""
    found = score(["意大利的首都是罗马。", "秋"], ["意大利的首都是罗马。", "春"])

    assert found.bleu > 80
    assert found.exact_match == 0.5


def test_chinese_is_scored_by_characters() -> None:
    """For 13a the sentence is one word, and wrong: BLEU would be 0."""
    found = score(["意大利的首都是米兰。"], ["意大利的首都是罗马。"])

    assert found.words == "zh"
    assert found.bleu > 50


def test_english_is_scored_by_words() -> None:
    """A quoted name in another script changes nothing."""
    texts = ["the capital of Italy is Rome", "罗马 is what it is called in Chinese"]

    assert score(texts, texts).words == "13a"
    assert not is_mostly_cjk(texts)
    assert is_mostly_cjk(["ひらがな and kana", "カタカナと漢字"])


def test_empty_answers_are_wrong_and_no_error() -> None:
    """An untrained model ends at once."""
    found = score(["", ""], ["春天", "罗马"])

    assert (found.exact_match, found.bleu, found.chrf) == (0.0, 0.0, 0.0)
