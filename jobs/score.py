"""Score the candidates, stage the rankings and publish them.

python jobs/score.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("score")
