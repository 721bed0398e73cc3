"""Users' lists in a Redis server, a key a user, in versions of which one is served.

    <prefix>:current                      the version that is served, such as 9be01c22aa7f4d10-v3
    <prefix>:<version>:<user_id>          {"items":[{"item_id":5,"score":0.5},...]}
    <prefix>:versions                     a hash: what each version that has keys is (`State`)

A version is written beside the one that is served; one transaction then points to it. Who writes the same version again
writes the same keys. Nothing is locked: of two who write different versions at once, the last one to end is served, and
neither deletes what the other writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llmrec import config, storage
from llmrec.errors import UserError

if TYPE_CHECKING:
    from redis import Redis

CONNECT_SECONDS, ANSWER_SECONDS, RETRIES = 3, 20, 2
# A version of which nothing was written for so long is no longer being written.
ABANDONED_SECONDS = 3600
SCANNED = 1000  # keys that a step of a scan looks at


@dataclass(frozen=True)
class State:
    """Of a version. whole: all of its keys were written, and it was served; at: when it was last written or served, in
    unix seconds by the server's clock."""

    whole: bool
    at: float


@contextmanager
def connected(settings: config.Redis) -> Iterator[Redis]:
    """A connection that has answered, with the password of the environment.

    Raises:
        UserError: here and while it is used, for whatever the server or the network refuses.
    """
    try:
        import redis
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry
    except ImportError:
        raise UserError("the package redis is not installed; pip install 'llmrec[redis]'") from None
    where, password = address(settings), os.environ.get(storage.REDIS_PASSWORD) or None
    client = redis.Redis.from_url(
        settings.url, password=password, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=ANSWER_SECONDS,
        retry=Retry(ExponentialBackoff(cap=2, base=0.5), RETRIES),
    )  # fmt: skip
    answered = False
    try:
        client.ping()
        answered = True
        yield client
    except redis.AuthenticationError as error:
        if password is None:
            raise UserError(f"{where}: wants a password; set the variable {storage.REDIS_PASSWORD}") from None
        raise UserError(
            f"{where}: refuses the name or password ({_line(error)}); check the variable {storage.REDIS_PASSWORD}"
        ) from None
    except (redis.ConnectionError, redis.TimeoutError) as error:
        what = "the connection was lost" if answered else "no answer; is export.redis.url right and the server up?"
        raise UserError(f"{where}: {what} ({_line(error)})") from None
    except redis.RedisError as error:
        raise UserError(f"{where}: the server refuses ({_line(error)})") from None
    finally:
        client.close()


def address(settings: config.Redis) -> str:
    """Where the server is, without who asks."""
    parts = urlsplit(settings.url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def write(client: Redis, settings: config.Redis, version: str, users: Sequence[Any], values: Sequence[str]) -> int:
    """Write some users' lists into a version that is not served yet; how many bytes the values are."""
    expire = settings.expire_seconds or None
    for start in range(0, len(users), settings.batch):
        now = _now(client)
        with client.pipeline(transaction=False) as batch:
            batch.hset(_versions(settings), version, _dump(State(False, now)))
            for i in range(start, min(start + settings.batch, len(users))):
                batch.set(f"{settings.prefix}:{version}:{users[i]}", values[i], ex=expire)
            batch.execute()
    return sum(len(value.encode()) for value in values)


def served(client: Redis, settings: config.Redis) -> str | None:
    """The version that readers are pointed to."""
    found = client.get(_current(settings))
    return None if found is None else _text(found)


def serve(client: Redis, settings: config.Redis, version: str) -> str | None:
    """Point readers to a version that is whole; the one before."""
    before, whole = served(client, settings), _dump(State(True, _now(client)))
    with client.pipeline(transaction=True) as switch:
        switch.hset(_versions(settings), version, whole)
        if before is not None:
            switch.hset(_versions(settings), before, whole)
        switch.set(_current(settings), version)
        switch.execute()
    return before


def delete_old(client: Redis, settings: config.Redis) -> list[str]:
    """Delete all versions but the one that is served, the newest `keep` before it, and those that are being written.

    Which they were. Looks through all keys of the server once, if there is something to delete.
    """
    now, current = _now(client), served(client, settings)
    found = {_text(name): State(**json.loads(state)) for name, state in client.hgetall(_versions(settings)).items()}
    before = sorted((v for v in found if found[v].whole and v != current), key=lambda v: (-found[v].at, v))
    cut_off = [v for v in found if not found[v].whole and v != current and found[v].at < now - ABANDONED_SECONDS]
    old = before[settings.keep :] + cut_off
    if not old:
        return []
    prefixes, batch = tuple(f"{settings.prefix}:{version}:".encode() for version in old), []
    for key in client.scan_iter(match=f"{settings.prefix}:*", count=SCANNED):
        if key.startswith(prefixes):
            batch.append(key)
            if len(batch) == settings.batch:
                client.unlink(*batch)
                batch = []
    if batch:
        client.unlink(*batch)
    client.hdel(_versions(settings), *old)
    return old


def held(client: Redis, settings: config.Redis, users: Sequence[str]) -> int:
    """How many lists of these users there are, in all versions."""
    return sum(client.exists(*keys) for keys in _keys_of(client, settings, users))


def delete_users(client: Redis, settings: config.Redis, users: Sequence[str]) -> int:
    """Delete these users' lists in all versions, the one that is served too; how many they were."""
    return sum(client.unlink(*keys) for keys in _keys_of(client, settings, users))


def _keys_of(client: Redis, settings: config.Redis, users: Sequence[str]) -> Iterator[list[str]]:
    """Keys of users in every version that may have some, a batch at a time."""
    for version in map(_text, client.hkeys(_versions(settings))):
        for start in range(0, len(users), settings.batch):
            yield [f"{settings.prefix}:{version}:{user}" for user in users[start : start + settings.batch]]


def _current(settings: config.Redis) -> str:
    return f"{settings.prefix}:current"


def _versions(settings: config.Redis) -> str:
    return f"{settings.prefix}:versions"


def _text(found: bytes | str) -> str:
    return found if isinstance(found, str) else found.decode()


def _now(client: Redis) -> float:
    seconds, microseconds = client.time()
    return float(seconds) + float(microseconds) / 1e6


def _dump(state: State) -> str:
    return json.dumps({"whole": state.whole, "at": state.at})


def _line(error: Exception) -> str:
    return storage.redact(str(error).splitlines()[0] if str(error) else type(error).__name__)[:160]
