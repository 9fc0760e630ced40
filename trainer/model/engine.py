"""One optimizer step with the same gradient for every micro-batch size; probe and training share it.

The loss of a micro-batch is its *sum* over target tokens, times `world size ÷ target tokens of the
step`. DDP averages gradients over ranks, and the world size undoes that. The result is the mean over
the step's target tokens, whatever the number and sizes of micro-batches. Gradients are exchanged once
a step and stay allocated between steps, so memory is the same at any accumulation.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from autotune.devices.allocator import CudaMemory, DeviceMemory, HostMemory
from trainer.batching.collator import IGNORED, Batch
from trainer.config.settings import WorkloadSettings
from trainer.model.accelerator import PRODUCTS, precision
from trainer.model.adapters import adapt
from trainer.model.compilation import compiled, padded
from trainer.model.finite import NotFinite, Part
from trainer.model.fsdp import full_tensor, gathered, reshard, shard
from trainer.model.neftune import add_noise
from trainer.model.optimizers import make_optimizer, reset_step_counters
from trainer.model.output_head import REASONS, OutputHead, Unfit, find_head
from trainer.model.unused import fill_gradients, may_leave_out, with_weights

MOST_SKIPS = 16
"""Steps in a row that fp16's loss scale may skip. It begins at 2^16 and each skip halves it: the next
skip is at a scale of 1, so the gradient itself is beyond fp16. The scale doubles at most once in 2,000
steps, so a healthy run skips one step at a time after its first few."""


class Engine:
    """A prepared model and its optimizer."""

    def __init__(
        self, accelerator: Accelerator, model: PreTrainedModel, settings: WorkloadSettings,
        *, weight_decay: float = 0.01, clip_norm: float = 1.0,
    ) -> None:  # fmt: skip
        self.accelerator = accelerator
        self.clip_norm = clip_norm
        self.skipped = False
        """Whether the last step was skipped because its fp16 gradients were not finite."""
        self._skips = 0
        """Steps that were skipped in a row, up to the last one."""
        self._leaves_out = False
        """Whether a rank may leave weights out of a forward pass; see `trainer.model.unused`."""
        model.config.use_cache = False
        self.adapter = adapt(model, settings)
        """peft's view of the model, None without LoRA."""
        if settings.neftune_alpha is not None:
            add_noise(model, settings.neftune_alpha)
        if settings.gradient_checkpointing:
            checkpoint_activations(model)
        world_size: int = accelerator.num_processes
        self.is_sharded = settings.fsdp and world_size > 1
        self._is_ddp = world_size > 1 and not self.is_sharded
        if self.is_sharded:
            shard(model, accelerator.device, world_size)
        else:
            model.to(accelerator.device)
        model.train()
        self.notice: str | None = None
        """What the user should know of how the loss is computed."""
        self._dtype = PRODUCTS[precision(settings)]
        self.head = self._find_head(model) if settings.loss == "chunked" else None
        """None: the loss is computed from the model's logits."""
        self.raw_optimizer = make_optimizer(
            settings.optimizer, model.parameters(), weight_decay=weight_decay
        )
        self.optimizer = accelerator.prepare(self.raw_optimizer)
        # `evaluation_mode`: autocast without DDP
        self.model = accelerator.prepare_model(model, evaluation_mode=self.is_sharded)
        self._loss = torch.zeros((), device=accelerator.device)
        """This rank's loss since the last optimizer step."""
        self._compiled = compiled(self.model) if settings.compile else None
        self.memory: DeviceMemory = HostMemory() if settings.device == "cpu" else CudaMemory()
        if settings.memory_limit is not None:
            self.memory.limit(settings.memory_limit)

    @property
    def unwrapped(self) -> PreTrainedModel:
        model: PreTrainedModel = self.accelerator.unwrap_model(self.model)
        return model

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name; a tied one under its first name."""
        return {n: p for n, p in self.unwrapped.named_parameters() if p.requires_grad}

    def forward_backward(self, batches: Sequence[Batch], *, target_tokens: int) -> Tensor:
        """Accumulates the gradient of this rank's micro-batches; returns their summed loss, a scalar.

        `target_tokens` counts the step's target tokens over all ranks and micro-batches.
        """
        scale = self.accelerator.num_processes / target_tokens
        total = torch.zeros((), device=self.accelerator.device)
        for number, batch in enumerate(batches, 1):
            with self._sync_only(number == len(batches)):
                total += self._add_gradients(batch, scale)
        self._loss = self._loss + total
        return total

    def _add_gradients(self, batch: Batch, scale: float) -> Tensor:
        """Adds the gradient of `scale` times the summed loss; returns the summed loss."""
        if self.head is None:
            loss = self.summed_loss(batch)
            self.accelerator.backward(loss * scale)
            return loss.detach()
        hidden, labels = self._hidden(self.head, batch)
        if self._leaves_out:
            hidden = with_weights(hidden, self.trainable.values())
        elif self._is_ddp:
            hidden = with_weights(hidden, self.head.weights)  # whose gradients DDP waits for
        scaler = self.accelerator.scaler
        factor = torch.full((), scale, device=hidden.device)
        factor = factor if scaler is None else scaler.scale(factor)
        loss, gradient = self.head.loss(hidden, labels, dtype=self._dtype, factor=factor)
        torch.autograd.backward(hidden, gradient)
        return loss

    def summed_loss(self, batch: Batch) -> Tensor:
        """Cross entropy summed over the target tokens of a micro-batch; without a graph unless it builds logits."""
        if self.head is not None:
            hidden, labels = self._hidden(self.head, batch)
            loss, _ = self.head.loss(hidden, labels, dtype=self._dtype)
            return loss
        output, labels = self._forward(batch)
        logits = output.logits  # (batch, seq, vocabulary)
        if self._leaves_out and torch.is_grad_enabled():
            logits = with_weights(logits, self.trainable.values())
        return F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.to(logits.device).flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def _hidden(self, head: OutputHead, batch: Batch) -> tuple[Tensor, Tensor]:
        """(what the head would read, (batch, seq, width); labels)."""
        with head.left_out():
            hidden, labels = self._forward(batch)
        return hidden, labels

    def _forward(self, batch: Batch) -> tuple[Any, Tensor]:
        """(what the model returns, labels), of the batch as it is or padded."""
        # without gradients ranks run unequal numbers of passes, and DDP's pass exchanges buffers
        forward = self.model if torch.is_grad_enabled() else self.unwrapped
        if self._compiled is not None and self.model.training:
            forward = self._compiled
            batch = padded(batch, getattr(self.unwrapped.config, "max_position_embeddings", None))
        device = self.accelerator.device
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
        return forward(**inputs), batch.labels

    def _find_head(self, model: PreTrainedModel) -> OutputHead | None:
        """The model's output head, if every rank finds one; else `notice` says why none is used."""
        head = find_head(model)
        if self.is_sharded:
            reshard(model)
        is_unfit = self.any_rank(isinstance(head, Unfit))
        if isinstance(head, OutputHead) and not is_unfit:
            return head
        why = REASONS[head if isinstance(head, Unfit) else Unfit.OTHER_RANK]
        self.notice = f"the loss builds logits, which takes more memory: {why}"
        return None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No dropout, no gradients; under FSDP every rank holds the full model."""
        self.model.eval()
        with torch.no_grad(), gathered(self.unwrapped):
            yield
        self.model.train()

    def _sync_only(self, is_last: bool) -> AbstractContextManager[None]:
        if is_last or self.is_sharded:  # see trainer.model.fsdp
            return nullcontext()
        context: AbstractContextManager[None] = self.accelerator.no_sync(self.model)
        return context

    def optimizer_step(self, learning_rate: float) -> float:
        """Clips, steps the optimizer and zeroes the gradients; returns the norm before clipping.

        In fp16 the norm is taken after unscaling. Where it is not finite the scaler skips the step and
        halves its scale. Accelerate's `optimizer_step_was_skipped` is wrong for fused optimizers, which
        skip inside their kernel.

        Raises:
            NotFinite: on every rank, before the step, if the loss or the norm of one is not finite, or
                fp16 skipped too many steps in a row.
        """
        clipped = self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        norm = float(full_tensor(clipped))
        self.skipped = self.accelerator.scaler is not None and not math.isfinite(norm)
        self._skips = self._skips + 1 if self.skipped else 0
        self._check_finite(norm)
        for group in self.raw_optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self._zero_gradients()
        return norm

    def _check_finite(self, norm: float) -> None:
        """Raises NotFinite where this step must not be taken; one collective.

        The norm's read has waited for the device already. A lower loss scale does not cure a loss.
        """
        is_fp16 = self.accelerator.scaler is not None
        loss_fails = not math.isfinite(self._loss.item())
        norm_fails = self._skips > MOST_SKIPS if is_fp16 else not math.isfinite(norm)
        if not self.any_rank(loss_fails or norm_fails):
            return
        if self.any_rank(loss_fails):
            raise NotFinite(Part.LOSS)
        raise NotFinite(Part.SCALED_GRADIENT if is_fp16 else Part.GRADIENT)

    def _zero_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        self._loss = torch.zeros_like(self._loss)

    def preallocate(self, batch: Batch) -> None:
        """Allocates gradients and optimizer state without changing weights or state.

        Otherwise the first optimizer step would allocate them, after the first batch had fitted. Every
        trained weight has both from here on, also one that the batch does not use.
        """
        if self._is_ddp:
            self._leaves_out = self.any_rank(self._leaves_weights_out(batch))
        self.dry_run([batch])
        fill_gradients(self.unwrapped)
        self.raw_optimizer.step()  # learning rate and gradients are zero: only the counters move
        reset_step_counters(self.raw_optimizer)

    def _leaves_weights_out(self, batch: Batch) -> bool:
        """Whether the configuration says so, or a backward pass on this rank alone shows it."""
        if may_leave_out(self.unwrapped.config.to_dict()):
            return True
        with self.accelerator.no_sync(self.model):
            self._add_gradients(batch, 1.0)
        leaves_out = any(weight.grad is None for weight in self.trainable.values())
        self.raw_optimizer.zero_grad(set_to_none=True)
        return leaves_out

    def any_rank(self, claim: bool) -> bool:
        """Whether the claim holds on any rank. Ranks must agree before a collective."""
        if self.accelerator.num_processes == 1:
            return claim
        claims = torch.tensor([float(claim)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(claims, reduction="sum").item() > 0)

    def dry_run(self, batches: Sequence[Batch]) -> None:
        """Runs forward and backward and drops the gradients, so that a lack of memory shows now."""
        self.forward_backward(batches, target_tokens=1)
        self._zero_gradients()


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Turns on gradient checkpointing: the backward pass recomputes each layer from its input.

    The reentrant form fails where inputs need no gradient, as under LoRA.
    """
    enable: Any = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})  # before 5.20
