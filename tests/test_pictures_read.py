"""Where pictures lie, and that what cannot be read costs its own item the part, never the job."""

from __future__ import annotations

import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tiny_vision import vision_transformer

from llmrec import config
from llmrec.engine import embed
from llmrec.engine.embed_pool import EncoderActor, Job
from llmrec.errors import StoreError, UserError
from llmrec.tables.embeddings import IMAGE

LISTING = b"""<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>ours</Name>
<KeyCount>0</KeyCount><MaxKeys>1</MaxKeys><IsTruncated>false</IsTruncated></ListBucketResult>"""


def png() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


class _Store(http.server.BaseHTTPRequestHandler):
    """S3's answers: in the bucket `ours` a list and, but for closed.png, objects; of other buckets nothing."""

    def do_GET(self) -> None:
        body, status = b"", 403
        if self.path.startswith("/ours") and "closed" not in self.path:
            body, status = (LISTING if "list-type" in self.path else png()), 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "very/secret+value", "AWS_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield server
        server.shutdown()


def uris(names: list[str | None], root: str) -> list[str | None]:
    items = {"images": "photo", "image_root": root, "image_encoder": "vit", "encoder": ""}
    table = pa.table({"item_id": range(len(names)), "photo": pa.array(names, pa.string())})
    found: list[str | None] = embed._rows(table, config.build({"items": items}), "", "r")[IMAGE].to_pylist()
    return found


def read(names: list[str | None], root: str, vision: Path, table: str) -> tuple[np.ndarray, list[str | None]]:
    """What an actor makes of them: float32[n, d], and of each what is wrong."""
    items = config.Items(images="photo", image_encoder=str(vision), image_root=root, batch_size=3)
    problems = np.full(len(names), None, object)
    actor = EncoderActor(Job(items, table), [], None)
    found = actor._encode_images(uris(names, root), problems, np.ones(len(names), bool))
    return found, problems.tolist()


def test_the_root_is_for_relative_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a/b.png", "/abs/c.png", "s3://b/d.png", f"file://{tmp_path}/e.png", None, " "]
    others = ["/abs/c.png", "s3://b/d.png", f"{tmp_path}/e.png", None, None]
    assert uris(names, "s3://shop/photos/") == ["s3://shop/photos/a/b.png", *others]
    assert uris(names, "photos") == [f"{tmp_path}/photos/a/b.png", *others]
    assert uris(names, "") == [f"{tmp_path}/a/b.png", *others]
    with pytest.raises(UserError, match="unknown scheme 'gs://'"):
        uris(names, "gs://photos")


def test_names_that_cannot_be_read_are_set_aside(tmp_path: Path) -> None:
    vision = vision_transformer(tmp_path / "vit")
    (tmp_path / "folder").mkdir()
    (tmp_path / "good.png").write_bytes(png())
    wrong = {
        "https://shop.example/a.png": "unknown scheme 'https://'",
        "s3://key:hidden@b/a.png": "put credentials and endpoint in the AWS_",
        "s3:///a.png": "no bucket",
        "folder": "is a directory",
        "x" * 300 + ".png": "File name too long",
        "good.png/more.png": "Not a directory",
        "zero\0byte.png": "null byte",
        "~nobody-of-this-name/a.png": "",
        "gone.png": "no such file",
    }
    for root in (str(tmp_path), ""):
        names = [n if root or "://" in n or n.startswith("~") else f"{tmp_path}/{n}" for n in ["good.png", *wrong]]
        found, problems = read([*names, None], root, vision, str(tmp_path / "table"))
        assert found.any(axis=1).tolist() == [True] + [False] * (len(wrong) + 1)
        assert problems[0] is None and problems[-1] is None
        for problem, part in zip(problems[1:-1], wrong.values(), strict=True):
            assert problem and part in problem and "\n" not in problem and "hidden" not in problem, (problem, part)


def test_a_picture_that_the_store_refuses_is_set_aside_and_a_store_that_is_away_is_not(
    s3: http.server.ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = vision_transformer(tmp_path / "vit")
    names: list[str | None] = ["good.png", "closed.png", "s3://theirs/c.png"]
    found, problems = read(names, "s3://ours/photos", vision, "s3://ours/table")
    assert found.any(axis=1).tolist() == [True, False, False] and problems[0] is None
    assert "ACCESS_DENIED" in str(problems[1]) and "refuses these credentials" in str(problems[2])
    with pytest.raises(UserError, match=r"s3://theirs/table: .* refuses these credentials"):
        read(names, "s3://ours/photos", vision, "s3://theirs/table")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("llmrec.storage.ATTEMPTS", 1)
    with pytest.raises(StoreError, match=r"s3://ours/photos/good\.png: no answer from"):
        read(names[:1], "s3://ours/photos", vision, str(tmp_path / "table"))
