"""chatlm: what was found: the profile, its store, and the presets small, fast and standard."""

from profiles.schema import Profile
from profiles.store import load, names, save

__all__ = ["Profile", "load", "names", "save"]
