"""chatlm: the command line: parses flags and prints results.

It loads no torch. Each command imports what it needs when it runs, so that `--help` answers at once.
"""

import functools
import json
import sys
import traceback
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from autotune import terminal
from autotune.errors import ChatlmError
from autotune.terminal import escaped, toml_escape, write
from trainer.config.flags import Config, Given, clean_usage_errors, with_flags
from trainer.config.options import AutotuneOptions, DataOptions, TrainOptions
from trainer.supervisor.interrupts import Interrupts


class Commands(TyperGroup):
    """The commands; each exits with 130 after Ctrl-C, and libraries cannot steer the terminal."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        with clean_usage_errors():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: Any) -> Any:
        try:
            with clean_usage_errors(), redirect_stderr(terminal.clean(sys.stderr)):
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(_interrupted()) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
profiles_app = typer.Typer(help="List and show profiles.", no_args_is_help=True)
app.add_typer(profiles_app, name="profiles")


def _examples(*commands: str) -> str:
    return "\n\n".join(["Examples:", *(f"  chatlm {command}" for command in commands)]) + "\n"


AUTOTUNE_EXAMPLES = _examples(
    "autotune --model ./my-model --data rows.jsonl --target-vram 0.6",
    "autotune --effective-batch 240 --vram-limit 20GiB --json",
)
TRAIN_EXAMPLES = _examples(
    "train --profile tuned --data rows.jsonl --epochs 3",
    "train --profile small --micro-batch 4 --output-dir model_save/try --fresh",
)
DATA_EXAMPLES = _examples(
    "data rows.jsonl --model ./my-model", "data 'shards/*.parquet' --row 17 --json"
)
PROFILES_EXAMPLES = _examples("profiles list", "profiles show fast")
MONITOR_EXAMPLES = _examples("monitor", "monitor --once --json")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live screen.")]
Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE", help="Files, folders, 'patterns' or a hub id; else the profile's."
    ),
]
Events = Annotated[Path | None, typer.Option(help="Record every event in this file.", hidden=True)]


def main() -> None:
    """The `chatlm` command; SIGTERM and SIGHUP end it as Ctrl-C does."""
    interrupts = Interrupts()
    interrupts.install()
    with terminal.standard_outputs():
        try:
            app(prog_name="chatlm")
        except KeyboardInterrupt:
            sys.exit(_interrupted())
        except ChatlmError as error:
            write(f"chatlm: {error}\n", sys.stderr)
            sys.exit(1)
        except terminal.OutputFailed as error:
            terminal.tell_failed_output(error)
            sys.exit(1)
        except Exception:  # noqa: BLE001  a bug
            write(traceback.format_exc(), sys.stderr)
            sys.exit(1)
        finally:
            interrupts.end()


def _interrupted() -> int:
    """Says so; returns the exit code."""
    write("chatlm: interrupted\n", sys.stderr)
    return 130


def _print_version(wanted: bool) -> None:
    if wanted:
        import chatlm

        write(f"chatlm {chatlm.__version__}\n", sys.stdout)
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


@app.command(epilog=AUTOTUNE_EXAMPLES)
@with_flags(AutotuneOptions)
def autotune(
    given: Given,
    as_json: AsJson = False,
    plain: Plain = False,
    workload: Annotated[str, typer.Option(hidden=True)] = "trainer.workload:build",
    events: Events = None,
) -> None:
    """Find the largest micro-batch that holds the memory target, and write it as a profile.

    --no-NAME turns off a switch that the base profile has on.
    """
    from dashboard.listeners import open_listeners
    from dashboard.summary import tuned_words
    from trainer.supervisor import tuning
    from trainer.supervisor.job import open_tune_job

    listen = functools.partial(
        open_listeners, "autotune", as_json=as_json, plain=plain, events=events
    )
    with open_tune_job(AutotuneOptions(**given), workload=workload, listen=listen) as job:
        tuned = tuning.run_tuning(job)
    seconds, room = tuned.outcome.seconds, tuned.estimated_capacity
    words = tuned_words(tuned.profile, seconds, tuned.path, room)
    result = tuning.as_json(tuned) if as_json else words
    _print_end(result, interrupted=tuned.outcome.interrupted)


@app.command(epilog=TRAIN_EXAMPLES)
@with_flags(TrainOptions)
def train(
    given: Given,
    config: Config = None,
    as_json: AsJson = False,
    plain: Plain = False,
    events: Events = None,
) -> None:
    """Train with a profile: its model, effective batch and micro-batch.

    --no-NAME turns off a switch that the profile has on.
    """
    from dashboard.listeners import open_listeners
    from dashboard.summary import trained_words
    from trainer.config.run_config import load_run
    from trainer.supervisor.job import open_train_job
    from trainer.supervisor.training import run_training

    options = TrainOptions(**{**({} if config is None else load_run(config)), **given})
    listen = functools.partial(
        open_listeners, "chat_trainer", as_json=as_json, plain=plain, events=events
    )
    with open_train_job(options, listen=listen) as job:
        ended = run_training(job)
    words = trained_words(ended.result, job.log_path)
    result = {"schema": 1, **ended.result} if as_json else words
    _print_end(result, interrupted=ended.interrupted)


@app.command(epilog=DATA_EXAMPLES)
@with_flags(DataOptions)
def data(given: Given, files: Files = None, as_json: AsJson = False) -> None:
    """Show rows as a model would be trained on them: their tokens, those it learns, what is cut."""
    from dashboard import data_page
    from dashboard.plain_lines import PlainLines
    from trainer.supervisor.inspection import inspect_data

    progress = PlainLines(sys.stderr) if sys.stderr.isatty() else None
    found = inspect_data(DataOptions(**given), files or (), progress=progress)
    _print(data_page.as_json(found)) if as_json else data_page.print_data(found)


@app.command(epilog=MONITOR_EXAMPLES)
def monitor(
    once: Annotated[bool, typer.Option("--once", help="Print one reading and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the memory of the devices and the host now."""
    from autotune.devices.host import HostMeter
    from dashboard import monitor as live
    from dashboard import open_screen

    host = HostMeter()
    driver, why = live.open_driver()
    with driver or nullcontext() as nvml:
        reading = live.take(host, nvml, driver=why)
        if as_json or once or not sys.stdout.isatty():
            _print(live.as_json(reading) if as_json else live.as_lines(reading))
        else:
            with open_screen(plain=False, stream=sys.stdout) as screen:
                live.watch(host, nvml, screen, driver=why)


@profiles_app.command("list", epilog=PROFILES_EXAMPLES)
def list_profiles() -> None:
    """List all profiles: your own first, then the presets."""
    from profiles import listing

    for line in listing.lines():
        write(f"{line}\n", sys.stdout)


@profiles_app.command("show", epilog=PROFILES_EXAMPLES)
def show_profile(name: str) -> None:
    """Print the profile of that name or path as TOML."""
    import tomli_w

    import profiles

    document = profiles.load(name).model_dump(mode="json", by_alias=True, exclude_none=True)
    _print(escaped(tomli_w.dumps(document), escape=toml_escape))


def _print_end(result: dict[str, Any] | str, *, interrupted: bool) -> None:
    """Prints a run's result; exits with 130 after Ctrl-C, also where the terminal is gone."""
    try:
        _print(result)
    finally:
        if interrupted:
            raise typer.Exit(130)


def _print(result: dict[str, Any] | str) -> None:
    from autotune.files import finite

    if not isinstance(result, str):
        result = json.dumps(finite(result), indent=1, allow_nan=False) + "\n"
    write(result, sys.stdout)


if __name__ == "__main__":
    main()
