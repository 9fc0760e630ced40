"""chatlm: what the user sees while a command runs: screen state from events, and drawing it.

`state` is values and a pure function, `view` draws it with rich, `plain` prints lines without it,
`live` chooses between the two, `record` keeps the events in a file. Nothing here steers a run.
"""

from dashboard.live import open_screen

__all__ = ["open_screen"]
