"""Scoring engines side by side in one run: same weights, same requests, same machine. Run `python -m benchmarks.speed`.

This package's modules are also imported by the engines' own environments, where `llmrec` is not installed: only
`request`, `child`, and the module of the engine itself may be needed there.
"""
