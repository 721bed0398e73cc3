"""Say of every published item why it is there, in a table of reasons beside the rankings.

python jobs/explain.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("explain")
