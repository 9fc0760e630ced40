"""chatlm: profiles: what a tuning found, where it is stored, and the presets small, fast and standard."""

from profiles.schema import Profile
from profiles.store import load, names, save

__all__ = ["Profile", "load", "names", "save"]
