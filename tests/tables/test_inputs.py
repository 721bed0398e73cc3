"""What lies in a directory that somebody brings."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from llmrec.config import Data
from llmrec.engine.prepare import _input_units
from llmrec.errors import UserError
from llmrec.tables import inputs

LOG = pl.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"], "timestamp": [5, 6]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log by day as Spark leaves it, with what else comes to lie in such folders."""
    (tmp_path / "dt=1").mkdir()
    LOG.write_parquet(tmp_path / "dt=1" / "part-0.parquet")
    LOG.write_parquet(tmp_path / "b.parquet")
    for name in ("_temporary/0/part-0.parquet", "._b.parquet", ".ipynb_checkpoints/b.parquet", "_SUCCESS", "notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"no Parquet")
    return tmp_path


def test_marks_and_unfinished_files_are_not_read(folder: Path) -> None:
    units, _, _ = _input_units(Data(interactions=str(folder)), "", False)
    assert [unit["file"] for unit in units] == [f"{folder}/b.parquet", f"{folder}/dt=1/part-0.parquet"]
    assert list(inputs.files(f"{folder}/")) == [unit["file"] for unit in units]
    both = pl.from_arrow(inputs.read(str(folder)))
    assert isinstance(both, pl.DataFrame) and both.equals(pl.concat([LOG, LOG]))


def test_a_file_that_is_named_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    file = tmp_path / "_log"
    LOG.write_parquet(file)
    assert list(inputs.files(str(file))) == [str(file)] and inputs.read(str(file)).num_rows == 2


def test_a_delta_table_is_refused(tmp_path: Path) -> None:
    """Its folder has rows that it does not show any more."""
    LOG.write_delta(tmp_path)
    LOG.write_delta(tmp_path, mode="overwrite")
    for read in (lambda: _input_units(Data(interactions=str(tmp_path)), "", False), lambda: inputs.read(str(tmp_path))):
        with pytest.raises(UserError, match=f"{tmp_path}: a Delta table, whose folder keeps old rows too") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_directory_without_parquet_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id")
    assert inputs.found(str(tmp_path)) == {} == inputs.found(str(tmp_path / "absent"))
    with pytest.raises(UserError, match=f"{tmp_path}: no Parquet files there"):
        inputs.read(str(tmp_path))
