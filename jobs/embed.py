"""Encode the items' texts and the graph, once a catalogue.

python jobs/embed.py --config FILE [--section.key VALUE ...]
"""

from llmrec.engine.job import run_job

if __name__ == "__main__":
    run_job("embed")
