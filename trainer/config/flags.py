"""Flags for typer, made from the fields of the options."""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer._click.exceptions import UsageError  # of its kinds typer exports one
from typer.core import TyperCommand

from autotune.terminal import escaped
from trainer.config.options import PANELS, Flag, TrainOptions

Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with the flags' names as keys; flags win."),
]
NO = "no_"
"""The parameter of `--no-x` begins with it."""
PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names}
Given = dict[str, Any]
"""The flags that were given, by the names of their fields."""


def with_flags(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that adds the flags of `kind` to a command; the command gets the used ones as `given`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "given"
        ]
        hints = {name: _bare(hint) for name, hint in get_type_hints(kind).items()}
        flags = [_parameter(field, hints[field.name]) for field in fields(kind)]
        names = {flag.name for flag in flags}
        denials = [
            _denial(field.name)
            for field in fields(kind)
            if hints[field.name] is bool and not field.metadata["flag"].names
        ]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            for denial in denials:
                if values.pop(denial.name):
                    values[denial.name.removeprefix(NO)] = False
            given = {k: v for k, v in values.items() if k in names and v not in (None, [])}
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            command(given=given, **{k: v for k, v in values.items() if k not in names})

        parameters = [*flags, *denials, *own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


@contextmanager
def clean_usage_errors() -> Iterator[None]:
    """The user's words in typer's own errors cannot steer the terminal."""
    try:
        yield
    except UsageError as error:
        error.message = escaped(error.message)
        raise


class CleanCommand(TyperCommand):
    """A command whose usage errors are clean."""

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        with clean_usage_errors():
            return super().make_context(*arguments, **more)


def parse(arguments: list[str], *, help: str | None, read: Callable[[Path], Given]) -> Given:
    """The flags of `chatlm train` that `python -m trainer` was given.

    `read` turns a `--config` file into flags; those on the command line win.

    Raises:
        SystemExit: after --help, or for a flag that does not parse.
    """
    taken: list[Given] = []

    def take(given: Given, config: Config = None) -> None:
        taken.append({**({} if config is None else read(config)), **given})

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=CleanCommand, help=help)(with_flags(TrainOptions)(take))
    try:
        app(args=arguments, prog_name="python -m chatlm.trainer")
    except SystemExit:  # typer raises it after success too
        if not taken:
            raise
    return taken[0]


def _parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    """A flag that is None unless given; the options hold the defaults."""
    flag: Flag = field.metadata["flag"]
    says, metavar = flag.help, None
    if get_origin(hint) is Literal:  # as a metavar the choices would leave no room for the flags
        says, metavar = f"{' | '.join(get_args(hint))}. {says}", "<name>"
    if field.default is not None and not isinstance(field.default, bool):
        says = rf"{says} \[default: {field.default}]"  # without the backslash rich reads a style
    option = typer.Option(
        flag.names or f"--{field.name.replace('_', '-')}",
        help=says,
        metavar=metavar,
        min=flag.least,
        show_default=False,
        rich_help_panel=PANEL_OF.get(field.name),
    )
    return _keyword(field.name, None, Annotated[_listed(hint) | None, option])


def _denial(name: str) -> inspect.Parameter:
    """The hidden flag `--no-x` of a switch `--x`; shown, it would leave no room for other columns."""
    option = typer.Option(f"--no-{name.replace('_', '-')}", hidden=True)
    return _keyword(f"{NO}{name}", False, Annotated[bool, option])


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _bare(annotation: Any) -> Any:
    """The type without `None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    return annotation


def _listed(annotation: Any) -> Any:
    """The type, with a list for a tuple: typer's type of a flag that may be repeated."""
    if get_origin(annotation) is tuple:
        return list[get_args(annotation)[0]]  # type: ignore[misc]
    assert get_origin(annotation) is Literal or isinstance(annotation, type)
    return annotation
