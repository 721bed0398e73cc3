"""Which ranker training goes on from, whatever was cut off before. No cluster."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from served import ITEMS, settings_of

from llmrec import config, storage
from llmrec.engine import forget
from llmrec.engine.prompts import load_prompts
from llmrec.engine.train import _model_card, _run_name, train
from llmrec.engine.training_histories import Counted
from llmrec.engine.training_worker import METRIC, STEPS, VALIDATIONS
from llmrec.engine.warm_start import COMPLETE, copies_of_previous, starting_ranker
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.ranker.card import RANKER_FILE, model_version
from llmrec.ranker.model import Ranker
from llmrec.tables import buckets


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> config.Config:
    found = settings_of(str(tmp_path), tmp_path, tiny_model, "text", {"train": {"start": "previous"}})
    storage.upload_directory(Path(found.score.model), Layout.of(found).ranker)
    return found


def test_a_run_that_was_killed_while_it_saved_leaves_the_ranker_before(settings: config.Config) -> None:
    """The next day has other events, so that its run has another name."""
    layout = Layout.of(settings)
    first, card = starting_ranker(settings, layout, "run-old")
    assert card is not None and storage.exists(f"{first}/{COMPLETE}")
    storage.delete(f"{layout.ranker}/{RANKER_FILE}")  # as it is while another is written
    start, found = starting_ranker(settings, layout, "run-new")
    assert start.endswith("start/run-new") and found == card
    assert Ranker.from_pretrained(start).card == card


def test_nothing_to_go_on_from(settings: config.Config) -> None:
    storage.delete(Layout.of(settings).ranker)
    assert starting_ranker(settings, Layout.of(settings), "run") == ("", None)


def test_a_ranker_that_knows_who_was_forgotten_is_no_start_but_the_next_one_is(settings: config.Config) -> None:
    layout = Layout.of(settings)
    starting_ranker(settings, layout, "cut-off")  # leaves a copy of it
    who = forget.named(settings, layout, ["3"])
    assert forget.forget(settings, layout, who, [], print).ranker_knows
    assert forget.forget(settings, layout, who, [], print).ranker_knows  # as of one that was cut off
    for run in ("cut-off", "run-new"):
        assert starting_ranker(settings, layout, run) == ("", None)
    assert storage.list_files(layout.ranker) and not storage.list_files(copies_of_previous(layout))
    storage.write_bytes(f"{layout.ranker}/README.md", b"made anew")
    assert starting_ranker(settings, layout, "run-new")[1] is not None
    # Who is on the list already changes nothing, another does.
    assert not forget.forget(settings, layout, who, [], print).ranker_knows
    assert starting_ranker(settings, layout, "run-newer")[1] is not None
    assert forget.forget(settings, layout, forget.named(settings, layout, ["4"]), [], print).ranker_knows
    assert starting_ranker(settings, layout, "run-newer") == ("", None)


def test_a_copy_that_knows_him_is_no_start_either(settings: config.Config) -> None:
    """The run that would have saved another in the ranker's place was killed while it did."""
    layout = Layout.of(settings)
    starting_ranker(settings, layout, "run-old")
    storage.delete(f"{layout.ranker}/{RANKER_FILE}")
    assert not forget.forget(settings, layout, forget.named(settings, layout, ["3"]), [], print).ranker_knows
    assert starting_ranker(settings, layout, "run-new") == ("", None)


def test_the_card_is_there_when_all_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (RANKER_FILE, "config.json", "z.bin"):
        (tmp_path / name).write_text(name)
    written: list[str] = []
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: written.append(uri.rsplit("/", 1)[1]))
    storage.upload_directory(tmp_path, "s3://bucket/ranker", last=RANKER_FILE)
    assert written == ["config.json", "z.bin", RANKER_FILE]


def test_checkpoints_are_of_the_same_inputs(settings: config.Config) -> None:
    layout = Layout.of(settings)
    before = _run_name(settings, layout)
    assert before == _run_name(settings, layout)
    storage.write_bytes(layout.items, storage.read_bytes(layout.items) + b" ")
    names = {before, _run_name(settings, layout)}
    other = settings.model_copy(update={"recall": config.Recall(item_item={"decay": 0.5})})
    names.add(_run_name(other, layout))
    start = settings.model_copy(update={"train": settings.train.model_copy(update={"start": settings.score.model})})
    names.add(_run_name(start, layout))
    storage.write_bytes(f"{settings.score.model}/more", b"of it")
    names.add(_run_name(start, layout))
    assert len(names) == 5


