"""Clean, split and bucket the log and the catalogue.

python jobs/prepare.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("prepare")
