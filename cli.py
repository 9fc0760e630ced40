"""The command line: parses, wires the parts, prints the outcome.

Nothing here loads torch: that is the workers' business. What a command does is in `trainer` and
`autotune`; this file holds only flags and their order.
"""

import functools
import json
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from autotune.errors import ChatlmError

P = ParamSpec("P")

app = typer.Typer(
    help="Finds the micro-batch that holds a memory target, and trains with it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
profiles_app = typer.Typer(help="The profiles that can be named.", no_args_is_help=True)
app.add_typer(profiles_app, name="profiles")


class Device(StrEnum):
    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


class Precision(StrEnum):
    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Prefer(StrEnum):
    MEMORY = "memory"
    THROUGHPUT = "throughput"


class ScaleLr(StrEnum):
    LINEAR = "linear"
    SQRT = "sqrt"


class Backend(StrEnum):
    GLOO = "gloo"
    NCCL = "nccl"


Data = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Parquet, JSON or JSON lines; may be given several times."),
]
EvalData = Annotated[
    list[Path] | None, typer.Option("--eval-data", help="Files to measure the loss on.")
]
Model = Annotated[
    str | None, typer.Option(help="chatlm-tiny, chatlm-0.2b, a model folder, or a hub id.")
]
Processes = Annotated[
    int | None, typer.Option(help="One a device; all GPUs by default.", show_default=False)
]
VramLimit = Annotated[
    str | None, typer.Option(help="Pretend that each card is that large, like 20GiB.")
]
Lengths = Annotated[int | None, typer.Option(help="Tokens; the base profile's by default.", min=2)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live screen.")]
BackendFlag = Annotated[
    Backend | None, typer.Option(help="Between processes; NCCL on GPUs, gloo on CPUs.")
]
Events = Annotated[Path | None, typer.Option(help="Record every event there.", hidden=True)]


def main() -> None:
    """The `chatlm` command."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        app()
    except ChatlmError as error:
        sys.stderr.write(f"chatlm: {error}\n")
        sys.exit(1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _ends_on_interrupt(command: Callable[P, None]) -> Callable[P, None]:
    """The command, with exit code 130 where Ctrl-C ends it."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            sys.stderr.write("chatlm: interrupted\n")
            raise typer.Exit(130) from None

    return run


@app.command()
@_ends_on_interrupt
def autotune(
    target_vram: Annotated[float, typer.Option(help="Share of each device to hold.")] = 0.6,
    target_ram: Annotated[float, typer.Option(help="Share of host RAM not to exceed.")] = 0.8,
    model: Model = None,
    data: Data = None,
    eval_data: EvalData = None,
    base: Annotated[str, typer.Option(help="Profile to start from.")] = "fast",
    effective_batch: Annotated[
        int | None, typer.Option(help="Samples per optimizer step, kept as given.", min=1)
    ] = None,
    num_processes: Processes = None,
    device: Device = Device.AUTO,
    vram_limit: VramLimit = None,
    max_batch: Annotated[int | None, typer.Option(help="Largest size to try.", min=1)] = None,
    prefer: Annotated[
        Prefer, typer.Option(help="The largest size, or the smallest that is as fast as any.")
    ] = Prefer.MEMORY,
    per_device: Annotated[
        bool, typer.Option("--per-device", help="Its own micro-batch for each unequal card.")
    ] = False,
    precision: Precision = Precision.AUTO,
    max_source_length: Lengths = None,
    max_target_length: Lengths = None,
    backend: BackendFlag = None,
    name: Annotated[str, typer.Option(help="Writes ./profiles/NAME.toml.")] = "tuned",
    as_json: AsJson = False,
    plain: Plain = False,
    workload: Annotated[str, typer.Option(hidden=True)] = "trainer.workload:build",
    events: Events = None,
) -> None:
    """Find the largest micro-batch that holds the memory target, and write it as a profile."""
    from dataclasses import replace

    import profiles
    from autotune.events import Notice
    from autotune.host import HostMeter
    from autotune.lock import locked
    from autotune.plan import Plan
    from autotune.prober import Limits, Prober, WorkloadSpec
    from autotune.quantity import check_fraction, parse_bytes
    from autotune.tuning import tune
    from dashboard.listeners import log_path, open_listeners
    from dashboard.outcome import tuned_words
    from profiles.store import FOLDER, check_name, check_place, free_path
    from trainer import tuned
    from trainer.devices import check_per_device, open_devices, shared_memory_notice
    from trainer.settings import WorkloadSettings, apply_profile

    limits = Limits(
        target=check_fraction(target_vram, "--target-vram"),
        target_ram=check_fraction(target_ram, "--target-ram"),
    )
    limit = None if vram_limit is None else parse_bytes(vram_limit)
    path = FOLDER / f"{check_name(name)}.toml"
    check_place(path)
    profile = profiles.load(base)
    wanted = effective_batch or profile.batch.effective_batch_size
    host = HostMeter()
    with ExitStack() as stack:
        devices = stack.enter_context(
            open_devices(device, num_processes=num_processes, vram_limit=limit, host=host)
        )
        check_per_device(per_device, devices)
        if effective_batch is not None:  # built for its check; a base profile's may grow instead
            Plan(micro_batch=1, effective_batch=effective_batch, world_size=devices.world_size)
        settings = apply_profile(
            WorkloadSettings(
                model=model or profile.run.model or "chatlm-tiny",
                data=_existing(data) or tuple(profile.run.data or ()),
                device=devices.cards.kind,
                backend=backend,
            ),
            profile,
        )
        settings = replace(
            settings,
            precision=settings.precision if precision is Precision.AUTO else precision.value,
            max_source_length=max_source_length or settings.max_source_length,
            max_target_length=max_target_length or settings.max_target_length,
        )
        log = log_path("autotune")
        emit = stack.enter_context(open_listeners(as_json, plain, log, events))
        for notice in (devices.notice, shared_memory_notice(devices, backend, loaders=0)):
            if notice:
                emit(Notice(text=notice))
        extra = {
            "effective": wanted,
            "effective_fixed": effective_batch is not None,
            "eval_data": _existing(eval_data),
        }
        spec = WorkloadSpec(
            path=workload,
            settings={**settings.as_json(), **extra},
            world_size=devices.world_size,
        )
        stack.enter_context(locked(devices.shared, notify=lambda text: emit(Notice(text=text))))
        prober = stack.enter_context(
            Prober(spec, cards=devices.cards, host=host, limits=limits, emit=emit, log_path=log)
        )
        outcome = tune(
            prober,
            ceiling=lambda facts: tuned.ceiling(
                facts["rows"],
                world_size=devices.world_size,
                effective=effective_batch,
                max_batch=max_batch,
                per_device=per_device,
            ),
            prefer=prefer,
            guess=tuned.earlier(path, limits, limit, devices, settings),
            per_device=per_device,
            most=effective_batch,
            after=functools.partial(
                tuned.after_the_search,
                effective=wanted,
                fixed=effective_batch is not None,
                evaluates=eval_data is not None,
            ),
            emit=emit,
        )
        prober.close()
        if outcome.answer is None and outcome.interrupted:
            raise KeyboardInterrupt
        if outcome.answer is None:
            raise tuned.nothing_fits(outcome)
        found = tuned.make_profile(
            outcome,
            limits=limits,
            settings=settings,
            devices=devices,
            base=profile,
            effective=effective_batch,
            vram_limit=limit,
        )
        path = free_path(path) if outcome.interrupted else path
        profiles.save(found, path)
    room = tuned.would_hold(outcome, effective_batch, devices.world_size)
    if as_json:
        _print_json(tuned.as_json(outcome, found, str(path), limits, room))
    else:
        sys.stdout.write(tuned_words(found, outcome.seconds, path, room))
    if outcome.interrupted:
        raise typer.Exit(130)


@app.command()
@_ends_on_interrupt
def train(
    profile: Annotated[str, typer.Option(help="Name or path.")] = "tuned",
    model: Model = None,
    data: Data = None,
    eval_data: EvalData = None,
    epochs: float = 1.0,
    max_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps, instead of epochs.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Instead of the profile's; changes memory and speed only.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="model_save/sft_PROFILE by default.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--fresh", help="Go on with an unfinished run, or replace it.")
    ] = True,
    seed: int = 0,
    precision: Precision = Precision.AUTO,
    dropout: Annotated[
        float | None, typer.Option(help="The model's own by default.", show_default=False)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The model's default if not given.", show_default=False)
    ] = None,
    scale_lr: Annotated[
        ScaleLr | None,
        typer.Option(help="Scale it by the growth of the effective batch.", show_default=False),
    ] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help="Optimizer steps; each epoch by default.", min=1)
    ] = None,
    device: Device = Device.AUTO,
    num_processes: Processes = None,
    backend: BackendFlag = None,
    as_json: AsJson = False,
    plain: Plain = False,
    events: Events = None,
) -> None:
    """Train with a profile: its effective batch, cut as it says."""
    import profiles
    from autotune.events import Notice
    from autotune.host import HostMeter
    from dashboard.listeners import log_path, open_listeners
    from dashboard.outcome import trained_words
    from trainer.devices import open_devices, shared_memory_notice
    from trainer.run_folder import RunFolder
    from trainer.settings import Choices, resolve
    from trainer.supervise import TrainJob, run_training

    found = profiles.load(profile)
    was_tuned = found.fingerprint.model is not None
    host = HostMeter()
    with ExitStack() as stack:
        devices = stack.enter_context(
            open_devices(
                device,
                num_processes=(
                    found.fingerprint.world_size
                    if num_processes is None and was_tuned
                    else num_processes
                ),
                vram_limit=found.memory.vram_limit_bytes,
                host=host,
            )
        )
        choices = Choices(
            model=model,
            data=_existing(data),
            eval_data=_existing(eval_data),
            micro_batch=micro_batch,
            epochs=epochs,
            max_steps=max_steps,
            output_dir=None if output_dir is None else str(output_dir),
            fresh=not resume,
            seed=seed,
            precision=precision,
            dropout=dropout,
            learning_rate=learning_rate,
            scale_lr=scale_lr,
            checkpoint_every=checkpoint_every,
            backend=backend,
        )
        settings = resolve(
            found, profile, choices, device=devices.cards.kind, world_size=devices.world_size
        )
        folder = RunFolder(Path(settings.output_dir))
        folder.check(settings.identity(), fresh=settings.fresh)
        log = log_path("chat_trainer")
        emit = stack.enter_context(open_listeners(as_json, plain, log, events))
        loaders = found.run.loader_workers
        for notice in (devices.notice, shared_memory_notice(devices, backend, loaders=loaders)):
            if notice:
                emit(Notice(text=notice))
        if found.interrupted:
            emit(Notice(text=f"profile {profile} is of an interrupted tuning: more may fit"))
        job = TrainJob(
            settings=settings,
            name=profile,
            profile=found,
            devices=devices,
            host=host,
            emit=emit,
            log_path=log,
        )
        ended = run_training(job)
    if as_json:
        _print_json({"schema": 1, **ended.result})
    else:
        sys.stdout.write(trained_words(ended.result, log))
    if ended.interrupted:
        raise typer.Exit(130)


