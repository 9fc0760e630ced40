"""chatlm: the command line: parses, wires the parts, prints the outcome.

Nothing here loads torch: that is the workers' business. What a command does is in `trainer` and
`autotune`; this file holds only flags and their order.
"""

import functools
import json
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from autotune.errors import ChatlmError
from trainer.config.flags import Config, Given, with_flags
from trainer.config.options import AutotuneOptions, TrainOptions

P = ParamSpec("P")

app = typer.Typer(
    help="Finds the micro-batch that holds a memory target, and trains with it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
profiles_app = typer.Typer(help="The profiles that can be named.", no_args_is_help=True)
app.add_typer(profiles_app, name="profiles")


AUTOTUNE_EXAMPLES = """Examples:

  chatlm autotune --model ./my-model --data rows.jsonl --target-vram 0.6

  chatlm autotune --effective-batch 240 --vram-limit 20GiB --json
"""
TRAIN_EXAMPLES = """Examples:

  chatlm train --profile tuned --data rows.jsonl --epochs 3

  chatlm train --profile small --micro-batch 4 --output-dir model_save/try --fresh
"""
PROFILES_EXAMPLES = """Examples:

  chatlm profiles list

  chatlm profiles show fast
"""
MONITOR_EXAMPLES = """Examples:

  chatlm monitor

  chatlm monitor --once --json
"""

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live screen.")]
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


def _print_version(wanted: bool) -> None:
    if wanted:
        import chatlm

        sys.stdout.write(f"chatlm {chatlm.__version__}\n")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Finds the micro-batch that holds a memory target, and trains with it."""


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


@app.command(epilog=AUTOTUNE_EXAMPLES)
@_ends_on_interrupt
@with_flags(AutotuneOptions)
def autotune(
    given: Given,
    as_json: AsJson = False,
    plain: Plain = False,
    workload: Annotated[str, typer.Option(hidden=True)] = "trainer.workload:build",
    events: Events = None,
) -> None:
    """Find the largest micro-batch that holds the memory target, and write it as a profile.

    --no-NAME denies a switch that the base profile has on.
    """
    import profiles
    from autotune.devices.host import HostMeter
    from autotune.devices.lock import locked
    from autotune.devices.selection import check_per_device, open_devices, shared_memory_notice
    from autotune.events import Notice
    from autotune.plan import Plan
    from autotune.tuning.loop import tune
    from autotune.tuning.prober import Limits, Prober, WorkloadSpec
    from autotune.units import check_fraction, parse_bytes
    from dashboard.listeners import log_path, open_listeners
    from dashboard.summary import tuned_words
    from profiles.store import FOLDER, check_name, check_place, free_path
    from trainer.config.resolve import workload_settings
    from trainer.data.readers import check_files
    from trainer.supervisor import tuning

    options = AutotuneOptions(**given)
    limits = Limits(
        target=check_fraction(options.target_vram, "--target-vram"),
        target_ram=check_fraction(options.target_ram, "--target-ram"),
    )
    limit = None if options.vram_limit is None else parse_bytes(options.vram_limit)
    path = FOLDER / f"{check_name(options.name)}.toml"
    check_place(path)
    profile = profiles.load(options.base)
    effective = options.effective_batch
    wanted = effective or profile.batch.effective_batch_size
    host = HostMeter()
    with ExitStack() as stack:
        devices = stack.enter_context(
            open_devices(
                options.device, num_processes=options.num_processes, vram_limit=limit, host=host
            )
        )
        check_per_device(options.per_device, devices)
        if effective is not None:  # built for its check; a base profile's may grow instead
            Plan(micro_batch=1, effective_batch=effective, world_size=devices.world_size)
        check_files(options.data, options.eval_data)
        settings = workload_settings(options, profile, device=devices.group.kind)
        log = log_path("autotune")
        emit = stack.enter_context(open_listeners(as_json, plain, log, events))
        for notice in (devices.notice, shared_memory_notice(devices, options.backend, loaders=0)):
            if notice:
                emit(Notice(text=notice))
        extra = {
            "effective": wanted,
            "effective_fixed": effective is not None,
            "eval_data": options.eval_data or (),
        }
        spec = WorkloadSpec(
            path=workload,
            settings={**settings.as_json(), **extra},
            world_size=devices.world_size,
        )
        stack.enter_context(locked(devices.shared, notify=lambda text: emit(Notice(text=text))))
        prober = stack.enter_context(
            Prober(spec, group=devices.group, host=host, limits=limits, emit=emit, log_path=log)
        )
        outcome = tune(
            prober,
            ceiling=lambda workload_info: tuning.ceiling(
                workload_info["rows"],
                world_size=devices.world_size,
                effective=effective,
                max_batch=options.max_batch,
                per_device=options.per_device,
            ),
            prefer=options.prefer,
            guess=tuning.previous_sizes(path, limits, limit, devices, settings),
            per_device=options.per_device,
            most=effective,
            after=functools.partial(
                tuning.measure_extras,
                effective=wanted,
                fixed=effective is not None,
                evaluates=options.eval_data is not None,
            ),
            emit=emit,
        )
        prober.close()
        if outcome.answer is None and outcome.interrupted:
            raise KeyboardInterrupt
        if outcome.answer is None:
            raise tuning.nothing_fits(outcome)
        found = tuning.make_profile(
            outcome,
            limits=limits,
            settings=settings,
            devices=devices,
            base=profile,
            effective=effective,
            vram_limit=limit,
        )
        path = free_path(path) if outcome.interrupted else path
        profiles.save(found, path)
    room = tuning.estimated_capacity(outcome, effective, devices.world_size)
    if as_json:
        _print_json(tuning.as_json(outcome, found, str(path), limits, room))
    else:
        sys.stdout.write(tuned_words(found, outcome.seconds, path, room))
    if outcome.interrupted:
        raise typer.Exit(130)


@app.command(epilog=TRAIN_EXAMPLES)
@_ends_on_interrupt
@with_flags(TrainOptions)
def train(
    given: Given,
    config: Config = None,
    as_json: AsJson = False,
    plain: Plain = False,
    events: Events = None,
) -> None:
    """Train with a profile: its effective batch, cut as it says.

    --no-NAME denies a switch that the profile has on.
    """
    import profiles
    from autotune.devices.host import HostMeter
    from autotune.devices.selection import open_devices, shared_memory_notice
    from autotune.events import Notice
    from dashboard.listeners import log_path, open_listeners
    from dashboard.summary import trained_words
    from trainer.artifacts.run_folder import RunFolder
    from trainer.config.resolve import resolve
    from trainer.config.run_config import load_run
    from trainer.data.readers import check_files
    from trainer.supervisor.job import TrainJob
    from trainer.supervisor.training import run_training

    options = TrainOptions(**{**({} if config is None else load_run(config)), **given})
    profile = profiles.load(options.profile)
    was_tuned = profile.fingerprint.model is not None
    host = HostMeter()
    with ExitStack() as stack:
        devices = stack.enter_context(
            open_devices(
                options.device,
                num_processes=(
                    profile.fingerprint.world_size
                    if options.num_processes is None and was_tuned
                    else options.num_processes
                ),
                vram_limit=profile.memory.vram_limit_bytes,
                host=host,
            )
        )
        check_files(options.data, options.eval_data)
        settings = resolve(
            profile, options, device=devices.group.kind, world_size=devices.world_size
        )
        folder = RunFolder(Path(settings.output_dir))
        folder.check(settings.run_key(), fresh=settings.fresh)
        log = log_path("chat_trainer")
        emit = stack.enter_context(open_listeners(as_json, plain, log, events))
        loaders = profile.run.loader_workers
        shortage = shared_memory_notice(devices, options.backend, loaders=loaders)
        for notice in (devices.notice, shortage):
            if notice:
                emit(Notice(text=notice))
        if profile.interrupted:
            text = f"profile {options.profile} is of an interrupted tuning: more may fit"
            emit(Notice(text=text))
        job = TrainJob(
            settings=settings,
            profile=profile,
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


@app.command(epilog=MONITOR_EXAMPLES)
@_ends_on_interrupt
def monitor(
    once: Annotated[bool, typer.Option("--once", help="One reading, then end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what the devices and the host hold now."""
    from autotune.devices.host import HostMeter
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


@profiles_app.command("list", epilog=PROFILES_EXAMPLES)
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


@profiles_app.command("show", epilog=PROFILES_EXAMPLES)
def show_profile(name: str) -> None:
    """The profile of that name or path, checked, as TOML."""
    import tomli_w

    import profiles

    document = profiles.load(name).model_dump(mode="json", by_alias=True, exclude_none=True)
    sys.stdout.write(tomli_w.dumps(document))


def _print_json(document: dict[str, Any]) -> None:
    from autotune.files import finite

    sys.stdout.write(json.dumps(finite(document), indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
