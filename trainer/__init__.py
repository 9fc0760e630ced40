"""chatlm: the accelerate SFT trainer: data, cut, step, loop, checkpoints."""
