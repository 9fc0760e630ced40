"""Data that a model cannot take are refused by a count: too long, or with tokens that it does not have."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from autotune.errors import UsageError
from tests.support import tiny
from tests.support.data_files import json_lines
from tests.support.runs import Messages, run, settings
from trainer.config.settings import TrainSettings
from trainer.events import Built, Evaluated
from trainer.model.data_fit import check_vocabulary, positions, vocabulary_size
from trainer.workload import build

TABLE = {"gpt2": 510, "bart": 512}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_positions_are_those_that_a_forward_pass_takes(family: str) -> None:
    """One more is an index out of range, or there is no such bound."""
    model = tiny.tiny(family)
    most = positions(model)

    assert most == TABLE.get(family)

    def forward(length: int) -> None:
        ids = torch.ones((1, length), dtype=torch.long)
        decoder = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        model(input_ids=ids, **decoder)

    forward(most or 600)
    if most is not None:
        with pytest.raises(IndexError):
            forward(most + 1)


@pytest.mark.parametrize("kind", ["Roberta", "OpenAIGPT"])
def test_positions_that_count_from_the_padding_are_fewer(kind: str) -> None:
    """RoBERTa's table of 20 has 18 positions behind its padding, 1; the first GPT calls its own otherwise."""
    sizes: dict[str, dict[str, Any]] = {
        "Roberta": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 16, "max_position_embeddings": 20, "pad_token_id": 1, "is_decoder": True,
        },
        "OpenAIGPT": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 18},
    }  # fmt: skip
    names = {"Roberta": "RobertaForCausalLM", "OpenAIGPT": "OpenAIGPTLMHeadModel"}
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, **sizes[kind])
    model = getattr(transformers, names[kind])(config)

    assert positions(model) == 18
    model(input_ids=torch.full((1, 18), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 19), 5))


def long_run(family: str, folder: Path, *, words: int) -> TrainSettings:
    """A run of one step on rows whose prompt and response have about that many tokens each."""
    text = " ".join(str(n) for n in range(words))
    rows = json_lines(folder, [{"prompt": text, "response": text}] * 8)
    plain = settings(rows, folder / "run", max_steps=1, eval_data=(str(rows),), generate_rows=2)
    workload = replace(
        plain.workload, model=str(tiny.save(family, folder / family)),
        max_source_length=600, max_target_length=600,
    )  # fmt: skip
    return replace(plain, workload=workload)


@pytest.mark.parametrize(("family", "words"), [("gpt2", 200), ("bart", 400)])
def test_data_that_a_model_cannot_take_are_refused(family: str, words: int, tmp_path: Path) -> None:
    """Before the run, and before a probe: by a count, not by an index in the middle of a step."""
    chosen = long_run(family, tmp_path, words=words)
    said: Messages = []

    with pytest.raises(UsageError, match=f"the model takes {TABLE[family]}; lower"):
        run(chosen, heard=said)
    with pytest.raises(UsageError, match="the longest sequence of the data has"):
        build({**chosen.workload.as_json(), "effective": 8, "effective_fixed": False})

    assert not [event for event in said if isinstance(event, Built)]


def test_answers_end_where_the_positions_do(tmp_path: Path) -> None:
    """A causal model's answers follow their prompts: 510 positions less those."""
    chosen = replace(long_run("gpt2", tmp_path, words=60), max_new_tokens=2000)

    (evaluated,) = [event for event in run(chosen) if isinstance(event, Evaluated)]

    assert evaluated.generated_rows == 2


def collator(*, largest: list[int], pad: int = 0, tokens: int = 2053) -> Any:
    """What `check_vocabulary` reads of a collator: the largest id and its row, and the tokenizer."""
    stats = SimpleNamespace(largest_id=largest)
    encoder = SimpleNamespace(pad=pad, tokenizer=range(tokens))
    return SimpleNamespace(store=SimpleNamespace(stats=stats), encoder=encoder)


HINT = (
    "use the tokenizer that belongs to the model, or enlarge the model: "
    "model.resize_token_embeddings(2053), then save_pretrained"
)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_token_that_the_model_does_not_have_is_refused(family: str) -> None:
    """With its row, counted from 1, and both sizes; so is a padding token that was added."""
    model = tiny.tiny(family)

    check_vocabulary(model, collator(largest=[6, 2047]))
    with pytest.raises(UsageError) as of_data:
        check_vocabulary(model, collator(largest=[6, 2048]))
    with pytest.raises(UsageError) as of_padding:
        check_vocabulary(model, collator(largest=[6, 9], pad=2048))

    known = (
        "and the model's embedding has 2,048 rows (ids 0 to 2,047); the tokenizer has 2,053 tokens"
    )
    assert str(of_data.value) == f"row 7 of the data has the token id 2,048, {known}; {HINT}"
    assert str(of_padding.value) == f"the padding token has the id 2,048, {known}; {HINT}"


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_an_output_head_with_fewer_rows_counts(family: str) -> None:
    """The loss reads a label as an index into it."""
    model = tiny.tiny(family)
    model.set_output_embeddings(torch.nn.Linear(32, 2000, bias=False))

    assert vocabulary_size(model) == 2000


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_tokenizer_that_has_grown_is_refused_before_a_step(family: str, tmp_path: Path) -> None:
    """Tokens were added, and the model's embedding was never resized: before a run and before a probe."""
    folder = tiny.save(family, tmp_path / family)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<table>", "<report>"])
    tokenizer.save_pretrained(folder)
    plain = {"prompt": "one", "response": "two"}
    rows = json_lines(
        tmp_path, [plain, plain, {"prompt": "sum <table>", "response": "<report> six"}]
    )
    chosen = settings(rows, tmp_path / "run", max_steps=1)
    chosen = replace(chosen, workload=replace(chosen.workload, model=str(folder)))
    said: Messages = []

    with pytest.raises(UsageError, match="row 3 of the data has the token id 2,049, and"):
        run(chosen, heard=said)
    with pytest.raises(UsageError, match="the tokenizer has 2,050 tokens; use the tokenizer"):
        build({**chosen.workload.as_json(), "effective": 8, "effective_fixed": False})

    assert not [event for event in said if isinstance(event, Built)]
