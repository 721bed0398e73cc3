"""The whole daily run: every stage for which something changed, guards, gate, publish, report.

python jobs/pipeline.py --config FILE [--accept-drift] [--section.key VALUE ...]
"""

from llmrec.engine.job import run_pipeline

if __name__ == "__main__":
    run_pipeline()
