"""Many answers at once are the ones that a model gives one by one; what its maker set stays out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autotune.readings import Outside
from tests.support import answering_script
from tests.support.answering_script import LONGEST, parts
from tests.support.pair_script import found_by
from trainer.batching.collator import Collator
from trainer.evaluation.generation import answer, dry_run_generation
from trainer.model.engine import Engine

ROWS = range(13)


def step_by_step(engine: Engine, collator: Collator, row: int) -> list[int]:
    """The greedy answer to one row from the model's forward pass alone: no cache, no padding."""
    source = torch.from_numpy(collator.store.source(row).astype(np.int64))[None]
    ids: list[int] = []
    model: Any = engine.unwrapped
    with engine.evaluating():
        while len(ids) < LONGEST:
            said = torch.tensor([ids], dtype=torch.int64)
            if collator.encoder.is_causal:
                logits = model(torch.cat([source, said], dim=1)).logits
            else:
                start = torch.tensor([[model.config.decoder_start_token_id]])
                decoder = torch.cat([start, said], dim=1)
                logits = model(input_ids=source, decoder_input_ids=decoder).logits
            token = int(logits[0, -1].argmax())
            if token == collator.encoder.eos:
                break
            ids.append(token)
    return ids


@pytest.mark.parametrize("kind", ["t5", "bart", "llama", "gpt2"])
def test_a_padded_batch_answers_as_one_row_does(kind: str) -> None:
    """Prompts of many lengths, in batches of 5, 5 and 3; new tokens alone."""
    engine, collator = parts(kind)

    found = answer(engine, collator, ROWS, size=5, longest=LONGEST)

    assert sorted(found) == list(ROWS)
    assert len({tuple(ids) for ids in found.values()}) > 3  # they are not all the same
    for row in ROWS:
        assert found[row].tolist() == step_by_step(engine, collator, row)


def test_what_the_models_maker_set_stays_out_and_is_put_back() -> None:
    """Beams and a forced first token would make other answers than training taught."""
    engine, collator = parts("bart")
    plain = answer(engine, collator, ROWS, size=13, longest=LONGEST)
    config: Any = engine.unwrapped.generation_config
    config.update(num_beams=3, forced_bos_token_id=77, min_length=8, no_repeat_ngram_size=1)

    found = answer(engine, collator, ROWS, size=13, longest=LONGEST)

    assert {row: ids.tolist() for row, ids in found.items()} == {
        row: ids.tolist() for row, ids in plain.items()
    }
    assert engine.unwrapped.generation_config is config
    assert config.num_beams == 3
    assert engine.model.training
    assert engine.unwrapped.config.use_cache is False


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_an_answer_ends_at_any_of_the_makers_ends(kind: str) -> None:
    """Not only at the one that training teaches."""
    engine, collator = parts(kind)
    plain = {
        r: ids.tolist()
        for r, ids in answer(engine, collator, ROWS, size=5, longest=LONGEST).items()
    }
    end = next(ids[2] for ids in plain.values() if len(ids) > 3)
    config: Any = engine.unwrapped.generation_config
    config.eos_token_id = [end, collator.encoder.eos]

    found = answer(engine, collator, ROWS, size=5, longest=LONGEST)

    for row, ids in plain.items():
        assert found[row].tolist() == (ids[: ids.index(end)] if end in ids else ids)


def test_a_forced_token_is_kept_where_targets_begin_with_it() -> None:
    """As NLLB's do with a language; elsewhere training never saw it."""
    engine, collator = parts("bart")
    config: Any = engine.unwrapped.generation_config
    first = int(collator.store.target(0)[0])

    config.forced_bos_token_id = first
    forced = answer(engine, collator, ROWS, size=5, longest=LONGEST)
    config.forced_bos_token_id = first + 1
    free = answer(engine, collator, ROWS, size=5, longest=LONGEST)

    assert {ids[0] for ids in forced.values()} == {first}
    assert {int(ids[0]) for ids in free.values() if len(ids)} != {first + 1}


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_as_many_are_answered_at_once_as_training_has_left_room_for(kind: str) -> None:
    """Never more than there are rows; one where there is no room at all."""
    engine, collator = parts(kind)
    engine.dry_run([collator.worst_case_batch(16)])

    wide = dry_run_generation(engine, collator, most=7, longest=LONGEST)

    engine.memory = Full()
    narrow = dry_run_generation(engine, collator, most=7, longest=LONGEST)

    assert wide == 7
    assert narrow == 1


class Full:
    """Memory that has never held more than it does now."""

    device, caches = "cpu", True

    def release_cached(self) -> None: ...
    def reset_peak(self) -> None: ...
    def resident(self) -> int:
        return 100

    peak = allocated = peak_allocated = resident

    def retries(self) -> int:
        return 0

    def synchronize(self) -> None: ...
    def outside(self) -> Outside:
        return Outside()

    def limit(self, amount: int) -> Callable[[], None]:
        return self.synchronize


def test_ranks_share_the_rows_and_one_scores_all(pair: Path) -> None:
    """5 rows on two gloo processes, 3 and 2 of them, under DDP: the figures of one process."""
    (_, loss, bleu, answers), (_, other_loss, other_bleu, _) = found_by("answering", pair)
    _, one_loss, one_bleu, one_answers = answering_script.main()
    assert loss == other_loss == pytest.approx(one_loss, rel=1e-6)
    assert bleu == pytest.approx(one_bleu)
    assert answers == one_answers
    assert other_bleu is None
