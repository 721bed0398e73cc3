"""A search over settings: what it refuses, what it tries, and trials of the real training on a mini cluster."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import yaml
from test_fuse import RAW, tables
from test_fuse import settings as small

from llmrec import config, storage
from llmrec.engine import search_trials, stages
from llmrec.engine.job import run_job
from llmrec.engine.search import name_of, room, scheduler
from llmrec.engine.search_space import checked, distribution, drawn_of, settings_of
from llmrec.engine.search_suggestions import Suggestions
from llmrec.engine.search_trials import ENDED, FINISHED, STOPPED, Trial
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.report import terminal
from llmrec.tables import buckets

ROOT = "s3://llmrec-test/searched"
RATE = {"low": 1e-5, "high": 3e-2, "log": True}


def quietly(message: str) -> None:
    """A `say` for stages."""


def asking(keys: dict[str, Any], **sections: Any) -> config.Config:
    return config.build({"root": "/nowhere", "search": {"keys": keys}, **sections})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, ["search.keys", "names no setting"]),
        ({"train.learning_rat": RATE}, ["'train.learning_rat'", "train.learning_rate"]),
        ({"train": RATE}, ["'train' is a section"]),
        ({"root.x": RATE}, ["'root.x'", "root is a setting"]),
        ({"score.top_k": {"low": 1, "high": 5}}, ["'score.top_k'", "does not change what training learns"]),
        ({"train.workers": {"low": 1, "high": 2}}, ["'train.workers'", "beside the search"]),
        ({"train.validation_users": {"low": 1, "high": 2}}, ["'train.validation_users'", "measured alike"]),
        ({"train.private.epsilon": {"low": 1, "high": 8}}, ["'train.private.epsilon'", "chooses by validation users"]),
        ({"items.encoder": {"choices": ["", "all-minilm-l6-v2"]}}, ["'items.encoder'", "embed reads it"]),
        ({"prompt.item": {"choices": ["{title}", "{title} {brand}"]}}, ["'prompt.item'", "embed reads it"]),
        ({"train.dropout": {"low": 0.5, "high": 1.5}}, ["search.keys.train.dropout: ", "= 1.5", "less than 1"]),
        ({"train.lora_rank": {"low": 0, "high": 8}}, ["train.lora_rank = 0", "greater than or equal to 1"]),
        ({"train.lora_rank": {"low": 1.5, "high": 8}}, ["train.lora_rank = 1.5", "integer"]),
        ({"train.tune": {"choices": ["full", "some"]}}, ["train.tune = 'some'", "'lora'"]),
        ({"train.tune": {"low": 0, "high": 1}}, ["search.keys.train.tune", "give choices"]),
        ({"model.head": {"choices": ["retrieve", "linear"]}}, ["model.items = token", "not linear"]),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_over_is_told_in_one_line(keys: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as told:
        stages.check("search", asking(keys))
    line = str(told.value)
    assert "\n" not in line and all(word in line for word in words), line


def test_private_training_is_not_searched() -> None:
    private = {"items": {"id_start": 0}, "train": {"private": {"epsilon": 4.0}}}
    with pytest.raises(UserError, match=r"train\.private: a search chooses by validation users.*search without it"):
        stages.check("search", asking({"train.learning_rate": RATE}, **private))


@pytest.mark.parametrize(
    ("tried", "words"),
    [
        ({"low": 2, "high": 1}, "low = 2 is not below high = 1"),
        ({"low": 0, "high": 1, "log": True}, "log needs numbers above 0"),
        ({"low": 1}, "give low and high, or choices"),
        ({"low": 1, "choices": [1, 2]}, "choices stand alone"),
        ({"choices": [1, 1]}, "a value twice"),
        ({"min": 1}, "unknown key"),
    ],
)
def test_what_is_no_range_is_told(tried: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=r"search\.keys\.train\.epochs") as told:
        asking({"train.epochs": tried})
    assert words in str(told.value)


def test_ranges_are_read_as_people_write_them_and_drawn_by_the_kind_of_the_field(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        "search:\n  keys:\n    train.learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        "    train.epochs: {low: 2, high: 4}\n    train.dropout: {low: 0, high: 0.5}\n"
        "    model.layers: {choices: [2, null]}\n    items.categories: {choices: [[], [brand, kind]]}\n"
    )
    space = checked(config.load(str(file)))
    kinds = {p.key: distribution(p) for p in space}
    assert kinds == {
        "train.learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "train.epochs": optuna.distributions.IntDistribution(2, 4),
        "train.dropout": optuna.distributions.FloatDistribution(0, 0.5),
        "model.layers": optuna.distributions.CategoricalDistribution((0, 1)),
        "items.categories": optuna.distributions.CategoricalDistribution((0, 1)),
    }
    drawn = {"train.learning_rate": 0.001, "train.epochs": 3, "train.dropout": 0.1, "model.layers": 1,
             "items.categories": 1}  # fmt: skip
    found = settings_of(space, drawn)
    assert found["model.layers"] is None and found["items.categories"] == ["brand", "kind"]
    assert drawn_of(space, json.loads(json.dumps(found))) == drawn, "the ledger's values are not those of the space"
    of_trial = config.varied(config.load(str(file)), found, "trial")
    assert (of_trial.train.epochs, of_trial.items.categories) == (3, ("brand", "kind"))


def test_what_the_environment_sets_does_not_outweigh_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_TRAIN__LEARNING_RATE", "0.5")
    monkeypatch.setenv("LLMREC_TRAIN__EPOCHS", "3")
    base = config.build({})
    found = config.varied(base, {"train.learning_rate": 0.25}, "trial").train
    assert (found.learning_rate, found.epochs) == (0.25, 3)


def test_nothing_is_tried_twice_and_a_search_that_goes_on_does_not_begin_anew() -> None:
    space = checked(asking({"train.top_n": {"choices": [1, 2]}, "train.epochs": {"low": 1, "high": 3}}))
    suggestions = Suggestions(space, [], 0)
    found = []
    while (given := suggestions.suggest(f"t{len(found)}")) != Suggestions.FINISHED:
        assert isinstance(given, dict)
        found.append(given["settings"])
        suggestions.on_trial_complete(f"t{len(found) - 1}", {"best": 0.5, "steps_done": 3, ENDED: True})
    assert sorted(json.dumps(of) for of in found) == sorted({json.dumps(of) for of in found})
    assert len(found) == 6, "there are six of them"

    def trial(number: int, state: str) -> Trial:
        return Trial(number, f"n{number}", found[number], state, 0.5, 3, 1.0, ((3, 0.5),))

    wide = checked(asking({"train.learning_rate": RATE}))
    first = Suggestions(wide, [], 7).suggest("a")
    assert first == Suggestions(wide, [], 7).suggest("a") != Suggestions(wide, [], 8).suggest("a")
    assert isinstance(first, dict)
    done = Trial(1, "x", first["settings"], FINISHED, 0.5, 3, 1.0, ((3, 0.5),))
    assert Suggestions(wide, [done], 7).suggest("a") != first
    cut_off = Suggestions(space, [trial(4, "running"), trial(2, "failed")], 0)
    assert [cut_off.suggest(name) for name in "ab"] == [{"settings": found[4]}, {"settings": found[2]}]


def test_trials_behind_others_at_the_same_step_end_also_behind_those_of_an_earlier_run() -> None:
    wanted = asking({"train.epochs": {"low": 1, "high": 3}}).search
    wanted = wanted.model_copy(update={"grace": 2, "reduction": 2.0})
    earlier = [Trial(i, f"n{i}", {}, STOPPED, 0.2 * i, 20, 1.0, ((10, 0.1 * i), (20, 0.2 * i))) for i in (1, 2, 3)]

    class Given:
        trial_id = "new"

    def decided(earlier: list[Trial], step: int, best: float) -> str:
        found = scheduler(wanted, 10, earlier)
        if hasattr(found, "metric") and found.metric:
            found.on_trial_add(None, Given())
        return found.on_trial_result(None, Given(), {"steps_done": step, "best": best})

    # Half go on: of 0.2, 0.4, 0.6 at step 20 the median is 0.4.
    assert decided(earlier, 20, 0.39) == "STOP" and decided(earlier, 20, 0.41) == "CONTINUE"
    assert decided(earlier, 10, 0.0) == "CONTINUE", "two validations are each trial's own"
    assert decided([], 20, 0.0) == "CONTINUE"
    wanted = wanted.model_copy(update={"early_stopping": "none"})
    assert decided(earlier, 20, 0.0) == "CONTINUE"


def test_as_many_trials_at_once_as_their_workers_and_reading_have_room() -> None:
    def train(**asked: Any) -> config.Train:
        return config.build({"train": asked}).train

    two = [{"CPU": 2.0}, {"CPU": 2.0}]
    assert room(two, train(workers=1)) == 2
    assert room(two, train(workers=2)) == 1
    assert room([{"CPU": 16.0, "GPU": 4.0}], train(workers=2, gpus_per_worker=1)) == 2
    assert room([{"CPU": 3.0}] * 3, train(workers=1, cpus_per_worker=2)) == 3
    for nodes, asked in (
        (two, {"workers": 4}), (two, {"workers": 1, "cpus_per_worker": 3}), (two, {"gpus_per_worker": 1}), ([], {}),
    ):  # fmt: skip
        with pytest.raises(UserError, match="has no room"):
            room(nodes, train(**asked))


def test_a_search_is_known_by_what_makes_its_trials_comparable(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    storage.write_bytes(layout.items, b"items")
    base = asking({"train.epochs": {"low": 1, "high": 3}})
    before = name_of(base, layout)
    other = {"search.trials": 99, "search.parallel": 1, "train.gpus_per_worker": 1.0}
    assert name_of(config.varied(base, other, "test"), layout) == before
    for key, value in {"train.workers": 3, "model.layers": 1, "search.seed": 1, "train.learning_rate": 0.5}.items():
        assert name_of(config.varied(base, {key: value}, "test"), layout) != before, key
    storage.write_bytes(layout.items, b"others")
    assert name_of(base, layout) != before


SEED = 8  # by which the first two trials have the choice that works, the third the other


def wanted_of(tiny_model: Any, root: str, trials: int, **sections: Any) -> config.Config:
    return small(
        tiny_model, root, fusion={"method": "none"},
        train={"tune": "top_n", "max_failures": 0, "workers": 1, "validate_every": 3, "max_steps": 6},
        search={
            "keys": {"train.head_learning_rate": RATE, "train.top_n": {"choices": [1, 99]}}, "trials": trials,
            "grace": 1, "reduction": 2, "seed": SEED,
        }, **sections,
    )  # fmt: skip


def prepared(wanted: config.Config) -> Layout:
    for name, table in tables().items():
        buckets.write_parquet(table, f"{RAW}/{name}.parquet")
    stages.run("prepare", wanted, quietly)
    return Layout.of(wanted)


@pytest.fixture(scope="module")
def searched(cluster: Any, tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A search of one trial, of which three are asked later."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    kept = tmp_path_factory.mktemp("mlflow")
    server = {"mlflow": {"uri": f"sqlite:///{kept}/mlflow.db"}}
    client = mlflow.MlflowClient(server["mlflow"]["uri"])
    client.create_experiment(config.MlflowTracking().experiment, artifact_location=str(kept / "artefacts"))
    layout = prepared(wanted_of(tiny_model, ROOT, 1))
    storage.write_bytes(storage.join(layout.ranker, "ranker.json"), b"untouched")
    first = stages.run("search", wanted_of(tiny_model, ROOT, 1), quietly)
    wanted, said = wanted_of(tiny_model, ROOT, 3, tracking=server), list[str]()
    summary = stages.run("search", wanted, said.append)
    return {"wanted": wanted, "layout": layout, "first": first, "said": said, "summary": summary}


def test_more_trials_go_on_from_those_that_ended(searched: dict[str, Any]) -> None:
    first, summary = searched["first"], searched["summary"]
    assert first["search"] == summary["search"] and (first["kept"], summary["kept"]) == (0, 1)
    (ended,) = first["trials"]
    assert ended["state"] == FINISHED and ended["steps"] == 6
    assert ended in summary["trials"], "a trial that had ended was trained again"
    assert "1 of them there already" in searched["said"][0]
    assert {line.split(":")[0] for line in searched["said"][1:]} == {"trial 2", "trial 3"}
    assert sorted(of["number"] for of in summary["trials"]) == [1, 2, 3]
    for of in summary["trials"]:
        assert [step for step, _ in of["curve"]] == list(range(3, of["steps"] + 1, 3))


def all_cpus_are_free() -> bool:
    return ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


@pytest.mark.faults
def test_a_search_that_was_cut_off_goes_on(cluster: Any, tiny_model: Any) -> None:
    wanted = wanted_of(tiny_model, f"{ROOT}-cut-off", 2)
    layout = prepared(wanted)

    def cut_off(message: str) -> None:
        if message.startswith("trial 2: step"):
            raise KeyboardInterrupt

    cut = False
    try:
        stages.run("search", config.varied(wanted, {"search.parallel": 1}, "test"), cut_off)
    except KeyboardInterrupt:
        cut = True
    assert cut
    gc.collect()
    deadline = time.monotonic() + 60
    while not all_cpus_are_free():  # the second trial's process goes, and its workers with it
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.5)
    ended, running = search_trials.read(layout, name_of(wanted, layout))
    assert (ended.number, ended.state, running.number, running.state) == (1, FINISHED, 2, "running")
    summary = stages.run("search", wanted, quietly)
    kept, went_on = search_trials.read(layout, summary["search"])
    assert kept == ended and summary["kept"] == 1, "a trial that had ended was trained again"
    assert went_on.settings == running.settings and went_on.state in (FINISHED, STOPPED)
    assert [step for step, _ in went_on.curve] == list(range(3, went_on.steps + 1, 3)), "a validation is missing"
    assert storage.list_files(layout.scratch("search")) == []


def test_the_best_trial_is_first_and_a_failed_one_says_why(searched: dict[str, Any]) -> None:
    summary = searched["summary"]
    trials = summary["trials"]
    good = [of for of in trials if of["state"] in (FINISHED, STOPPED)]
    assert len(good) >= 2 and summary["best"] == good[0]["best"] == max(of["best"] for of in good) > 0
    assert all(of["best"] == max(metric for _, metric in of["curve"]) for of in good)
    assert all(1e-5 <= of["settings"]["train.head_learning_rate"] <= 3e-2 for of in trials)
    failed = [of for of in trials if of["state"] == "failed"]
    assert failed and summary["failed"] == len(failed)
    assert all(of["settings"]["train.top_n"] == 99 for of in failed)
    assert all("train.top_n = 99: the backbone has only 2 layers" in of["reason"] for of in failed)
    assert storage.read_json(summary["table"]) == json.loads(json.dumps(trials))


def test_trials_lie_aside_and_the_ranker_is_untouched(searched: dict[str, Any]) -> None:
    layout = searched["layout"]
    assert storage.list_files(layout.scratch("search")) == [], "checkpoints stay"
    assert storage.read_bytes(storage.join(layout.ranker, "ranker.json")) == b"untouched"
    assert storage.list_files(layout.training) == []


def test_the_tracking_server_has_every_trials_curve(searched: dict[str, Any]) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=searched["wanted"].tracking.mlflow.uri)
    experiment = client.get_experiment_by_name("llmrec").experiment_id
    run = next(of for of in client.search_runs([experiment]) if of.info.run_name == "search" and
               of.info.status == "FINISHED")  # fmt: skip
    assert run.data.metrics["best"] == searched["summary"]["best"]
    for of in searched["summary"]["trials"]:
        history = client.get_metric_history(run.info.run_id, f"trials/{of['number']}/validation_ndcg_at_10")
        assert [[m.step, m.value] for m in history] == [list(point) for point in of["curve"]]
    assert {of.path for of in client.list_artifacts(run.info.run_id)} == {"best.yaml", "config.yaml", "trials.json"}


def test_its_summary_is_a_table(searched: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_summary("search", searched["summary"])
    shown = capsys.readouterr().out
    assert "train.top_n" in shown and "the best first" in shown and "failed: train.top_n = 99" in shown
    assert f"python jobs/train.py --config {searched['summary']['config']}" in shown.replace("\n", "")


def test_the_best_trials_configuration_is_one_that_train_takes(searched: dict[str, Any], tmp_path: Path) -> None:
    best = searched["summary"]["trials"][0]
    values = yaml.safe_load(storage.read_bytes(searched["summary"]["config"]))
    assert values["train"]["head_learning_rate"] == best["settings"]["train.head_learning_rate"]
    assert "search" not in values
    with pytest.raises(SystemExit) as ended:
        run_job("train", ["--config", searched["summary"]["config"], "--json", str(tmp_path / "train.json")])
    assert ended.value.code == 0
    trained = json.loads((tmp_path / "train.json").read_text())
    assert trained["ranker"] == searched["layout"].ranker and trained["steps"] == trained["steps_planned"] == 6
    assert 0 < trained["best"] <= 1  # the order of users is not fixed: not just what the trial reached
    assert storage.read_bytes(storage.join(searched["layout"].ranker, "ranker.json")) != b"untouched"
