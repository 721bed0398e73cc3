"""Export the published rankings as files or to a Redis server.

python jobs/export.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("export")
