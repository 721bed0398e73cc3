"""The service as a web application: who may ask, how much, and how answers and refusals look. Knows no Ray."""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from llmrec import config, storage
from llmrec.errors import UserError
from llmrec.serving.ranking import Answer
from llmrec.serving.request import Asked, Bounds, InvalidError, parse

Rank = Callable[[Asked], Awaitable[Answer | UserError]]
State = Callable[[], str]


def token(settings: config.Serve) -> str | None:
    """What who asks must give, from the environment; None if the service is open.

    Raises:
        UserError: there is none.
    """
    if settings.open:
        return None
    found = os.environ.get(storage.SERVE_TOKEN, "")
    if not found:
        raise UserError(f"set the variable {storage.SERVE_TOKEN} to a secret of your own, or serve.open = true")
    return found


def application(rank: Rank, failed: State, bounds: Bounds, model_version: str, secret: str | None) -> Starlette:
    """POST /rank, GET /healthz and /readyz.

    failed: what went wrong with the last requests that were scored, empty if nothing; secret: the token.
    """

    async def ranked(request: Request) -> JSONResponse:
        if not _allowed(request, secret):
            return _refused(401, "give the token as Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        body = await _body(request, bounds.limits.max_body_bytes)
        if body is None:
            return _refused(413, f"body: larger than serve.max_body_bytes = {bounds.limits.max_body_bytes:,}")
        try:
            asked = parse(body, bounds)
        except InvalidError as error:
            return _refused(422, str(error))
        answer = await rank(asked)
        if isinstance(answer, UserError):
            return _refused(422, str(answer) if isinstance(answer, InvalidError) else f"request: {answer}")
        return JSONResponse(asdict(answer))

    async def healthy(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "model_loaded": True, "model_version": model_version})

    async def ready(request: Request) -> JSONResponse:
        if told := failed():
            return _refused(503, told)
        return JSONResponse({"status": "ready", "model_version": model_version})

    return Starlette(routes=[
        Route("/rank", ranked, methods=["POST"]), Route("/healthz", healthy), Route("/readyz", ready),
    ])  # fmt: skip


def _allowed(request: Request, secret: str | None) -> bool:
    if secret is None:
        return True
    # As bytes, which may be any: starlette reads headers as latin-1, and of texts compare_digest takes ASCII alone.
    kind, _, given = request.headers.get("authorization", "").encode("latin-1").partition(b" ")
    same = hmac.compare_digest(given.strip(), secret.encode())
    return kind.lower() == b"bearer" and same


async def _body(request: Request, most: int) -> bytes | None:
    """None if it is larger, which is known before all of it has come."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            return None
        parts.append(part)
    return b"".join(parts)


def _refused(status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": storage.redact(line)}, status, headers)
