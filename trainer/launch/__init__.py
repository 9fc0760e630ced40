"""What `python -m trainer` runs: one training process, under `chatlm train` or a launcher."""