def test_a_model_card_tells_no_metric_where_nothing_validated(settings: config.Config) -> None:
    """Without it a checkpoint is chosen by its step, which is no NDCG."""
    seen = {STEPS: 60, "decisions": 5, METRIC: 60.0}
    there = Counted(users=9, held_out=3, newest=None)
    assert f"| {METRIC} | none |" in _model_card(settings, there, seen | {VALIDATIONS: []}, None)
    assert f"| {METRIC} | 0.2500 |" in _model_card(
        settings, there, seen | {METRIC: 0.25, VALIDATIONS: [(60, 0.25)]}, None
    )


@pytest.fixture
def quiet_day(tmp_path: Path, tiny_model: Path) -> config.Config:
    """A ranker of yesterday, a new item, and one user with an event that is new to the ranker, for two workers."""
    sections = {
        "train": {"start": "previous", "new_events": True, "workers": 2}, "items": {"encoder": "", "id": True},
        "data": {"split": "time"},
    }  # fmt: skip
    day = settings_of(str(tmp_path / "root"), tmp_path, tiny_model, "token", sections)
    layout, ranker = Layout.of(day), Ranker.from_pretrained(day.score.model)
    ranker.card = ranker.card.model_copy(update={"trained": True, "trained_until": 50})
    ranker.save_pretrained(layout.ranker, "")
    past = {"user_id": [1, 2], "item_ids": [[3, 4], [5, 6]], "timestamps": [[9, 50], [9, 51]]}
    buckets.write_parquet(
        pa.table(past | {"train_length": pa.array([2, 2], pa.int32())}), buckets.bucket_file(layout.histories, 0)
    )
    for uri, _ in storage.list_files(layout.histories)[1:]:
        storage.delete(uri)
    items = buckets.read_parquet(layout.items)
    new = items.slice(3, 1).set_column(0, "item_id", pa.array([99]))
    buckets.write_parquet(pa.concat_tables([items, new]), layout.items)
    return day


def test_a_day_with_too_few_new_events_keeps_the_ranker_which_foretells_the_new_item(quiet_day: config.Config) -> None:
    layout, said = Layout.of(quiet_day), list[str]()
    before, version = storage.manifest(layout.ranker), model_version(layout.ranker)
    done = train(quiet_day, layout, said.append)
    assert (done.steps, done.users, done.start, done.best, done.version) == (0, 1, "previous", None, version)
    assert said == [
        "1 users have training events that are new to the previous ranker, and train.workers = 2 takes 2 at least; it "
        "is kept as it is"
    ]
    assert storage.manifest(layout.ranker) == before and not storage.list_files(f"{layout.training}/start")
    ranker = Ranker.from_pretrained(layout.ranker)
    load_prompts(ranker, layout)
    assert ranker.items is not None and len(ranker.items) == ITEMS + 1
    rows = ranker.items.eval()(0).vectors
    assert rows[ITEMS].isfinite().all() and rows[ITEMS].any()


def test_the_ranker_that_is_kept_is_put_back_where_a_run_was_cut_off_in_saving(quiet_day: config.Config) -> None:
    layout = Layout.of(quiet_day)
    version = model_version(layout.ranker)
    starting_ranker(quiet_day, layout, "run-old")
    storage.delete(f"{layout.ranker}/{RANKER_FILE}")
    assert train(quiet_day, layout, lambda line: None).version == version == model_version(layout.ranker)


def test_too_few_to_train_on_is_an_error_where_no_ranker_is_there_to_keep(quiet_day: config.Config) -> None:
    layout = Layout.of(quiet_day)
    storage.delete(layout.ranker)
    few = quiet_day.model_copy(update={"train": quiet_day.train.model_copy(update={"workers": 3})})
    with pytest.raises(UserError, match=r"2 users with 2 or more training events; too few to train on"):
        train(few, layout, lambda line: None)
