"""The accelerate SFT trainer: data, cut, step, loop, checkpoints."""
