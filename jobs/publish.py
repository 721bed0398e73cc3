"""Publish the run that score left staged.

python jobs/publish.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("publish")
