"""chatlm: what the user sees while a command runs. Nothing here steers a run.

`state` turns events into one value, `view` draws it with rich, `plain_lines` prints lines without
rich, `live` chooses between the two, and `event_log` keeps the events in a file.
"""

from dashboard.live import open_screen

__all__ = ["open_screen"]
