from __future__ import annotations

import http.server
import os
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
import xxhash

from llmrec import config, storage
from llmrec.errors import StoreError, UserError
from llmrec.layout import Layout

SECRET = "very/secret+value"


@pytest.fixture
def dead_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """An S3 endpoint where nothing listens."""
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    here = tmp_path.resolve()
    assert storage.absolute("a/../b") == str(here / "b")
    assert storage.absolute("~/x") == str(here / "home" / "x")
    assert storage.absolute(f"file://{here}/x") == str(here / "x")


def test_s3_uris_lose_only_their_trailing_slash() -> None:
    assert storage.absolute("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert storage.join("s3://bucket/", "a/", "/b") == "s3://bucket/a/b"
    assert storage.is_s3("s3://b") and not storage.is_s3("/s3://b")


@pytest.mark.parametrize("uri", ["gs://b/x", "http://host/x", "S3://b/x", "hdfs://u:pass@host/x"])
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match="unknown scheme"):
        storage.absolute(uri)


def test_an_s3_uri_needs_a_bucket() -> None:
    for uri in ("s3://", "s3:///x"):
        with pytest.raises(UserError, match="no bucket"):
            storage.absolute(uri)


@pytest.mark.parametrize("uri", ["s3://AKIA:secret@bucket/x", "s3://AKIA@bucket/x", "s3://bucket/x?secret_key=1"])
def test_credentials_in_a_uri_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match="put credentials and endpoint in the AWS_") as caught:
        storage.absolute(uri)
    assert "AKIA" not in str(caught.value)


def test_credentials_with_a_slash_in_a_uri_are_refused() -> None:
    with pytest.raises(UserError, match="put credentials") as caught:
        storage.absolute("s3://AKIA:se/cret@bucket/x")
    assert "cret" not in str(caught.value).replace("credentials", "")


def test_redact_blots_out_secrets_and_credentials_in_uris(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    text = storage.redact(f"key {SECRET} id AKIAEXAMPLE at s3://me:pass@bucket/x and https://you@host/y, s3://bucket/z")
    assert text == "key *** id *** at s3://***@bucket/x and https://***@host/y, s3://bucket/z"


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "SHOP_KEY"])
def test_the_trackers_secrets_and_the_key_by_whatever_name_are_blotted_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.build({"privacy": {"key_variable": "SHOP_KEY"}})
    monkeypatch.setenv(name, f"{SECRET}-longer")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)  # what the other begins with
    assert storage.redact(f"a {SECRET}-longer, b {SECRET}") == "a ***, b ***"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{tmp_path}/deep/er/file.json"
    storage.write_json(uri, {"b": 1, "a": [2]})
    assert storage.read_json(uri) == {"a": [2], "b": 1}
    assert storage.read_bytes(uri).startswith(b'{\n  "a"')
    storage.write_bytes(uri, b"first")

    def interrupted(self: Path, target: object) -> None:
        assert Path(uri).read_bytes() == b"first"
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", interrupted)
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    storage.write_bytes(uri, b"third")
    assert storage.read_bytes(uri) == b"third"
    assert [p.name for p in Path(uri).parent.iterdir()] == ["file.json"]


def test_a_path_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something")
    with pytest.raises(UserError, match=r"file/tables/x\.json: cannot be written \(.*\); mend that") as caught:
        storage.write_json(str(tmp_path / "file" / "tables" / "x.json"), 1)
    assert "\n" not in str(caught.value)


def test_exists_list_and_delete(tmp_path: Path) -> None:
    for name in ("t/b.parquet", "t/sub/a.parquet", "t/note.txt"):
        storage.write_bytes(f"{tmp_path}/{name}", b"12")
    assert storage.list_files(f"{tmp_path}/t", ".parquet") == [
        (f"{tmp_path}/t/b.parquet", 2),
        (f"{tmp_path}/t/sub/a.parquet", 2),
    ]
    assert storage.list_files(f"{tmp_path}/t/b.parquet") == [(f"{tmp_path}/t/b.parquet", 2)]
    assert storage.list_files(f"{tmp_path}/missing") == []
    storage.delete(f"{tmp_path}/t/b.parquet")
    assert not storage.exists(f"{tmp_path}/t/b.parquet") and storage.exists(f"{tmp_path}/t/note.txt")
    storage.delete(f"{tmp_path}/t")
    storage.delete(f"{tmp_path}/t")
    assert not storage.exists(f"{tmp_path}/t")
    with pytest.raises(UserError, match="no such file"):
        storage.read_bytes(f"{tmp_path}/t/b.parquet")


