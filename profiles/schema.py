"""The profile: a plan and its evidence, as a TOML file (`schema = 1`).

The trainer follows every key or refuses it. An unknown key is an error that names the nearest one.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from autotune.choices import MODEL_PRESET_NAMES, Freeze, Loss, Optimizer, Precision
from autotune.errors import PlanError, ProfileError, shown
from autotune.files import find_beside
from autotune.plan import MAX_WORLD_SIZE, MicroBatch, Plan
from autotune.search import knee
from autotune.verdict import Verdict

SCHEMA = 1


def _without_nul(text: str) -> str:
    """The text; raises for a NUL character, which no name of a file, model or column can have."""
    if "\0" in text:
        raise PydanticCustomError("nul", "A name has no NUL character")
    return text


Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
"""Sequences, samples or tokens."""
WorldSize = Annotated[int, Field(ge=1, le=MAX_WORLD_SIZE)]
Bytes = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Speed = Annotated[float, Field(ge=1e-6, le=1e12)]
"""Per second; its inverse, times any count, is finite."""
Name = Annotated[str, AfterValidator(_without_nul)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BatchSection(Section):
    """How an optimizer step is cut."""

    micro_batch_size: Count
    """Sequences per device per forward pass; the largest where the devices' sizes differ."""
    micro_batch_sizes: list[Count] | None = None
    """One a device, in the order of ranks; None when all are equal."""
    gradient_accumulation_steps: Count
    """Micro-batches per step on the device that has the most, at the fingerprint's world size."""
    effective_batch_size: Count
    """Samples per optimizer step over all devices."""
    base_effective_batch_size: Count | None = None
    """The effective batch before a tuned size let it grow; `--scale-lr` needs it."""
    eval_batch_size: Count | None = None
    """Sequences per device per forward pass in evaluation, if tuned."""


class MemorySection(Section):
    """The limits and the peak of the tuning, on the device with the least headroom."""

    target_vram: Share | None = None
    target_ram: Share | None = None
    vram_limit_bytes: Bytes | None = None
    """The card's size under `--vram-limit`."""
    others_bytes: Bytes | None = None
    budget_bytes: Bytes | None = None
    hard_limit_bytes: Bytes | None = None
    """A probe above this was stopped: the budget and a small margin."""
    peak_bytes: Bytes | None = None
    noise_bytes: Bytes | None = None
    """The most by which peaks of equal steps differed; the peak leaves twice that of the budget."""
    host_peak_bytes: Bytes | None = None
    shares: (
        Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=2, max_length=2)] | None
    ) = None
    """The shares of a micro-batch's activations that source and target take."""


class RunSection(Section):
    """Settings that the memory figures depend on."""

    model: Name | None = None
    """The tuned model; `train` trains it unless `--model` says otherwise."""
    data: list[Name] | None = None
    prompt_column: str | None = None
    """None takes the one that a known layout of columns has; so do the next two."""
    response_column: str | None = None
    messages_column: str | None = None
    precision: Precision | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    fsdp: bool = False
    """Weights, gradients and optimizer state are sharded over the devices."""
    freeze: Freeze | None = None
    lora_rank: Count | None = None
    """None: no LoRA."""
    lora_alpha: Annotated[float, Field(gt=0)] | None = None
    """None: twice the rank."""
    lora_targets: list[str] = []
    """Names of layers; empty takes what suits the model."""
    neftune_alpha: Annotated[float, Field(gt=0)] | None = None
    """Noise on the input embeddings."""
    loss: Loss | None = None
    """None: not recorded, as in profiles that were measured before there was a choice, with `logits`."""
    max_source_length: Count = 256
    """Tokens, end-of-sequence included."""
    max_target_length: Count = 256
    optimizer: Optimizer = "adamw"
    loader_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    environment: dict[str, str] = {}

    def found_from(self, folder: Path) -> Self:
        """The same, with data and model that lie beside the profile's file, if they do."""
        found: dict[str, Any] = {}
        if self.data:
            found["data"] = [find_beside(name, folder) for name in self.data]
        if self.model and self.model not in MODEL_PRESET_NAMES:
            found["model"] = find_beside(self.model, folder)
        return self.model_copy(update=found)


class TrialRow(Section):
    """One probe's evidence."""

    size: Count
    """The micro-batch; the largest of them where the devices' sizes differ."""
    sizes: list[Count] | None = None
    """One a device; None when all are equal."""
    verdict: Annotated[Verdict, Field(strict=False)]  # a text in TOML
    peak_bytes: Bytes | None = None
    seconds: Seconds
    samples_per_second: Speed | None = None
    tokens_per_second: Speed | None = None
    speed_spread: Annotated[float, Field(ge=0)] | None = None
    """The range of the timed steps' seconds, as a share of their mean."""
    reason: str | None = None


class Fingerprint(Section):
    """What must match before the figures are reused; None where it is not known."""

    model: str | None = None
    """Name and a hash of its configuration."""
    devices: list[str] | None = None
    device_bytes: list[Bytes] | None = None
    driver: str | None = None
    torch: str | None = None
    longest_source: Count | None = None
    """Tokens of the longest source after truncation."""
    longest_target: Count | None = None
    world_size: WorldSize = 1