@app.command()
@_ends_on_interrupt
def monitor(
    once: Annotated[bool, typer.Option("--once", help="One reading, then end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the devices and the host hold now."""
    from autotune.host import HostMeter
    from dashboard import monitor as live
    from dashboard import open_screen

    host = HostMeter()
    with ExitStack() as stack:
        if (nvml := live.open_driver()) is not None:
            stack.enter_context(nvml)
        reading = live.take(host, nvml)
        if as_json:
            _print_json(live.as_json(reading))
        elif once or not sys.stdout.isatty():
            sys.stdout.write(live.as_lines(reading))
        else:
            live.watch(host, nvml, stack.enter_context(open_screen(plain=False, stream=sys.stdout)))


@profiles_app.command("list")
def list_profiles() -> None:
    """One line a profile: the user's own first, then the presets."""
    import profiles

    for name in profiles.names():
        try:
            profile = profiles.load(name)
        except ChatlmError as error:
            sys.stdout.write(f"{name:<16} {error}\n")
            continue
        batch = profile.batch
        sys.stdout.write(
            f"{name:<16} micro-batch {profile.plan(profile.fingerprint.world_size)!s:<5} "
            f"accumulation {batch.gradient_accumulation_steps:<4} "
            f"processes {profile.fingerprint.world_size:<3} "
            f"effective batch {batch.effective_batch_size}"
            f"{'  (interrupted)' if profile.interrupted else ''}\n"
        )


@profiles_app.command("show")
def show_profile(name: str) -> None:
    """The profile of that name or path, checked, as TOML."""
    import tomli_w

    import profiles

    document = profiles.load(name).model_dump(mode="json", by_alias=True, exclude_none=True)
    sys.stdout.write(tomli_w.dumps(document))


def _existing(paths: list[Path] | None) -> tuple[str, ...]:
    from trainer.rows import check_file

    return tuple(str(check_file(str(path))) for path in paths or ())


def _print_json(document: dict[str, Any]) -> None:
    from autotune.quantity import finite

    sys.stdout.write(json.dumps(finite(document), indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
