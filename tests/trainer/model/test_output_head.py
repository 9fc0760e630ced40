"""A head is taken apart from its model only where it makes the model's own logits."""

import contextlib
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from tests.support import heads, tiny
from trainer.model.output_head import OutputHead, Unfit, find_head

FORMS = {
    "t5": (1.0, None, False),  # it scales what enters the head
    "gemma2": (1.0, 2.0, False),
    "cohere": (0.25, None, False),
    "granite": (1 / 3, None, False),
    "marian": (1.0, None, True),
    "phi": (1.0, None, False),  # its bias is the head's own
}


@pytest.mark.parametrize("family", FORMS)
def test_what_a_model_does_to_its_heads_output_is_measured(family: str) -> None:
    """Its configuration's names are not read."""
    found = find_head(heads.with_head(family))

    assert isinstance(found, OutputHead)
    form = found.form
    scale, cap, is_shifted = FORMS[family]
    assert (form.cap, form.offset is not None) == (cap, is_shifted)
    assert form.scale == pytest.approx(scale, rel=1e-7)


class Changed(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """A Llama whose forward pass ends with a change of its logits."""

    change: Any

    def forward(self, **inputs: Any) -> Any:
        output = super().forward(**inputs)
        output.logits = self.change(self, output.logits)
        return output


def changed(change: Any) -> Any:
    model = heads.with_head("llama")
    model.extra = nn.Parameter(torch.full((heads.VOCABULARY,), 0.5))
    model.__class__, model.change = Changed, change
    return model


def with_other_head(model: Any, head: nn.Module) -> Any:
    model.lm_head = head
    return model


class Custom(nn.Linear):
    """A head of a model's own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


class Keyword(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """A model of someone's own that calls its head by a keyword, which hooks do not see."""

    def forward(self, **inputs: Any) -> Any:
        return CausalLMOutput(logits=self.lm_head(input=self.model(**inputs).last_hidden_state))


def with_keyword() -> Any:
    model = heads.with_head("llama")
    model.__class__ = Keyword
    return model


class Picky(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """A model of someone's own that wants more than tokens, or has no memory for them."""

    wish: Exception

    def forward(self, **inputs: Any) -> Any:
        raise self.wish


def picky(wish: Exception) -> Any:
    model = heads.with_head("llama")
    model.__class__, model.wish = Picky, wish
    return model


def rectified(_: Any, logits: torch.Tensor) -> torch.Tensor:
    """Logits that are never negative."""
    return logits.relu()


UNFIT: list[tuple[str, Any, Unfit]] = [
    ("a learnt scale of the logits", lambda: changed(lambda m, x: x * m.extra), Unfit.OTHER_WEIGHTS),
    ("a learnt bias of the logits", lambda: changed(lambda m, x: x + m.extra), Unfit.OTHER_WEIGHTS),
    ("a function of its own", lambda: changed(rectified), Unfit.OTHER_LOGITS),
    ("a cut vocabulary", lambda: changed(lambda _, x: x[..., :200]), Unfit.OTHER_LOGITS),
    ("a softmax", lambda: changed(lambda _, x: x.log_softmax(-1)), Unfit.OTHER_LOGITS),
    ("a keyword", with_keyword, Unfit.OTHER_LOGITS),
    ("another input", lambda: picky(ValueError("pixel_values")), Unfit.REFUSED),
    (
        "a layer of its own",
        lambda: with_other_head(heads.with_head("llama"), Custom(32, heads.VOCABULARY)),
        Unfit.NO_LINEAR,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "why"), [case[1:] for case in UNFIT], ids=[c[0] for c in UNFIT])
def test_a_head_that_does_not_make_the_models_logits_is_not_used(make: Any, why: Unfit) -> None:
    """Such a model trains as before."""
    assert find_head(make()) is why


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: changed(rectified), "its logits are not the output of its head, scaled, shifted or capped"),
        (
            lambda: changed(lambda m, x: x * m.extra),
            "its logits depend on trained weights beside those of its head",
        ),
    ],
)  # fmt: skip
def test_why_is_told_and_the_logits_are_trained(make: Any, words: str) -> None:
    """The loss is that of `--loss logits`, which says nothing."""
    own, asked = tiny.engine(make()), tiny.engine(make(), loss="logits")
    batch = heads.batch(own.unwrapped, rows=3)

    losses = [e.forward_backward([batch], target_tokens=9).item() for e in (own, asked)]

    assert own.notice == f"the loss builds logits, which takes more memory: {words}"
    assert asked.notice is None
    assert losses[0] == losses[1]


def test_a_check_without_memory_is_out_of_memory() -> None:
    """It says nothing of the head."""
    with pytest.raises(MemoryError):
        find_head(picky(MemoryError()))


def test_an_adapter_on_the_head_is_trained_with_logits() -> None:
    """It computes more than its base layer's weight says."""
    own = tiny.engine(heads.with_head("llama"), lora_rank=2, lora_targets=("lm_head", "q_proj"))

    assert own.notice == (
        "the loss builds logits, which takes more memory: its output head is no plain linear layer"
    )


def test_a_pass_that_fails_keeps_no_activations() -> None:
    """A smaller size is tried in the same process after one that was out of memory."""
    model = heads.with_head("llama")
    head = find_head(model)
    assert isinstance(head, OutputHead)
    batch = heads.batch(model, rows=2)
    kept: list[Any] = []

    def fail(_: Any, __: Any, output: Any) -> None:
        kept.append(weakref.ref(output))
        raise torch.OutOfMemoryError

    model.model.norm.register_forward_hook(lambda _, __, output: kept.append(weakref.ref(output)))
    model.lm_head.register_forward_hook(fail)
    with contextlib.suppress(torch.OutOfMemoryError), head.left_out():
        model(**batch.inputs)

    assert kept
    assert not any(hidden() is not None for hidden in kept)


def test_the_check_draws_no_random_numbers_and_leaves_the_model_as_it_was() -> None:
    """Also where the model has dropout."""
    model = tiny.tiny("t5", dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(7)
    drawn = torch.rand(3)

    torch.manual_seed(7)
    found = find_head(model)

    assert isinstance(found, OutputHead)
    assert torch.equal(torch.rand(3), drawn)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_answers_are_generated_with_the_whole_model() -> None:
    """The head is left out of the loss's own passes alone."""
    model = heads.with_head("llama")
    own, plain = tiny.engine(model), model.eval()
    batch = heads.batch(model, rows=2)

    own.forward_backward([batch], target_tokens=1)
    with own.evaluating():
        own.summed_loss(batch)
        whole: Any = own.unwrapped
        answers = whole.generate(**batch.inputs, max_new_tokens=3)

    assert torch.equal(answers, plain.generate(**batch.inputs, max_new_tokens=3))