def test_a_manifest_changes_with_content_and_only_with_it(tmp_path: Path) -> None:
    table = f"{tmp_path}/t"
    storage.write_bytes(f"{table}/a", b"one")
    storage.write_bytes(f"{table}/b", b"two")
    before = storage.manifest(table)
    os.utime(f"{table}/a", (1, 1))
    storage.write_bytes(f"{table}/b", b"two")
    assert storage.manifest(table) == before
    storage.write_bytes(f"{table}/b", b"owt")
    changed = storage.manifest(table)
    assert [c[:2] for c in changed] == [b[:2] for b in before] and changed != before
    storage.write_bytes(f"{table}/b", b"two")
    storage.write_bytes(f"{table}/c", b"")
    assert storage.manifest(table) != before
    storage.delete(f"{table}/c")
    assert storage.manifest(table) == before
    assert storage.manifest(f"{tmp_path}/missing") == []


def test_a_manifest_holds_no_file_whole(tmp_path: Path) -> None:
    data = bytes(range(256)) * (1 << 17)  # 32 MiB
    (tmp_path / "log.parquet").write_bytes(data)
    tracemalloc.start()
    ((name, size, tag),) = storage.manifest(str(tmp_path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (name, size, tag) == (f"{tmp_path}/log.parquet", len(data), xxhash.xxh3_128_hexdigest(data))
    assert most < len(data) // 4


def test_a_directory_uploaded_is_the_directory_read(tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "a.bin").write_bytes(bytes(range(256)))
    (made / "sub" / "b").write_bytes(b"")
    uri = f"{tmp_path}/kept/model"
    storage.upload_directory(made, uri)
    found = storage.local_directory(uri, tmp_path / "cache")
    files = {p.relative_to(found).as_posix(): p.read_bytes() for p in found.rglob("*") if p.is_file()}
    assert files == {"a.bin": bytes(range(256)), "sub/b": b""}
    with pytest.raises(UserError, match="no such directory"):
        storage.local_directory(f"{tmp_path}/missing", tmp_path / "cache")


def test_a_store_that_does_not_answer_is_told_within_seconds(dead_store: None) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"s3://bucket/x: no answer from http://127\.0\.0\.1:9") as caught:
        storage.check("s3://bucket/x")
    assert time.monotonic() - started < 5
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)


def test_a_configuration_on_a_store_that_does_not_answer(dead_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with pytest.raises(UserError):
        config.load("s3://bucket/settings.yaml")
    assert time.monotonic() - started < 5


def test_a_local_root_needs_no_store(tmp_path: Path) -> None:
    storage.check(str(tmp_path / "not-yet"))


def test_workers_get_the_store_variables_that_are_set(dead_store: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    found = storage.environment()
    assert found["AWS_SECRET_ACCESS_KEY"] == SECRET and "AWS_SESSION_TOKEN" not in found and "NO_PROXY" not in found
    assert storage.delta_options("s3://b/x") == {"AWS_ALLOW_HTTP": "true"} and storage.delta_options("/x") == {}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://host")
    assert storage.delta_options("s3://b/x") == {}


def test_tables_lie_under_an_absolute_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layout = Layout.of(config.Config(root="out"))
    assert layout.items == str(tmp_path.resolve() / "out/tables/items/items.parquet")
    with pytest.raises(UserError, match="root is not set"):
        Layout.of(config.Config())


class _Refusing(http.server.BaseHTTPRequestHandler):
    def _refuse(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_DELETE = do_POST = _refuse  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


def test_a_bucket_that_may_not_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        for ask in (storage.exists, storage.list_files, storage.manifest, storage.delete):
            with pytest.raises(UserError) as caught:
                ask("s3://theirs/items")
            assert str(caught.value).startswith("s3://theirs/items: ") and "\n" not in str(caught.value)
            assert SECRET not in str(caught.value)
        server.shutdown()


def test_a_store_that_is_away_is_one_line_of_its_own_kind(dead_store: None) -> None:
    """Who takes a missing table for something else does not take this for it."""
    with pytest.raises(StoreError, match=r"s3://theirs/items: no answer from http://127.0.0.1:9"):
        storage.manifest("s3://theirs/items")
