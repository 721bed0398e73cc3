"""How recall scales with the catalogue. Run `python -m benchmarks.recall`."""
