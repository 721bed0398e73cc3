"""Bring what came of published rankings back as events that make up for the places where they were shown.

python jobs/feedback.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("feedback")
