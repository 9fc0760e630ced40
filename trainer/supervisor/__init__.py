"""What `chatlm` runs outside the workers: start, watch and end them. No torch."""
