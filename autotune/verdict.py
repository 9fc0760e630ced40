"""What a probe says about its size. Anything else that happens to a probe is an error."""

from enum import StrEnum


class Verdict(StrEnum):
    """The three outcomes that steer the search."""

    FITS = "fits"
    """Ran, and its peak is within the budget."""
    OVER = "over"
    """Ran, and its peak is above the budget; or it was stopped at the hard limit."""
    OOM = "oom"
    """Did not run: the device or the host had no memory for it, or the trial's reason names another
    size limit."""
