"""Search for the settings that train best, by trials side by side.

python jobs/search.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("search")
