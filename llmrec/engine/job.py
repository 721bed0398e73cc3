"""What every file in jobs/ does: read one configuration, run one stage on a cluster, print one summary, exit."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any, NoReturn

from llmrec import config, storage
from llmrec.engine.session import connected, user_error_in
from llmrec.layout import Layout
from llmrec.report import terminal

EXIT_USER, EXIT_BUG, EXIT_INTERRUPTED = 2, 1, 130
EXIT_REFUSED = 3  # a guard, or a condition of promotion, does not hold


def run_job(stage: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a stage from the command line and exit: 0 done, 2 for what the user can mend, 130 on Ctrl-C, 1 else."""
    parser = _parser(stage, f"Run the {stage} stage.")
    known, settings = parser.parse_known_args(arguments)
    sys.exit(guarded(lambda: _run(stage, known.config, known.json, settings)))


def run_pipeline(arguments: Sequence[str] | None = None) -> NoReturn:
    """`run_job` for the daily run of all stages: 3, too, if something refused to publish."""
    parser = _parser("pipeline", "Run every stage for which something changed, and publish if nothing refuses.")
    parser.add_argument("--accept-drift", action="store_true", help="what has drifted is right and stops nothing")
    known, settings = parser.parse_known_args(arguments)
    refused: list[bool] = []

    def work() -> None:
        refused.append(whole_pipeline(config.load(known.config, settings), known.json, known.accept_drift))

    code = guarded(work)
    sys.exit(EXIT_REFUSED if code == 0 and refused[0] else code)


def whole_pipeline(loaded: config.Config, json_file: str | None, accept: bool) -> bool:
    """Run the pipeline and print what it did; whether something refused to publish."""
    layout = Layout.of(loaded)
    storage.check(layout.root)
    from llmrec.engine import stages
    from llmrec.engine.pipeline import checked, not_begun, pipeline
    from llmrec.report.pipeline import print_pipeline

    with terminating(), ExitStack() as session:
        try:
            stages.check("pipeline", loaded)
            checked(loaded)
            session.enter_context(connected(loaded.cluster, layout.root))
        except BaseException:
            not_begun(loaded, layout, progress_line("metrics"))
            raise
        done = asdict(pipeline(loaded, layout, progress_line, accept))
    print_pipeline(done)
    if json_file:
        storage.write_json(json_file, done)
    return bool(done["refused"])


def _parser(job: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"jobs/{job}.py",
        description=f"{description} Any setting can be given as --section.key VALUE.",
        epilog=terminal.settings_help(config.Config),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML configuration, a local file or s3://")
    parser.add_argument("--json", metavar="FILE", help="also write the summary as JSON, a local file or s3://")
    return parser


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
