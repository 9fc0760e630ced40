"""Emulated cards that hold the real model and a few short sequences."""

import torch

MIB = 2**20
CUDA_LIBRARIES = 0 if torch.version.cuda is None else 300 * MIB
"""Of a worker's resident memory, what a CUDA build of torch maps more than a CPU build."""
SMALL_CARD = 2**30 + int(CUDA_LIBRARIES / 0.6)
"""Bytes; at 60 % the same is left for sequences with either build."""
