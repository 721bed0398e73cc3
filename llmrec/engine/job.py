"""What every file in jobs/ does: read one configuration, run one stage on a cluster, print one summary, exit."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from llmrec import config, storage
from llmrec.engine.session import connected, user_error_in
from llmrec.layout import Layout
from llmrec.report import terminal

EXIT_USER, EXIT_BUG, EXIT_INTERRUPTED = 2, 1, 130


def run_job(stage: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a stage from the command line and exit: 0 done, 2 for what the user can mend, 130 on Ctrl-C, 1 else."""
    parser = argparse.ArgumentParser(
        prog=f"jobs/{stage}.py",
        description=f"Run the {stage} stage. Any setting can be given as --section.key VALUE.",
        epilog=terminal.settings_help(config.Config),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML configuration, a local file or s3://")
    parser.add_argument("--json", metavar="FILE", help="also write the summary as JSON, a local file or s3://")
    known, settings = parser.parse_known_args(arguments)
    sys.exit(guarded(lambda: _run(stage, known.config, known.json, settings)))


def _run(stage: str, file: str | None, json_file: str | None, settings: Sequence[str]) -> None:
    loaded = config.load(file, settings)
    root = Layout.of(loaded).root
    storage.check(root)
    # Torch and transformers take seconds that a wrong setting need not wait for. They come before Ray's threads: loaded
    # beside them, oneMKL sometimes ends the process with "Cannot load libtorch_cpu.so".
    from llmrec.engine import stages

    stages.check(stage, loaded)
    with terminating(), connected(loaded.cluster, root):
        say = progress_line(stage)
        summary = stages.run(stage, loaded, say)
    terminal.print_summary(stage, summary)
    if json_file:
        storage.write_json(json_file, summary)


def guarded(work: Callable[[], Any]) -> int:
    """Run something for a user; the exit code. What he can mend is one line, a bug is a traceback without secrets."""
    try:
        work()
    except KeyboardInterrupt:
        print("interrupted; nothing half-done was published", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the outermost frame
        told = user_error_in(error)
        if told is None:
            print(storage.redact("".join(traceback.format_exception(error))), file=sys.stderr)  # noqa: T201
            return EXIT_BUG
        print(f"error: {storage.redact(str(told))}", file=sys.stderr)  # noqa: T201
        return EXIT_USER
    return 0


def progress_line(stage: str) -> Callable[[str], None]:
    """A function that prints a line with the stage and the seconds since it began."""
    started = time.monotonic()

    def say(message: str) -> None:
        print(f"[{stage} {time.monotonic() - started:5.0f}s] {message}", flush=True)  # noqa: T201

    return say


@contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM ends the process the way Ctrl-C does, so that what was started is stopped."""

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
