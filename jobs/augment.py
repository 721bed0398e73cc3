"""Let a language model write texts of items and users of which little is said.

python jobs/augment.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("augment")
