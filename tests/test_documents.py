"""What the documents show can be used: configurations, commands, links and the names of settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from benchmarks.quality import command_line
from llmrec import config
from llmrec.cli import app
from llmrec.generation import instructions

pytestmark = pytest.mark.usefixtures("no_variables")
ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in DOCUMENTS}
FILES = (".py", ".json", ".yaml", ".html", ".parquet")
INPUTS = {"items": "s3://bucket/items", "interactions": "s3://bucket/interactions"}


def blocks(language: str) -> list[Any]:
    """(document, text) of every fenced block of a language, without the indentation of a list around it."""
    found = []
    for name, text in TEXTS.items():
        for block in re.finditer(rf"^( *)```{language}\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE):
            lines = block[2].splitlines()
            assert all(line.startswith(block[1]) for line in lines if line), f"{name}: {lines[0]}"
            body = "\n".join(line.removeprefix(block[1]) for line in lines)
            found.append(pytest.param(body, id=f"{name}:{text[: block.start()].count(chr(10)) + 1}"))
    return found


def commands() -> list[Any]:
    """The words of every line of a block of shell that runs something of ours."""
    found = []
    for block in blocks("bash"):
        for line in block.values[0].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for begin, word in enumerate(words):
                if word in ("llmrec", "make") or word.startswith("jobs/"):
                    end = next((at for at in range(begin, len(words)) if words[at] in ("&&", "|", ";")), len(words))
                    found.append(pytest.param(words[begin:end], id=f"{block.id} {' '.join(words[begin:end])}"))
                    break
    return found


@pytest.mark.parametrize("text", blocks("yaml"))
def test_a_shown_configuration_can_be_used(text: str, tmp_path: Path) -> None:
    values = yaml.safe_load(text)
    if "system" in values:
        (tmp_path / "shown.yaml").write_text(text)
        assert instructions.read(str(tmp_path / "shown.yaml")).name == values["name"]
        return
    config.build({"root": "s3://bucket/llmrec", **values, "data": INPUTS | values.get("data", {})})


@pytest.mark.parametrize("words", commands())
def test_a_shown_command_can_be_given(words: list[str]) -> None:
    name, *arguments = words
    if name == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), arguments[0]
        return
    if name.startswith("jobs/"):
        assert (ROOT / name).is_file(), name
        settings = _without(arguments, "--config")
    else:
        settings = _parsed(typer.main.get_command(app), arguments)
    config.build({"root": "s3://bucket/llmrec", "data": INPUTS}, settings)


def _parsed(command: Any, arguments: list[str]) -> list[str]:
    """What a command leaves over as settings of a configuration; typer raises UsageError of what it does not know."""
    while commands := getattr(command, "commands", None):
        command, arguments = commands[arguments[0]], arguments[1:]
    return command.make_context(command.name, list(arguments)).args


def _without(arguments: list[str], option: str) -> list[str]:
    at = arguments.index(option)
    return arguments[:at] + arguments[at + 2 :]


@pytest.mark.parametrize("name", TEXTS)
def test_shown_options_of_the_quality_benchmark_are_known(name: str) -> None:
    for shown in re.findall(r"`(?:python -m benchmarks\.quality )?(--(?:data|methods|splits) [^`]*)`", TEXTS[name]):
        command_line.options("", shlex.split(shown))


@pytest.mark.parametrize("name", TEXTS)
def test_settings_are_called_as_they_are(name: str) -> None:
    sections = "|".join(config.Config.model_fields)
    written = re.findall(rf"`(?:--)?((?:{sections})(?:\.[a-z_]+)+)\b(?![(/*])", TEXTS[name])
    for setting in (setting for setting in written if not setting.endswith(FILES)):
        model: Any = config.Config
        for part in setting.split("."):
            assert part in model.model_fields, f"{name}: {setting}"
            model = model.model_fields[part].annotation
            if not hasattr(model, "model_fields"):
                break


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS[name]):
        path, _, anchor = target.partition("#")
        file = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert file.exists(), f"{name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in known, f"{name}: {target}"
