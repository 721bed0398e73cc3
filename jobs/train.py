"""Fine-tune the ranker with Ray Train.

python jobs/train.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("train")
