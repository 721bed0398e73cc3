"""Generated texts by content hash, and how they come to items and users."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import ray

from llmrec import config, schema, storage
from llmrec.engine.augment import Job, _asked_of_users, _Claims, _plan_users
from llmrec.engine.prompts import check_trainable, user_files
from llmrec.errors import UserError
from llmrec.generation import instructions
from llmrec.layout import Layout
from llmrec.schema import CONTENT_HASH
from llmrec.tables import augmentations, buckets
from llmrec.tables.users import known_users, openings


def texts(*numbers: int) -> pa.Table:
    hashes = [f"{n:032x}" for n in numbers]
    return pa.table(
        [hashes, [f"text {n}" for n in numbers], [""] * len(numbers), [""] * len(numbers)],
        schema=augmentations.GENERATED,
    )


def test_texts_are_found_by_their_hash_wherever_they_lie(tmp_path: Path) -> None:
    uri = str(tmp_path)
    assert augmentations.generated(uri).look_up(["0" * 32]).num_rows == 1
    for some in ((1, 2), (3,), (2, 4)):
        assert augmentations.add(uri, texts(*some)) == augmentations.file_of(
            uri, texts(*some)[CONTENT_HASH].to_pylist()
        )
    known = augmentations.generated(uri)
    asked = texts(4, 9, 1, 2, 1, 304)[CONTENT_HASH].to_pylist()
    assert known.look_up(asked)["text"].to_pylist() == ["text 4", None, "text 1", "text 2", "text 1", None]
    assert known.has(asked).tolist() == [True, False, True, True, True, False]


def test_many_small_files_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentations, "SMALL_ROWS", 3)
    uri = str(tmp_path)
    for n in range(31):
        augmentations.add(uri, texts(n))
    large = augmentations.add(uri, texts(50, 51, 52))
    assert augmentations.tidy(uri, augmentations.generated(uri)) == 0
    augmentations.add(uri, texts(31))
    assert augmentations.tidy(uri, augmentations.generated(uri)) == 32
    files = [file for file, _ in storage.list_files(uri)]
    assert len(files) == 2 and large in files
    every = texts(*range(32), 50, 51, 52)
    assert augmentations.generated(uri).look_up(every[CONTENT_HASH].to_pylist()).equals(every)


def test_interests_open_the_trunks_of_those_who_have_some(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    prompt = config.Prompt(user="{age}: {interests}. ", max_history=9)
    with pytest.raises(UserError, match=r"prompt.user uses '\{interests\}', and .* is not there"):
        user_files(prompt, layout)
    attributes, written = buckets.bucket_file(layout.users, 0), buckets.bucket_file(layout.user_augmentations, 0)
    buckets.write_parquet(pa.table({"user_id": [3, 1], "age": [30, 10]}), attributes)
    buckets.write_parquet(pa.table({"user_id": [1, 7], "text": ["chess", "tea"]}), written)
    assert user_files(prompt, layout) == ({0: attributes}, {0: written})
    asked = pa.array([1, 2, 3, 7], pa.int64())
    assert openings(asked, attributes, prompt, written).to_pylist() == ["10: chess. ", None, "30: . ", ": tea. "]
    assert openings(asked, "", prompt, written).to_pylist() == [": chess. ", None, None, ": tea. "]
    assert openings(asked, attributes, config.Prompt(user="{age}")).to_pylist() == ["10", None, "30", None]
    assert known_users(attributes, written, config.Prompt()) is None
    buckets.write_parquet(pa.table({"user_id": [3], "interests": ["own"]}), attributes)
    with pytest.raises(UserError, match="the users have a column of that name"):
        user_files(prompt, layout)


def test_training_refuses_interests_which_tell_its_answers(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    check_trainable(config.Prompt(user="{age}"), layout)
    with pytest.raises(UserError, match=r"which tells of the events that training asks about"):
        check_trainable(config.Prompt(user="{interests}"), layout)
    buckets.write_parquet(pa.table({"user_id": [3], "interests": ["own"]}), buckets.bucket_file(layout.users, 0))
    check_trainable(config.Prompt(user="{interests}"), layout)


def job_of_users(tmp_path: Path, model: Path) -> Job:
    settings = config.Augment(users={"history": 4})
    return Job(settings, Layout(str(tmp_path)), "users", instructions.read("user.v1"), str(model), "r")


def test_users_texts_tell_of_their_newest_training_events(tmp_path: Path, tiny_model: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = [0, 1, 4, 5, 9, 14]
    lists = [rng.integers(0, 50, n).tolist() for n in lengths]
    train = [max(0, n - 2) for n in lengths]
    histories = pa.table(
        [list(range(6)), lists, [[1] * n for n in lengths], train], schema=schema.histories(pa.int64(), pa.int64())
    )
    uri = buckets.bucket_file(str(tmp_path), 0)
    buckets.write_parquet(histories, uri)
    catalogue = pa.table({"item_id": range(50), "text": [f"w{i % 40}" for i in range(50)]})
    job = job_of_users(tmp_path, tiny_model)
    prompter = job.prompter()
    asked = _asked_of_users(job, uri, catalogue, prompter)
    wanted = {}
    for user, (items, kept) in enumerate(zip(lists, train, strict=True)):
        if kept:
            newest = [f"w{i % 40}" for i in reversed(items[:kept][-4:])]
            wanted[user] = "; ".join(dict.fromkeys(newest))
    assert asked.ids.to_pylist() == list(wanted) == [2, 3, 4, 5]
    assert asked.told == [f"Chosen: {history}" for history in wanted.values()]
    for told, history in zip(asked.told, wanted.values(), strict=True):
        assert prompter.prompt(told).endswith(f"Chosen: {history}\nInterests:")


def test_users_of_several_buckets_with_one_prompt_have_it_answered_once(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of_users(tmp_path, tiny_model)
    catalogue = pa.table({"item_id": range(9), "text": [f"w{i}" for i in range(9)]})
    lists = {0: [[1, 2], [3], [3]], 1: [[3], [4]], 2: [[4], [1, 2]]}
    for bucket, of in lists.items():
        times = [[1] * len(items) for items in of]
        users = pa.table(
            [list(range(len(of))), of, times, [len(items) for items in of]],
            schema=schema.histories(pa.int64(), pa.int64()),
        )
        buckets.write_parquet(users, buckets.bucket_file(str(tmp_path), bucket))
    monkeypatch.setattr(ray, "get", lambda value: value)  # what is asked of the cluster is at hand here
    claims = SimpleNamespace(mine=SimpleNamespace(remote=_Claims().mine))
    known = augmentations.generated(job.folder)

    def planned(bucket: int) -> list[str]:
        source = pa.table({"bucket": [bucket], "uri": [buckets.bucket_file(str(tmp_path), bucket)]})
        shards = _plan_users(source, job, catalogue, None, known, claims)["shard"].to_pylist()
        return [h for shard in shards for h in pa.ipc.open_stream(shard).read_all()[CONTENT_HASH].to_pylist()]

    found = {bucket: planned(bucket) for bucket in lists}
    assert [len(found[bucket]) for bucket in lists] == [2, 1, 0]
    assert len({h for of in found.values() for h in of}) == 3
    assert {bucket: planned(bucket) for bucket in lists} == found, "a task that is lost comes again with the same"


def test_a_table_tells_whence_its_texts_come(tmp_path: Path, tiny_model: Path) -> None:
    job = job_of_users(tmp_path, tiny_model)
    form = schema.augmentations("user_id", pa.int64())
    (row,) = augmentations.table("user_id", pa.array([7]), pa.array(["tea"]), ["0" * 32], form, job.source).to_pylist()
    digest = instructions.read("user.v1").digest
    assert (row["template"], row["template_version"], row["template_digest"]) == ("user", 1, digest)
