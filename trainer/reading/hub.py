"""Data sets of the Hugging Face hub, through `datasets` where that is installed."""

import re

from autotune.errors import DataError, first_line
from trainer.reading.streams import KINDS, SUFFIXES


def is_hub_id(name: str) -> bool:
    """Whether the name may be `owner/name`, and is not a file's."""
    suffixes = (*KINDS, *SUFFIXES)
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not name.endswith(suffixes)


def cached_files(name: str) -> list[str]:
    """The files of the data set's split `train` in the cache of `datasets`; downloads it if need be."""
    try:
        import datasets
    except ImportError as error:
        what = f"data file {name} is not there"
        raise DataError(what, "for a data set of the hub: pip install datasets") from error
    try:
        found = datasets.load_dataset(name, split="train")
    except Exception as error:  # of the network, the hub, or the data set's files
        what = f"{name} is not a file, and `datasets` does not give it: {first_line(error)}"
        raise DataError(what, "check the name and the network, or give files") from error
    return [file["filename"] for file in found.cache_files]
