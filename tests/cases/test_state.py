"""What the first optimizer step would allocate is there before the first probe."""

import torch

from tests.support import tiny
from trainer.config.settings import WorkloadSettings
from trainer.model.accelerator import make_accelerator
from trainer.model.engine import Engine
from trainer.pretrained.loading import load_model
from trainer.reading.readers import bundled
from trainer.workload import build

SETTINGS = WorkloadSettings(max_source_length=16, max_target_length=16)


def held(engine: Engine) -> int:
    """Bytes of gradients and optimizer state."""
    gradients = [p.grad for p in engine.unwrapped.parameters() if p.grad is not None]
    states = [
        value
        for state in engine.raw_optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    return sum(tensor.untyped_storage().nbytes() for tensor in gradients + states)


def test_gradients_and_adams_state_are_resident_before_the_first_probe() -> None:
    """Three times the weights, which the first real step neither adds to nor replaces."""
    workload = build({**SETTINGS.as_json(), "effective": 2, "effective_fixed": False})
    engine = workload.engine
    weights = sum(p.untyped_storage().nbytes() for p in engine.unwrapped.parameters())

    before = held(engine)
    workload.forward_backward(2)
    workload.optimizer_step()

    assert before >= 3 * weights
    assert held(engine) == before


def test_state_that_was_made_resident_changes_no_step() -> None:
    """Adam counts its steps: the first real one is still its first."""
    after = []
    for resident in (True, False):
        loaded = load_model("chatlm-tiny", dropout=0.0, seed=1)
        collator = tiny.collator(loaded.model, loaded.encoder, bundled("valid"), longest=16)
        engine = Engine(make_accelerator(SETTINGS), loaded.model, SETTINGS)
        if resident:
            engine.preallocate(collator.worst_case_batch(1))
        batch = collator.batch([1, 2])
        engine.forward_backward([batch], target_tokens=batch.target_tokens)
        engine.optimizer_step(1e-3)
        after.append([parameter.detach().clone() for parameter in engine.unwrapped.parameters()])

    assert all(torch.equal(one, other) for one, other in zip(*after, strict=True))
