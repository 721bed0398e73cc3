"""Who may ask, how much, and what refusals say; a real HTTP server, and a ranking that counts."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
import uvicorn

from llmrec import config
from llmrec.errors import UserError
from llmrec.serving import web
from llmrec.serving.ranking import Answer, Ranked
from llmrec.serving.request import Asked, Bounds, InvalidError

SECRET = "sësame"
LIMITS = {"max_candidates": 4, "max_history": 3, "max_body_bytes": 300}


@dataclass
class Ranker:
    asked: list[Asked] = field(default_factory=list)
    failed: str = ""

    async def rank(self, asked: Asked) -> Answer | UserError:
        self.asked.append(asked)
        if asked.user_id == 13:
            return UserError("too many positions; lower prompt.max_history")
        if asked.candidates is None:
            return InvalidError("candidates: missing; name some")
        items = [Ranked(r, item, 1.0 / r, 1.0 / r) for r, item in enumerate(asked.candidates, 1)]
        return Answer(asked.user_id, True, "m1", items, [], [], [])


@dataclass
class Server:
    url: str
    ranker: Ranker

    def call(self, path: str, body: Any = None, token: str | None = SECRET, **headers: str) -> tuple[int, Any, Any]:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}".encode().decode("latin-1")
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read()), answer.headers
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            return error.code, json.loads(text) if text.startswith("{") else text, error.headers


def bounds(kind: pa.DataType = pa.int64()) -> Bounds:  # noqa: B008
    limits = config.build({"serve": LIMITS}).serve
    return Bounds(limits, 10, kind, kind, ["place", "hour"], ["age", "town"])


@pytest.fixture
def server() -> Iterator[Server]:
    ranker = Ranker()
    app = web.application(ranker.rank, lambda: ranker.failed, bounds(), "m1", SECRET)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        yield Server(f"http://127.0.0.1:{listening.getsockname()[1]}", ranker)
        running.should_exit = True
        thread.join(10)


def test_an_answer(server: Server) -> None:
    status, found, _ = server.call("/rank", {"user_id": 7, "candidates": [5, 6], "context": {"place": True, "hour": 8}})
    assert status == 200 and found["items"][0] == {
        "rank": 1, "item_id": 5, "score": 1.0, "ranker_score": 1.0, "probability": None,
    }  # fmt: skip
    assert set(found) == {
        "user_id", "known", "model_version", "items", "set_aside", "filtered", "unknown_history",
    }  # fmt: skip
    assert server.ranker.asked[0].context == {"place": "true", "hour": "8"}


def test_without_the_token_nothing_is_ranked(server: Server) -> None:
    for token in (None, "", "sesame", SECRET + "x", SECRET[:-1]):
        status, found, headers = server.call("/rank", {"candidates": [1]}, token)
        assert status == 401 and found == {"error": "give the token as Authorization: Bearer TOKEN"}
        assert headers["WWW-Authenticate"] == "Bearer"
    basic = f"Basic {SECRET}".encode().decode("latin-1")
    assert server.call("/rank", {"candidates": [1]}, None, Authorization=basic)[0] == 401
    assert not server.ranker.asked
    assert server.call("/rank", {"candidates": [1]})[0] == 200


def test_health_and_readiness_need_no_token(server: Server) -> None:
    told = {"status": "ok", "model_loaded": True, "model_version": "m1"}
    assert server.call("/healthz", token=None)[:2] == (200, told)
    assert server.call("/readyz", token=None)[:2] == (200, {"status": "ready", "model_version": "m1"})
    server.ranker.failed = "scoring failed (RuntimeError)"
    assert server.call("/readyz", token=None)[:2] == (503, {"error": "scoring failed (RuntimeError)"})
    assert server.call("/rank")[0] == 405 and server.call("/elsewhere")[0] == 404


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"{", "request: invalid JSON"),
        (b"[1]", "request: input should be an object"),
        ({"candidates": []}, "candidates: list should have at least 1 item"),
        ({"candidates": "1"}, "candidates: input should be a valid array"),
        ({"candidates": [1, None]}, "candidates.1: an id is a whole number or a text"),
        ({"candidates": [1, True]}, "candidates.1: an id is a whole number or a text"),
        ({"candidates": [1, 1.5]}, "candidates.1: an id is a whole number or a text"),
        ({"candidates": [1, "a"]}, "candidates.1: 'a' is no int64 id, as the prepared tables hold"),
        ({"candidates": [2**63]}, "candidates.0: 9223372036854775808 is no int64 id"),
        ({"candidates": [1, 2, 3, 4, 5]}, "candidates: 5 items, more than serve.max_candidates = 4 allows"),
        ({"candidates": [1], "history": [1] * 4}, "history: 4 items, more than serve.max_history = 3 allows"),
        ({"candidates": [1], "history": ["x"]}, "history.0: 'x' is no int64 id"),
        ({"candidates": [1], "user_id": "u1"}, "user_id: 'u1' is no int64 id"),
        ({"candidates": [1], "user_id": [1]}, "user_id: an id is a whole number or a text"),
        ({"candidates": [1], "top_k": 0}, "top_k: input should be greater than or equal to 1"),
        ({"candidates": [1], "top_k": 11}, "top_k: 11 is more than score.top_k = 10"),
        ({"candidates": [1], "context": {"plce": "x"}}, "context.plce: the ranker reads place, hour, not this"),
        ({"candidates": [1], "context": {"hour": 1.5}}, "context.hour: a context is a text"),
        ({"candidates": [1], "attributes": {"age": 1}}, "attributes.town: missing; give it, null if it is not known"),
        ({"candidates": [1], "attributes": {"age": {}, "town": 1}}, "attributes.age: an attribute is a text"),
        ({"candidates": [1], "kandidaten": [2]}, "kandidaten: unknown field; there are user_id, history, context"),
        ({"user_id": 1}, "candidates: missing; name some"),
        ({"candidates": [1], "user_id": 13}, "request: too many positions; lower prompt.max_history"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_field(server: Server, body: Any, line: str) -> None:
    status, found, _ = server.call("/rank", body)
    assert status == 422 and found["error"].startswith(line) and "\n" not in found["error"], found


def test_a_body_may_be_so_large(server: Server) -> None:
    fits = json.dumps({"candidates": [1]}).encode()
    assert server.call("/rank", fits.ljust(300))[0] == 200
    status, found, _ = server.call("/rank", fits.ljust(301))
    assert (status, found["error"]) == (413, "body: larger than serve.max_body_bytes = 300")


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_SERVE_TOKEN", "t")
    assert web.token(config.Serve()) == "t" and web.token(config.Serve(open=True)) is None
    for empty in ("", None):
        monkeypatch.setenv("LLMREC_SERVE_TOKEN", empty) if empty is not None else monkeypatch.delenv(
            "LLMREC_SERVE_TOKEN"
        )
        with pytest.raises(UserError, match="set the variable LLMREC_SERVE_TOKEN"):
            web.token(config.Serve())


def test_limits_that_contradict() -> None:
    with pytest.raises(UserError, match="serve: max_ongoing = 4 is less than batch = 8; raise it"):
        config.build({"serve": {"max_ongoing": 4}})
