"""From token rows to micro-batches as tensors, one optimizer step after another. Loads torch."""
