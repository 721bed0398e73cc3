"""Users' ids as keyed pseudonyms, against Python's hmac and openssl."""

from __future__ import annotations

import hashlib
import hmac
import re
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest

from llmrec import config, storage
from llmrec.config import Privacy
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.report.users import named
from llmrec.tables import buckets, pseudonyms

KEY = "correct horse battery staple, and more"
ON = Privacy(pseudonyms=True)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setenv(ON.key_variable, KEY)
    return Layout(str(tmp_path))


def expected(text: str) -> str:
    return hmac.new(KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


def made(layout: Layout, kind: pa.DataType) -> pseudonyms.Pseudonyms:
    found = pseudonyms.begun(ON, layout, kind)
    assert found is not None
    pseudonyms.write(found, layout)
    return found


def test_equal_to_the_hmac_of_python_and_of_openssl(layout: Layout) -> None:
    ids = ["anna@example.org", "Øyvind", "", "anna@example.org", None]
    found = made(layout, pa.string()).of(pa.chunked_array([ids[:2], ids[2:]], pa.string()))
    assert found.type == pa.string()
    assert found.to_pylist() == [None if i is None else expected(i) for i in ids]
    told = subprocess.run(
        ["openssl", "dgst", "-sha256", "-hmac", KEY], input=b"anna@example.org", capture_output=True, check=True
    )
    assert told.stdout.decode().split()[-1] == found[0].as_py()


def test_a_number_is_its_decimal_text(layout: Layout) -> None:
    found = made(layout, pa.int64()).of(pa.array([7, -3, 7, None]))
    assert found.to_pylist() == [expected("7"), expected("-3"), expected("7"), None]


@pytest.mark.parametrize(("key", "words"), [("", "is not set"), ("x" * 31, "31 bytes are too short")])
def test_no_key_or_a_short_one_is_told_without_it(
    key: str, words: str, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ON.key_variable, key)
    with pytest.raises(UserError, match=f"{ON.key_variable}.*{words}") as caught:
        pseudonyms.begun(ON, layout, pa.int64())
    assert "\n" not in str(caught.value) and "xxx" not in str(caught.value)


def test_another_key_is_refused_and_neither_is_stored_or_shown(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(layout, pa.int64())
    assert KEY not in repr(before) and KEY not in storage.redact(f"a traceback with {KEY}")
    monkeypatch.setenv(ON.key_variable, other := KEY[::-1])
    for wrong in (lambda: pseudonyms.begun(ON, layout, pa.int64()), lambda: before.of(pa.array([1]))):
        with pytest.raises(UserError, match=f"{ON.key_variable} holds another key") as caught:
            wrong()
        assert KEY not in str(caught.value) and other not in str(caught.value)
    for uri, _ in storage.list_files(layout.root):
        assert KEY.encode() not in storage.read_bytes(uri)


def test_a_key_by_another_name_is_not_shown_by_who_has_used_it(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task gets the pseudonyms, and no configuration."""
    monkeypatch.setenv("TASKS_KEY", other := KEY[::-1])
    assert other in storage.redact(f"a traceback with {other}")
    pseudonyms.Pseudonyms("TASKS_KEY", pseudonyms.check_of("TASKS_KEY"), "string").ready()
    assert other not in storage.redact(f"a traceback with {other}")


def test_tables_do_not_change_from_ids_to_pseudonyms_or_back(layout: Layout) -> None:
    buckets.write_parquet(pa.table({"user_id": [1]}), buckets.bucket_file(layout.histories, 0))
    with pytest.raises(UserError, match=r"users' ids as they are.*choose another root"):
        pseudonyms.begun(ON, layout, pa.int64())
    assert pseudonyms.begun(Privacy(), layout, pa.int64()) is None
    pseudonyms.write(pseudonyms.Pseudonyms(ON.key_variable, pseudonyms.check_of(ON.key_variable), "int64"), layout)
    with pytest.raises(UserError, match=r"set privacy\.pseudonyms = true"):
        pseudonyms.begun(Privacy(), layout, pa.int64())


def test_ids_of_another_type_in_a_brought_table_are_refused(layout: Layout) -> None:
    names = made(layout, pa.int64())
    with pytest.raises(UserError, match=r"pairs\.parquet: column 'user_id' holds string ids, but the log holds int64"):
        pseudonyms.replaced(pa.table({"user_id": ["1"]}), "user_id", names, "pairs.parquet")
    brought = Privacy(pseudonyms=True, brought="pseudonyms")
    assert pseudonyms.brought(brought, layout) is None
    assert pseudonyms.brought(ON, layout) == names


def test_a_person_may_say_an_id(layout: Layout) -> None:
    assert named("7", layout.rankings, ON, layout) == "7"  # nobody has pseudonyms there
    made(layout, pa.int64())
    assert named("7", layout.rankings, ON, layout) == expected("7")
    with pytest.raises(UserError, match="user 'anna': ids in the log are int64"):
        named("anna", layout.rankings, ON, layout)


@pytest.mark.parametrize("text", [str(2**63 - 1), str(-(2**63)), "-7", " 0042 "])
def test_every_id_of_64_bits_can_be_said(text: str) -> None:
    found = pseudonyms.ids([text], "int64")
    assert found.type == pa.int64() and found.to_pylist() == [int(text)]


@pytest.mark.parametrize("text", [str(2**63), str(-(2**63) - 1), "1" * 20, "", "7.0", "+7"])
def test_what_is_no_id_of_64_bits_is_told(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"user '{text}': ids in the log are int64")):
        pseudonyms.ids([text], "int64")


def test_a_key_under_the_name_of_a_setting_is_refused() -> None:
    with pytest.raises(UserError, match=r"LLMREC_, as settings do"):
        config.build({"privacy": {"key_variable": "LLMREC_SECRET"}})
    with pytest.raises(UserError, match="goes with pseudonyms = true"):
        config.build({"privacy": {"brought": "pseudonyms"}})
