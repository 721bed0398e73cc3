from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from llmrec import config
from llmrec.errors import UserError

pytestmark = pytest.mark.usefixtures("no_variables")
CONFIGS = sorted((Path(__file__).parents[1] / "jobs" / "configs").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def refused(file: Path, text: str, *parts: str, arguments: list[str] | None = None) -> None:
    """One line with all these parts in it."""
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        config.load(str(file), arguments or [])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert config.load(str(path)).root


def test_there_are_shipped_configurations() -> None:
    assert {p.stem for p in CONFIGS} >= {"demo", "smoke", "zero-shot", "gpu-cluster"}


def test_defaults_load_without_a_file_and_from_an_empty_one(file: Path) -> None:
    file.write_text("# nothing\n")
    assert config.load(str(file)) == config.load(None) == config.Config()


def test_command_line_beats_environment_beats_file_beats_default(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("score: {top_k: 11, max_candidates: 12, batch_tokens: 130}\n")
    monkeypatch.setenv("LLMREC_SCORE__TOP_K", "21")
    monkeypatch.setenv("LLMREC_SCORE__MAX_CANDIDATES", "22")
    score = config.load(str(file), ["--score.top_k", "31"]).score
    assert (score.top_k, score.max_candidates, score.batch_tokens, score.max_actors) == (31, 22, 130, 2)


def test_the_command_line_sets_every_kind_of_value() -> None:
    loaded = config.load(
        None,
        ["--root", "./out", "--model.layers", "3", "--score.publish", "false", "--train.learning_rate", "1e-4",
         "--recall.item_item.decay", "0.5", "--prompt.item", "{title}: x", "--data.columns.user", "uid"],
    )  # fmt: skip
    assert (loaded.root, loaded.model.layers, loaded.score.publish, loaded.train.learning_rate) == (
        "./out",
        3,
        False,
        1e-4,
    )
    assert (loaded.recall.item_item.decay, loaded.prompt.item, loaded.data.columns.user) == (0.5, "{title}: x", "uid")


@pytest.mark.parametrize(
    ("items", "head"), [("text", "linear"), ("text", "yes_no"), ("token", "retrieve"), ("token", "rank")]
)
def test_heads_go_with_the_form_of_items(file: Path, items: str, head: str) -> None:
    file.write_text(f"model: {{items: {items}, head: {head}}}\n")
    model = config.load(str(file)).model
    assert (model.items, model.head) == (items, head)


def test_retrieve_is_a_source_once_it_is_on() -> None:
    loaded = config.load(None, ["--recall.retrieve.top", "50", "--recall.merge", '["retrieve", "item_item"]'])
    assert (loaded.recall.retrieve.top, loaded.recall.merge) == (50, ("retrieve", "item_item"))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("colour: red", ["unknown key 'colour'", "allowed here: root, data, feedback, prompt"]),
        ("score: {top: 5}", ["unknown key 'score.top'", "allowed here:", "top_k", "max_candidates"]),
        ("recall: {item_item: {k: 5}}", ["unknown key 'recall.item_item.k'", "neighbours, shrinkage, decay"]),
        ("score: {top_k: many}", ["score.top_k = 'many'", "valid integer"]),
        ("score: {top_k: 0}", ["score.top_k = 0", "greater than or equal to 1"]),
        ("train: {dropout: 1}", ["train.dropout = 1", "less than 1"]),
        ("train: {hard_share: -0.1}", ["train.hard_share = -0.1", "greater than or equal to 0"]),
        ("data: {split: weekly}", ["data.split = 'weekly'", "'leave_one_out'", "'time'", "'none'"]),
        ("train: {tune: all}", ["train.tune = 'all'", "'lora'"]),
        ("model: {labels: [a]}", ["model.labels"]),
        ("data: 3", ["data = 3"]),
        ("evaluate: {metrics: []}", ["evaluate: metrics must name at least one"]),
        ("evaluate: {metrics: [f1]}", ["evaluate.metrics.0 = 'f1'", "'recall'", "'hit_rate'"]),
        ("evaluate: {segments: [age]}", ["evaluate.segments.0 = 'age'", "history_length|item_events|(users|items)"]),
        ("evaluate: {edges: {users.age: [18]}}", ["edges names 'users.age', which is no column that segments names"]),
        (
            "evaluate: {segments: [users.age], edges: {users.age: [30, 18]}}",
            ["edges of 'users.age' must ascend: 30, 18"],
        ),
        ("model: {head: dot}", ["model.head = 'dot'", "'linear'", "'yes_no'", "'retrieve'", "'rank'"]),
        *(
            (
                f"model: {{items: text, head: {h}}}",
                [f"model.items = text goes with model.head = linear or yes_no, not {h}"],
            )
            for h in ("retrieve", "rank")
        ),
        *(
            (
                f"model: {{items: token, head: {h}}}",
                [f"model.items = token goes with model.head = retrieve or rank, not {h}"],
            )
            for h in ("linear", "yes_no")
        ),
        ("model: {items: text}", ["model.items = text goes with model.head = linear or yes_no, not retrieve"]),
        ("items: {per_item: 0}", ["items.per_item = 0", "greater than or equal to 1"]),
        (
            "items: {category: [genres]}",
            ["unknown key 'items.category'", "encoder, max_tokens, id, id_start, vectors, images"],
        ),
        ("items: {numbers: year}", ["items.numbers = 'year'"]),
        ("train: {horizon: 0}", ["train.horizon = 0", "greater than or equal to 1"]),
        ("train: {horizon_decay: 0}", ["train.horizon_decay = 0", "greater than 0"]),
        ("train: {horizon_decay: 1.5}", ["train.horizon_decay = 1.5", "less than or equal to 1"]),
        ("train: {id_dropout: 1}", ["train.id_dropout = 1", "less than 1"]),
        ("train: {events: some}", ["train.events = 'some'", "'training'", "'all'"]),
        ("recall: {merge: [retrieve]}", ["merge names 'retrieve', which recall.retrieve.top = 0 turns off"]),
        ("bucket: {name: retrieve}", ["bucket: name = retrieve is where recall writes"]),
        ("prompt: {after_candidate: '?'}", ["prompt.after_candidate need model.head = yes_no"]),
        ("train: {train_embeddings: true}", ["train.train_embeddings = true goes with model.items = text"]),
        ("items: {encoder: '', id: false}", ["model.items = token: an item's vector needs a part at least"]),
        (
            "model: {items: text, head: linear}\nitems: {images: photo, image_encoder: vit}",
            ["items.images = photo goes with model.items = token: items as text are read without pictures"],
        ),
        ("score: {min_actors: 5}", ["score: max_actors = 2 is less than min_actors = 5"]),
        ("recall: {popularity: {top: 0}}", ["merge names 'popularity', which recall.popularity.top = 0 turns off"]),
        ("recall: {merge: []}", ["merge must name at least one source"]),
        ("bucket: {name: item_item}", ["bucket: name = item_item is where recall writes"]),
        ("bucket: {name: merged}", ["bucket: name = merged is where recall writes"]),
        ("bucket: {name: ../x}", ["bucket.name = '../x'", "match pattern"]),
        ("recall: {merge: [magic]}", ["recall.merge.0 = 'magic'", "'item_item'"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(file: Path, text: str, parts: list[str]) -> None:
    refused(file, text, str(file), *parts)


def test_each_problem_has_a_line_of_its_own(file: Path) -> None:
    file.write_text("score: {top_k: 0, batch_tokens: 1}\nrooot: x\n")
    with pytest.raises(UserError) as caught:
        config.load(str(file))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert [next(k for k in ("top_k", "batch_tokens", "rooot") if k in line) for line in lines]


def test_a_secret_in_a_wrong_value_is_blotted_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-value")
    refused(file, "score: {top_k: very-secret-value}", "score.top_k = '***'")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("data: [", "not valid YAML"),
        ("score: {top_k: 5}\ntrain: {epochs: 2}\nscore: {keep_parts: true}\n", "'score' stands there twice, line 3"),
        ("score:\n  top_k: 5\n  top_k: 6\n", "'top_k' stands there twice, line 3"),
        ("- data\n- score\n", "a configuration is a mapping of sections, not a list"),
        ("just words", "a configuration is a mapping of sections, not a str"),
        ("3", "a configuration is a mapping of sections, not a int"),
    ],
)
def test_a_file_that_is_no_configuration(file: Path, text: str, part: str) -> None:
    refused(file, text, str(file), part)


def test_a_key_that_is_no_text(file: Path) -> None:
    refused(file, "1: 2", str(file), "1")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml: no such file"):
        config.load(str(tmp_path / "absent.yaml"))


def test_a_directory_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        config.load(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["LLMREC_SCORE__TOPK", "LLMREC_SCOR__TOP_K", "LLMREC_TOP_K", "LLMREC_RECALL__ITEM_ITEM__K", "LLMREC_"]
)
def test_a_misspelt_variable_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "5")
    with pytest.raises(UserError, match=f"environment variable {name}: no such setting"):
        config.load(None)


def test_a_wrong_value_in_a_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_SCORE__TOP_K", "many")
    with pytest.raises(UserError, match=r"score\.top_k = 'many'"):
        config.load(None)


def test_a_wrong_value_is_said_to_be_where_it_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("score: {top_k: 5}\ntrain: {epochs: 0}\n")
    monkeypatch.setenv("LLMREC_SCORE__MAX_CANDIDATES", "none")
    with pytest.raises(UserError) as caught:
        config.load(str(file), ["--score.top_k", "many", "--recall.merge=magic"])
    told = {line.split(" = ")[0] for line in str(caught.value).splitlines()}
    assert told == {
        f"{file}: train.epochs", "the command line: recall.merge.0", "the command line: score.top_k",
        "environment variable LLMREC_SCORE__MAX_CANDIDATES: score.max_candidates",
    }  # fmt: skip


def test_parts_of_a_file_that_are_the_same_are_written_once(file: Path) -> None:
    file.write_text("score: &same {top_k: 7}\nexplain: {<<: *same, run: true, top_k: 3}\n")
    loaded = config.load(str(file))
    assert (loaded.score.top_k, loaded.explain.run, loaded.explain.top_k) == (7, True, 3)


def test_null_is_written_as_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_TRAIN__MAX_STEPS", "null")
    loaded = config.build({"train": {"max_steps": 5}, "fusion": {"new_users": 7}}, ["--fusion.new_users", "null"])
    assert loaded.fusion.new_users is None and config.load(None).train.max_steps is None


def test_a_section_in_a_variable_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMREC_FUSION", "linear")
    with pytest.raises(UserError, match="environment: fusion holds several settings") as caught:
        config.load(None)
    assert len(str(caught.value).splitlines()) == 1


def test_our_own_variables_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in config.OWN_VARIABLES:
        monkeypatch.setenv(name, "/tmp/x")
    assert config.load(None) == config.Config()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--score.topk", "5"], "unrecognized arguments: --score.topk 5"),
        (["--score.top_k"], "--score.top_k: expected one argument"),
        (["--score.top_k", "0"], "score.top_k = "),
        (["stray"], "unrecognized arguments: stray"),
        (["--fusion", "linear"], "command line: fusion holds several settings and cannot be read from that"),
        (["--recall.quotas", "text"], "give them one by one, such as --recall.quotas.KEY VALUE, or as JSON"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], part: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load(None, arguments)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{quotas: {genres: 0}}", "rerank.quotas.genres = 0: input should be greater than or equal to 1"),
        ("{method: mmr, trade: 1.5}", "rerank.trade = 1.5: input should be less than or equal to 1"),
        ("{method: mnr}", "rerank.method = 'mnr': input should be 'none', 'mmr' or 'dpp'"),
        ("{by: [genres]}", "rerank: by makes items alike for a method; set method to mmr or dpp"),
        ("{freshness: {column: born, half_life_days: 0}}", "rerank.freshness.half_life_days = 0: input should be"),
        ("{method: dpp, window: 9}", "rerank.window = 9 is less than score.top_k = 10: lists are chosen out of"),
        ("{quotas: {genres: 2}, window: 9}", "rerank.window = 9 is less than score.top_k = 10"),
        ("{freshness: {colum: born}}", "unknown key 'rerank.freshness.colum'; allowed here: column, half_life_days"),
    ],
)  # fmt: skip
def test_what_rerank_may_not_be(file: Path, text: str, part: str) -> None:
    refused(file, f"rerank: {text}", part)


def test_rerank_is_off_and_knows_what_it_needs() -> None:
    assert not config.Rerank().chooses
    assert not config.Rerank(method="mmr", trade=0).chooses and not config.Rerank(freshness={"column": "born"}).chooses
    assert config.Rerank(quotas={"genres": 1}).chooses and not config.Rerank(quotas={"genres": 1}).by_text
    assert config.Rerank(method="dpp").by_text and not config.Rerank(method="dpp", by=("genres",)).by_text


def test_columns_are_parted_as_the_catalogue_says_unless_a_section_says_otherwise() -> None:
    demo = config.load(next(str(path) for path in CONFIGS if path.stem == "demo"), [])
    assert demo.items.separator == ", " == demo.explaining.separator == demo.reranking.separator
    own = {"explain": {"separator": ""}, "rerank": {"separator": ";"}}
    found = config.build({"root": "x", "items": {"separator": "/"}, **own})
    assert (found.explaining.separator, found.reranking.separator) == ("", ";")
    assert config.build({"root": "x"}).explaining.separator == "|"


def test_a_configuration_is_frozen() -> None:
    loaded = config.load(None)
    for section, field in ((loaded, "root"), (loaded.score, "top_k"), (loaded.recall.item_item, "decay")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, field, 1)
