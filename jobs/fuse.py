"""Fit what the ranker's score and what each source of candidates says weigh together.

python jobs/fuse.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("fuse")
