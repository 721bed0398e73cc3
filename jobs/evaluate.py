"""Measure published rankings against the held-out events.

python jobs/evaluate.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("evaluate")
