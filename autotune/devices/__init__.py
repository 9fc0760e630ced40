"""What a device holds and allows: driver, host memory, processes, budgets, samples. No torch at import."""