class Profile(Section):
    """The file as a whole."""

    schema_: Literal[1] = Field(alias="schema")
    interrupted: bool = False
    """The search was stopped before its end."""
    batch: BatchSection
    memory: MemorySection = MemorySection()
    run: RunSection = RunSection()
    fingerprint: Fingerprint = Fingerprint()
    trial: list[TrialRow] = []

    @model_validator(mode="after")
    def _check_arithmetic(self) -> "Profile":
        batch, world_size = self.batch, self.fingerprint.world_size
        sizes = batch.micro_batch_sizes
        if sizes is not None and len(sizes) != world_size:
            raise PlanError(
                f"micro_batch_sizes has {len(sizes)} sizes, but the fingerprint's world_size is "
                f"{world_size}",
                "give one for each process, or leave the list out",
            )
        if sizes is not None and max(sizes) != batch.micro_batch_size:
            raise PlanError(
                f"micro_batch_size is {batch.micro_batch_size}, but the largest of "
                f"micro_batch_sizes is {max(sizes)}",
                "make them agree, or leave the list out",
            )
        plan = self.plan(world_size)
        if plan.accumulation != batch.gradient_accumulation_steps:
            raise PlanError(
                f"gradient_accumulation_steps is {batch.gradient_accumulation_steps}, but an "
                f"effective batch of {plan.effective_batch} cut into micro-batches of "
                f"{plan} on {world_size} process(es) takes {plan.accumulation}",
                "fix one of the three, or leave the file and train with --micro-batch",
            )
        return self

    def plan(self, world_size: int, micro_batch: int | None = None) -> Plan:
        """The plan of the same effective batch on that many devices.

        Unequal sizes belong to the tuned devices; on another number of devices all get the smallest.

        Raises:
            PlanError: the micro-batch is larger than one device's share.
        """
        size: MicroBatch = self.batch.micro_batch_size if micro_batch is None else micro_batch
        if micro_batch is None and (sizes := self.batch.micro_batch_sizes) is not None:
            size = sizes if len(sizes) == world_size else min(sizes)
        return Plan(
            micro_batch=size,
            effective_batch=self.batch.effective_batch_size,
            world_size=world_size,
        )

    def knee(self) -> TrialRow | None:
        """The smallest trial that fits and is as fast as any; None with fewer than two speeds.

        Of a size that was probed twice the last verdict counts, and the speed that spreads least.
        """
        last = {self._samples(row): row.verdict for row in self.trial}
        steady = sorted(self.trial, key=lambda row: row.speed_spread or 0.0, reverse=True)
        timed = {
            self._samples(row): row
            for row in steady
            if row.samples_per_second and row.verdict is Verdict.FITS is last[self._samples(row)]
        }
        if len(timed) < 2:
            return None
        return timed[knee({n: row.samples_per_second or 0.0 for n, row in timed.items()})]

    def overhead(self) -> float | None:
        """The cost of one more micro-batch, in tokens; None with speeds of fewer than two sizes.

        A micro-batch's time is close to `a + b · size`, so the overhead is `a ÷ b` sequences of the
        longest length. It is half a sequence at least, since timing is noisy.
        """
        times = sorted(
            (row.size, self._samples(row) / row.samples_per_second)
            for row in self.trial
            if row.samples_per_second
        )
        source, target = self.fingerprint.longest_source, self.fingerprint.longest_target
        if len({size for size, _ in times}) < 2 or source is None or target is None:
            return None
        (small, quick), (large, slow) = times[0], times[-1]
        per_sequence = (slow - quick) / (large - small)
        sequences = (quick - per_sequence * small) / per_sequence if per_sequence > 0 else 0.0
        return max(0.5, sequences) * (source + target)

    def _samples(self, row: TrialRow) -> int:
        """Samples of one micro-batch on every device."""
        return sum(row.sizes) if row.sizes else row.size * self.fingerprint.world_size


def parse(document: dict[str, Any], source: str) -> Profile:
    """A checked profile from a TOML document; errors name `source`.

    Raises:
        ProfileError: a future schema, an unknown key, a wrong type, or a plan that does not add up.
    """
    schema = document.get("schema", SCHEMA)
    if type(schema) is not int:  # `true` and 1.0 are equal to 1
        raise ProfileError(f"{source}: 'schema' is {shown(schema)}: it should be {SCHEMA}")
    if schema > SCHEMA:
        raise ProfileError(
            f"{source} has schema {schema}, this version reads up to {SCHEMA}",
            "update chatlm, or tune again",
        )
    try:
        return Profile.model_validate(document)
    except PlanError as error:
        raise ProfileError(f"{source}: {error.what}", error.hint) from error
    except ValidationError as error:
        what, hint = _first_fault(error)
        raise ProfileError(f"{source}: {what}", hint) from error


def _first_fault(error: ValidationError) -> tuple[str, str | None]:
    """What is wrong, and what to try where that is known."""
    faults = error.errors(include_url=False)
    # a misspelt key is also a missing one: name the key that the user wrote
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    place = shown(".".join(str(part) for part in fault["loc"]))
    value = shown(fault["input"])
    if fault["type"] == "extra_forbidden":
        known = _keys(Profile, fault["loc"][:-1])
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {place}", hint
    if fault["type"] == "missing":
        return f"{place} is missing", "`chatlm profiles show fast` prints a whole profile"
    if fault["type"] == "model_type":
        return f"{place} is {value}: it should be a table, [{place[1:-1]}]", None
    return f"{place} is {value}: {fault['msg'][0].lower()}{fault['msg'][1:]}", None


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that the table at `path` may have."""
    for part in path:
        if isinstance(part, str):
            annotation: Any = model.model_fields[part].annotation
            model = annotation.__args__[0] if part == "trial" else annotation
    return [field.alias or name for name, field in model.model_fields.items()]
