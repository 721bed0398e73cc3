"""Find candidates for every user.

python jobs/recall.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("recall")
