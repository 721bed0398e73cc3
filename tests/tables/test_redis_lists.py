"""Versions of users' lists in a real Redis server: what is served when, and what each error says."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from redis_server import PASSWORD

from llmrec import config
from llmrec.errors import UserError
from llmrec.tables import redis_lists


def wanted(url: str, **settings: Any) -> config.Redis:
    return config.build({"export": {"redis": {"url": url, "prefix": "shop", "batch": 2, **settings}}}).export.redis


def write(settings: config.Redis, version: str, users: list[Any], serve: bool = True) -> list[str]:
    """Lists of so many users in one version; which versions were deleted."""
    with redis_lists.connected(settings) as client:
        redis_lists.write(client, settings, version, users, [json.dumps({"items": [version]}) for _ in users])
        if not serve:
            return []
        redis_lists.serve(client, settings, version)
        return redis_lists.delete_old(client, settings)


def test_a_version_is_served_only_when_it_is_whole(redis_server: Any) -> None:
    settings, found = wanted(redis_server.url), redis_server.client()
    write(settings, "a-v0", [1, "zoë: *?[x]", 3])
    assert found.get("shop:current") == "a-v0"
    assert json.loads(found.get("shop:a-v0:zoë: *?[x]")) == {"items": ["a-v0"]}
    write(settings, "b-v1", [1, 2], serve=False)  # cut off here
    assert found.get("shop:current") == "a-v0" and found.get("shop:a-v0:3") and found.get("shop:b-v1:1")
    write(settings, "b-v1", [1, 2, 3])
    assert found.get("shop:current") == "b-v1"
    assert sorted(found.keys("shop:a-v0:*")) == sorted(f"shop:a-v0:{u}" for u in (1, "zoë: *?[x]", 3))


def test_old_versions_go_and_those_of_others_stay(redis_server: Any) -> None:
    settings, found = wanted(redis_server.url, keep=1), redis_server.client()
    found.set("shopping:a-v0:1", "mine")
    found.set("shop:a-v0", b"\xff\xfe".decode("latin-1"))

    def at(version: str, seconds_ago: int, whole: bool = True) -> None:
        state = {"whole": whole, "at": int(found.time()[0]) - seconds_ago}
        found.hset("shop:versions", version, json.dumps(state))

    for version in ("a-v0", "b-v1", "c-v2"):
        assert write(settings, version, list(range(5))) == (["a-v0"] if version == "c-v2" else [])
    assert not found.keys("shop:a-v0:*") and len(found.keys("shop:b-v1:*")) == len(found.keys("shop:c-v2:*")) == 5
    assert found.get("shopping:a-v0:1") == "mine" and found.get("shop:a-v0")
    # One is being written by somebody else, another was cut off long ago.
    write(settings, "d-v3", [1], serve=False)
    write(settings, "e-v4", [1], serve=False)
    at("d-v3", 60, whole=False)
    at("e-v4", redis_lists.ABANDONED_SECONDS + 60, whole=False)
    assert write(settings, "c-v2", list(range(5))) == ["e-v4"]
    assert found.get("shop:d-v3:1") and not found.get("shop:e-v4:1")
    # Back to the one before, which is then not old, and none is kept.
    assert write(wanted(redis_server.url, keep=0), "b-v1", list(range(5))) == ["c-v2"]
    assert set(found.hgetall("shop:versions")) == {"b-v1", "d-v3"}


def test_lists_of_users_are_deleted_in_every_version_and_no_others(redis_server: Any) -> None:
    settings, found = wanted(redis_server.url), redis_server.client()
    users = [1, 11, "zoë: *?[x]", 4, 5]
    write(settings, "a-v0", users)
    write(settings, "b-v1", users)
    write(settings, "c-v2", users, serve=False)  # cut off here
    found.set("shopping:a-v0:1", "mine")
    with redis_lists.connected(settings) as client:
        gone = ["1", "zoë: *?[x]", "4", "nobody"]
        assert redis_lists.held(client, settings, gone) == 9
        assert redis_lists.delete_users(client, settings, gone) == 9
        assert redis_lists.held(client, settings, gone) == 0
        assert redis_lists.served(client, settings) == "b-v1"
    left = {f"shop:{version}:{user}" for version in ("a-v0", "b-v1", "c-v2") for user in (11, 5)}
    assert set(found.keys()) == {*left, "shop:current", "shop:versions", "shopping:a-v0:1"}


def test_lists_expire_and_the_same_run_renews_them(redis_server: Any) -> None:
    settings, found = wanted(redis_server.url, expire_seconds=500), redis_server.client()
    write(settings, "a-v0", [1, 2, 3])
    before = {key: found.get(key) for key in found.keys("shop:a-v0:*")}
    assert all(490 < found.ttl(key) <= 500 for key in before) and found.ttl("shop:current") == -1
    for key in before:
        found.expire(key, 10)
    write(settings, "a-v0", [1, 2, 3])
    assert {key: found.get(key) for key in found.keys("shop:a-v0:*")} == before
    assert all(490 < found.ttl(key) <= 500 for key in before)


def refused(settings: config.Redis) -> str:
    with pytest.raises(UserError) as caught:
        write(settings, "x-v0", [1, 2, 3])
    assert "\n" not in str(caught.value) and PASSWORD not in str(caught.value)
    return str(caught.value)


def test_each_refusal_is_one_line(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, found = wanted(redis_server.url), redis_server.client()
    with monkeypatch.context() as patched:
        patched.setenv("LLMREC_REDIS_PASSWORD", "wrong-one")
        told = refused(settings)
        assert "refuses the name or password" in told and "LLMREC_REDIS_PASSWORD" in told and "wrong-one" not in told
        patched.delenv("LLMREC_REDIS_PASSWORD")
        assert refused(settings).endswith("wants a password; set the variable LLMREC_REDIS_PASSWORD")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setattr(redis_lists, "RETRIES", 0)
        assert "no answer; is export.redis.url right" in refused(wanted(f"redis://127.0.0.1:{closed.getsockname()[1]}"))
    found.config_set("maxmemory", 1)
    assert "the server refuses (" in refused(settings) and "maxmemory" in refused(settings)
    found.config_set("maxmemory", 0)
    found.acl_setuser("reader", enabled=True, passwords=[f"+{PASSWORD}"], commands=["+ping", "+time", "+get"])
    assert "the server refuses (" in refused(wanted(redis_server.url.replace("//", "//reader@")))
    redis_server.process.kill()
    redis_server.process.wait()
    assert "no answer" in refused(settings)


def test_a_server_that_is_lost_while_it_is_written_to(redis_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_lists, "RETRIES", 0)
    with (
        pytest.raises(UserError, match="the connection was lost") as caught,
        redis_lists.connected(wanted(redis_server.url)) as client,
    ):
        redis_lists.write(client, wanted(redis_server.url), "a-v0", [1], ["{}"])
        redis_server.process.kill()
        redis_server.process.wait()
        redis_lists.write(client, wanted(redis_server.url), "a-v0", [2], ["{}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("redis://:secret-thing@host:6379/0", "put the password in the variable LLMREC_REDIS_PASSWORD"),
        ("redis://host?password=secret-thing", "put the password in the variable LLMREC_REDIS_PASSWORD"),
        ("http://host:6379", "use redis://host:6379/0"),
        ("redis://host:port", "use redis://host:6379/0"),
        ("redis://host:6379/db", "use redis://host:6379/0"),
    ],
)
def test_an_address_is_no_place_for_a_password(url: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        wanted(url)
    assert part in str(caught.value) and "secret-thing" not in str(caught.value)


def test_no_prefix_that_a_scan_would_take_for_a_pattern(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"export\.redis\.prefix"):
        wanted("redis://host", prefix="a*")


def test_the_rights_that_the_documentation_names_are_enough(redis_server: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    rights = re.search(r"`((?:\+\w+ ?)+)`", text)
    assert rights is not None
    found = redis_server.client()
    found.acl_setuser("exporter", enabled=True, passwords=[f"+{PASSWORD}"], commands=rights[1].split(), keys=["shop:*"])
    settings = wanted(redis_server.url.replace("//", "//exporter@"), keep=0)
    write(settings, "a-v0", [1, 2])
    assert write(settings, "b-v1", [1, 2]) == ["a-v0"] and found.get("shop:current") == "b-v1"
