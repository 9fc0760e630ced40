"""Draws the dashboard of a recorded run as SVG: `python -m bench.picture EVENTS.jsonl OUT.svg`.

The events are a real run's, as `dashboard.event_log.record_events` wrote them; nothing is made up.
"""

import argparse
import io
from pathlib import Path

from rich.console import Console

from dashboard.event_log import read_events
from dashboard.state import Screen, update
from dashboard.view import render


def screen_at(events: Path, at: float | None) -> tuple[Screen, float]:
    """The screen at that second of the run, or at its end, and the second."""
    screen, elapsed = Screen(), 0.0
    for when, event in read_events(events):
        if at is not None and when > at:
            return screen, at
        screen, elapsed = update(screen, event), when
    return screen, elapsed


def draw(screen: Screen, elapsed: float, width: int, title: str) -> str:
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, no_color=False,
        color_system="truecolor",
    )  # fmt: skip
    console.print(render(screen, width, elapsed))
    return console.export_svg(title=title)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--at", type=float, help="seconds since the start; the end without it")
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--title", default="chatlm")
    options = parser.parse_args(arguments)
    screen, elapsed = screen_at(options.events, options.at)
    options.out.write_text(draw(screen, elapsed, options.width, options.title), encoding="utf-8")


if __name__ == "__main__":
    main()
