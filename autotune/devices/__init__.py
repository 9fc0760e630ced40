"""What a device holds and allows: the driver, host memory, processes, budgets, samples. No torch at import."""
