"""Bring candidates of your own, in any order, into the buckets that score.py reads.

python jobs/bucket.py --config FILE --bucket.input TABLE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("bucket")
