"""Weights against torch's autograd, trees against LightGBM, probabilities against what happens."""

from __future__ import annotations

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax as scipys

from llmrec.errors import UserError
from llmrec.fusion import ablations, listwise, model, trees
from llmrec.fusion.model import Fusion
from llmrec.fusion.parts import Parts, normalised
from llmrec.ranker.ragged import offsets_of

BOTH = ("z_score", "reciprocal_rank")
WEIGHTS = np.asarray([1.5, -0.5, 0.0])


def chosen(users: int, seed: int = 0, noise: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of lists of 5 to 30 candidates, one of which each user takes as the softmax of WEIGHTS says."""
    rng = np.random.default_rng(seed)
    offsets = offsets_of(rng.integers(5, 31, users))
    features = rng.standard_normal((offsets[-1], len(WEIGHTS)))
    gumbel = features @ WEIGHTS + noise * rng.gumbel(size=offsets[-1])
    truth = np.zeros(offsets[-1], bool)
    truth[[a + int(np.argmax(gumbel[a:b])) for a, b in itertools.pairwise(offsets)]] = True
    return features, offsets, truth


def parts_of(features: np.ndarray, offsets: np.ndarray) -> Parts:
    return Parts(tuple("abc"[: features.shape[1]]), features.astype(np.float32), offsets)


def test_log_softmax_of_lists_is_scipys() -> None:
    scores, offsets = np.asarray([1.0, 2.0, 900.0, -900.0, 3.0]), np.asarray([0, 2, 2, 4, 5])
    wanted = np.concatenate([scipys(scores[a:b]) for a, b in ((0, 2), (2, 4), (4, 5))])
    np.testing.assert_allclose(listwise.log_softmax(scores, offsets), wanted, atol=1e-12)


@pytest.mark.parametrize("l2", [0.0, 0.1])
def test_weights_are_where_torch_finds_the_least_loss(l2: float) -> None:
    features, offsets, truth = chosen(60)
    truth[offsets[:-1][::3]] = True  # some users have two true candidates, or one twice as sure
    found = listwise.fit(features, offsets, truth, l2)

    weights = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    lists = [slice(a, b) for a, b in itertools.pairwise(offsets)]
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = l2 / 2 * weights.square().sum()
        for users in lists:
            wanted = torch.tensor(truth[users] / truth[users].sum())
            scores = torch.tensor(features[users]) @ weights
            total = total + torch.nn.functional.cross_entropy(scores[None], wanted[None]) / len(lists)
        total.backward()
        return total

    optimizer.step(loss)
    np.testing.assert_allclose(found, weights.detach().numpy(), atol=1e-4)


def test_the_weights_by_which_users_chose_come_back() -> None:
    features, offsets, truth = chosen(8000)
    np.testing.assert_allclose(listwise.fit(features, offsets, truth, 0.0), WEIGHTS, atol=0.05)


@pytest.mark.parametrize("method", ["linear", "trees"])
def test_probabilities_are_as_often_true_as_they_say(method: str) -> None:
    features, offsets, truth = chosen(3000)
    fitted = model.fit(parts_of(features, offsets), truth, ("z_score",), method)
    features, offsets, truth = chosen(3000, seed=1)
    likely = np.exp(listwise.log_softmax(fitted.score(parts_of(features, offsets)), offsets))
    for low, high in ((0.02, 0.1), (0.1, 0.3), (0.3, 0.6)):
        some = (likely >= low) & (likely < high)
        assert some.sum() > 300
        assert truth[some].mean() == pytest.approx(likely[some].mean(), abs=0.03)


def test_trees_are_lightgbms_and_see_what_no_sum_of_parts_can() -> None:
    rng = np.random.default_rng(0)
    offsets = offsets_of(np.full(1500, 10))
    values = rng.choice([-1.0, 1.0], (15_000, 2)) + rng.normal(0, 0.1, (15_000, 2))
    gumbel = 3 * np.sign(values[:, 0] * values[:, 1]) + rng.gumbel(size=15_000)
    truth = np.zeros(15_000, bool)
    truth[np.arange(1500) * 10 + gumbel.reshape(-1, 10).argmax(axis=1)] = True
    parts = parts_of(values, offsets)
    first = {
        method: (model.fit(parts, truth, ("min_max",), method).score(parts).reshape(-1, 10).argmax(axis=1))
        for method in ("linear", "trees")
    }
    hit = {method: truth.reshape(-1, 10)[np.arange(1500), best].mean() for method, best in first.items()}
    assert hit["trees"] > hit["linear"] + 0.1

    import lightgbm

    fitted = model.fit(parts, truth, ("min_max",), "trees")
    booster = lightgbm.Booster(model_str=fitted.trees)
    wanted = booster.predict(normalised(parts, ["min_max"])) * fitted.scale
    np.testing.assert_allclose(fitted.score(parts), wanted)
    assert fitted == model.fit(parts, truth, ("min_max",), "trees")
    assert sum(fitted.importance().values()) == pytest.approx(1)
    assert trees.gains(fitted.trees).shape == (2,)


def test_users_without_a_true_candidate_are_counted_and_say_nothing() -> None:
    features, offsets, truth = chosen(100)
    wanted = model.fit(parts_of(features, offsets), truth, BOTH)
    lost = np.concatenate([truth, np.zeros(50, bool)])
    found = model.fit(
        parts_of(np.concatenate([features, np.ones((50, 3))]), np.append(offsets, [offsets[-1], offsets[-1] + 50])),
        lost, BOTH,
    )  # fmt: skip
    np.testing.assert_allclose(found.weights, wanted.weights)
    assert (wanted.found, found.found) == (1, pytest.approx(100 / 102))
    assert wanted.users == found.users == 100


def test_a_part_that_says_the_same_of_all_weighs_nothing_and_is_named() -> None:
    features, offsets, truth = chosen(100)
    features[:, 1] = 7
    features[:, 2] = np.nan
    parts = parts_of(features, offsets)
    fitted = model.fit(parts, truth, BOTH)
    assert fitted.weights[2:] == (0, 0, 0, 0)
    assert fitted.importance() == {"a": 1, "b": 0, "c": 0}
    assert model.constant(parts) == ["b", "c"]
    with pytest.raises(UserError, match=r"fusion: the parts \(b, c\) each say the same of all candidates"):
        model.fit(parts.only(["b", "c"]), truth, BOTH)


def test_nothing_to_fit_on_is_said() -> None:
    features, offsets, truth = chosen(10)
    with pytest.raises(UserError, match="none of 10 users has a true item among the candidates"):
        model.fit(parts_of(features, offsets), np.zeros_like(truth), BOTH)
    with pytest.raises(UserError, match="none of 0 users"):
        model.fit(parts_of(features[:0], np.zeros(1, np.int64)), truth[:0], BOTH)


@pytest.mark.parametrize("users", [3, 5])
def test_trees_of_too_few_candidates_are_refused_instead_of_ranking_by_item(users: int) -> None:
    """With fewer than two leaves' candidates LightGBM itself gives everyone the same score."""
    features, offsets, truth = chosen(users)
    lengths = np.diff(offsets)
    assert len(features) < 2 * trees.SETTINGS["min_data_in_leaf"]

    import lightgbm

    ranker = lightgbm.LGBMRanker(min_child_samples=trees.SETTINGS["min_data_in_leaf"], verbose=-1)
    assert np.ptp(ranker.fit(features, truth.astype(int), group=lengths).predict(features)) == 0
    with pytest.raises(
        UserError, match=rf"trees: {len(features)} candidates of {users} users .* fusion.method = linear"
    ):
        model.fit(parts_of(features, offsets), truth, ("z_score",), "trees")


def test_an_ablation_that_leaves_trees_nothing_to_split_is_left_out() -> None:
    features, offsets, truth = chosen(60)
    features[:, 1] = np.arange(len(features)) == 0  # a leaf of its own would hold one candidate
    parts = parts_of(features[:, :2], offsets)
    fit = partial(model.fit, normalise=("min_max",), method="trees")
    assert set(ablations.fit(parts, truth, fit, {"a": ("a",), "b": ("b",)}).without) == {"b"}


def test_weights_that_have_not_settled_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    features, offsets, truth = chosen(100)
    settled = listwise.fit(features, offsets, truth, 0.0)
    monkeypatch.setattr(listwise, "STEPS", 2)
    with pytest.raises(
        UserError, match=r"the weights have not settled after 2 steps; raise fusion.l2 \(here it is 0\)"
    ):
        listwise.fit(features, offsets, truth, 0.0)
    monkeypatch.setattr(listwise, "FLAT", 1.0)
    assert np.abs(listwise.fit(features, offsets, truth, 0.0) - settled).max() > 1e-3, "two steps are too few"


def test_candidates_without_a_part_are_refused() -> None:
    features, offsets, truth = chosen(20)
    parts = parts_of(features, offsets)
    fitted = model.fit(parts, truth, BOTH)
    with pytest.raises(UserError, match=r"fitted with the part 'b', which these candidates lack \(they have: a, c\)"):
        fitted.score(parts.only(["a", "c"]))
    shuffled = parts.only(["c", "a", "b"])
    np.testing.assert_allclose(fitted.score(shuffled), fitted.score(parts))


def test_a_saved_fusion_scores_the_same_and_ablations_lack_their_part() -> None:
    features, offsets, truth = chosen(200)
    parts = parts_of(features, offsets)
    fit = partial(model.fit, normalise=BOTH)
    fitted = ablations.fit(parts, truth, fit, {"a": ("a", "c"), "b": ("b",), "all": ("a", "b", "c"), "none": ()})
    again = ablations.Fitted.from_json(fitted.to_json(), "fusion.json")
    assert again == fitted
    assert {name: f.parts for name, f in again.without.items()} == {"a": ("b",), "b": ("a", "c")}
    np.testing.assert_array_equal(again.full.score(parts), fitted.full.score(parts))
    np.testing.assert_allclose(again.without["b"].weights, model.fit(parts.only(["a", "c"]), truth, BOTH).weights)


@pytest.mark.parametrize("bad", [b"{", b"[]", b"{}", b'{"fusion": {"version": 0}, "without": {}}'])
def test_what_is_no_fusion_is_refused(bad: bytes) -> None:
    with pytest.raises(UserError, match=r"fusion.json: not a fusion of this version; fit it anew"):
        ablations.Fitted.from_json(bad, "fusion.json")


def test_a_fusion_is_plain_json() -> None:
    fitted = Fusion(("a",), ("z_score",), (1.0,), "", 1.0, 0.5, 10)
    assert Fusion.of_dict(json.loads(json.dumps(fitted.as_dict()))) == fitted
