"""The options as flags: what typer shows and parses, from the options' own fields."""

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from trainer.config.options import Flag, panel_of

Kind = TypeVar("Kind")
Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML with the flags' names as keys; flags overrule it."),
]
NO = "no_"
"""What the parameter of `--no-x` begins with."""
Given = dict[str, Any]
"""The flags that were given, by the names of their fields."""


def with_flags(kind: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The command with the flags of `kind` before its own; it gets those that were given as `given`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "given"
        ]
        flags = [_parameter(field, hint) for field, hint in _hints(kind)]
        names = {flag.name for flag in flags}
        denials = [denial for field, hint in _hints(kind) if (denial := _denial(field, hint))]

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


def parse(
    kind: type[Kind],
    arguments: list[str],
    *,
    program: str,
    help: str | None,
    read: Callable[[Path], Given],
) -> Given:
    """What the arguments give, for a program without commands; ends the process where typer would.

    `read` gives what a `--config` file chooses, which the flags overrule.
    """
    taken: list[Given] = []

    def take(given: Given, config: Config = None) -> None:
        taken.append({**({} if config is None else read(config)), **given})

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=help)
    app.command(help=help)(with_flags(kind)(take))
    try:
        app(args=arguments, prog_name=program)
    except SystemExit:  # how typer ends, well or not
        if not taken:  # --help, or a flag that it does not know
            raise
    return taken[0]


def _hints(kind: type[Any]) -> list[tuple[Field[Any], Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return [(field, hints[field.name]) for field in fields(kind)]


def _parameter(field: Field[Any], hint: Any) -> inspect.Parameter:
    """A flag that is None unless given: what stands without it, the options say."""
    annotation, flag = get_args(hint)
    assert isinstance(flag, Flag)
    assert field.default is not MISSING
    says, bare = flag.help, _bare(annotation)
    metavar = None
    if get_origin(bare) is Literal:  # in the column of types they would cut the flags' names
        says, metavar = f"{' | '.join(get_args(bare))}. {says}", "<name>"
    if field.default is not None and not isinstance(field.default, bool):
        says = rf"{says} \[default: {field.default}]"  # rich would take it for a style
    option = typer.Option(
        flag.names or f"--{field.name.replace('_', '-')}",
        help=says,
        metavar=metavar,
        min=flag.least,
        show_default=False,
        rich_help_panel=panel_of(field.name),
    )
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[_listed(bare) | None, option],
    )


def _denial(field: Field[Any], hint: Any) -> inspect.Parameter | None:
    """`--no-x` of a switch `--x`: taken, and left out of the help, where a column of them cuts all others."""
    annotation, flag = get_args(hint)
    if _bare(annotation) is not bool or flag.names:
        return None
    option = typer.Option(f"--no-{field.name.replace('_', '-')}", hidden=True)
    return inspect.Parameter(
        f"{NO}{field.name}",
        inspect.Parameter.KEYWORD_ONLY,
        default=False,
        annotation=Annotated[bool, option],
    )


def _bare(annotation: Any) -> Any:
    """The type without `None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    return annotation


def _listed(annotation: Any) -> Any:
    """typer's word for a flag that may be repeated is a list."""
    if get_origin(annotation) is tuple:
        return list[get_args(annotation)[0]]  # type: ignore[misc]
    assert get_origin(annotation) is Literal or isinstance(annotation, type)
    return annotation
