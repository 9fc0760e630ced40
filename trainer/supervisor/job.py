"""A training run and everything around it, as its supervisor has it."""

from dataclasses import dataclass
from pathlib import Path

from autotune.devices.host import HostMeter
from autotune.devices.selection import DeviceSelection
from autotune.events import Emit
from profiles import Profile
from trainer.config.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What to train, and where what happens is told."""

    settings: TrainSettings
    profile: Profile
    devices: DeviceSelection
    host: HostMeter
    emit: Emit
    log_path: Path
