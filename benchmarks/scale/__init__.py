"""How many pairs the scoring job carries when the model costs nothing. Run `python -m benchmarks.scale`."""
