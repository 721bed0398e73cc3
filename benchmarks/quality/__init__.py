"""How well recommenders rank on real data, in one harness. Run `python -m benchmarks.quality`."""
