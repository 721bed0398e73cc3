"""What items share, against sets; and which items of a history are cited."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from llmrec.evaluation import faithfulness
from llmrec.evaluation.faithfulness import Falls
from llmrec.reasons.evidence import NOISE, gather
from llmrec.reasons.traits import Link, Links, Trait, Traits

ITEMS = 12
UNLINKED = Links.build(np.empty(0, np.int64), [], np.empty(0, np.int64), ITEMS)


def drawn(seed: int) -> list[set[Trait]]:
    rng = np.random.default_rng(seed)
    return [{Trait(f"n{n}", f"v{v}") for n, v in rng.integers(0, 4, (rng.integers(0, 6), 2))} for _ in range(ITEMS)]


def built(of: list[set[Trait]]) -> Traits:
    flat = [(row, *trait) for row, traits in enumerate(of) for trait in [*traits, *list(traits)[:1]]]
    rows, names, values = ([f[i] for f in flat] for i in range(3))
    return Traits.build(np.asarray(rows, np.int64), names, values, len(of))


@pytest.mark.parametrize("seed", range(5))
def test_shared_traits_come_rarest_first(seed: int) -> None:
    of = drawn(seed)
    traits, times = built(of), Counter(trait for traits in of for trait in traits)
    for one in range(ITEMS):
        for other in range(ITEMS):
            if one != other:
                wanted = sorted(of[one] & of[other], key=lambda t: (times[t], t))
                assert traits.shared(one, other, 99) == tuple(wanted)
                assert traits.shared(one, other, 1) == tuple(wanted[:1])


@pytest.mark.parametrize("seed", range(3))
def test_links_go_from_one_item_to_the_other_and_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    head, tail = rng.integers(0, ITEMS, (2, 80))
    names = [f"r{code}" for code in rng.integers(0, 3, 80)]
    links, edges = Links.build(head, names, tail, ITEMS), set(zip(head.tolist(), names, tail.tolist(), strict=True))
    for one in range(ITEMS):
        for other in range(ITEMS):
            if one != other:
                wanted = [Link(*of) for of in sorted(edges) if (of[0], of[2]) == (one, other)]
                wanted += [Link(*of) for of in sorted(edges) if (of[0], of[2]) == (other, one)]
                assert links.between(one, other, 99) == tuple(wanted)
                assert links.between(one, other, 1) == tuple(wanted[:1])
    assert UNLINKED.between(0, 1, 9) == ()
    (cited,) = gather(0, 1.0, [1], np.asarray([0.5]), 3, built([set()] * ITEMS), built([set()] * ITEMS), links, 2).cited
    assert cited.links == links.between(0, 1, 2)


def test_cited_are_the_most_influential_that_raised_the_score() -> None:
    none = built([set()] * ITEMS)
    influence = np.asarray([0.1, -3.0, 0.4, 0.0, 0.4, 0.9 * NOISE * 5])
    found = gather(0, 5.0, [6, 7, 8, 9, 10, 11], influence, 9, none, none, UNLINKED, 2)
    assert [(c.row, c.influence) for c in found.cited] == [(8, 0.4), (10, 0.4), (6, 0.1)]
    assert [c.row for c in gather(0, 5.0, [6, 7, 8, 9, 10, 11], influence, 2, none, none, UNLINKED, 2).cited] == [8, 10]
    assert gather(0, 5.0, [], np.empty(0), 2, none, none, UNLINKED, 2).cited == ()


def test_contexts_are_named_that_raised_the_score_each_by_itself() -> None:
    none, (place, hour, device) = built([set()] * ITEMS), (Trait(name, "x") for name in ("place", "hour", "device"))
    moved = [(place, 0.2), (hour, -0.4), (device, 0.3)]
    found = gather(0, 1.0, [1], np.asarray([0.5]), 3, none, none, UNLINKED, 2, moved, -0.1)
    assert found.context == (device, place) and found.context_influence == -0.1
    found = gather(0, 1.0, [1], np.asarray([0.5]), 3, none, none, UNLINKED, 2, [(place, NOISE / 2)], NOISE / 2)
    assert found.context == ()
    assert gather(0, 1.0, [1], np.asarray([0.5]), 3, none, none, UNLINKED, 2).context_influence is None


def test_others_are_as_many_and_none_is_cited() -> None:
    history = [5, 3, 8, 1, 9]
    seen = set()
    for seed in range(30):
        chosen = faithfulness.others(history, [3, 9], (seed, 7))
        assert chosen is not None and len(set(chosen)) == 2 and set(chosen) <= {5, 8, 1}
        assert chosen == faithfulness.others(history, [3, 9], (seed, 7))
        seen |= set(chosen)
    assert seen == {5, 8, 1}
    assert faithfulness.others(history, [3, 9, 1], (0,)) is None and faithfulness.others(history, [], (0,)) is None


def test_others_have_about_as_many_events() -> None:
    """Each as the cited one that it stands for, or the nearest that there is."""
    counts = {1: 5, 2: 1, 3: 4, 4: 1, 5: 1, 6: 2, 7: 5}
    history = np.random.default_rng(0).permutation(np.repeat(list(counts), list(counts.values()))).tolist()
    of_five = [faithfulness.others(history, [1, 2], (seed,)) for seed in range(20)]
    assert {tuple(counts[item] for item in of) for of in of_five if of} == {(5, 1)}
    assert {of[1] for of in of_five if of} == {4, 5}
    assert faithfulness.others(history, [2, 1, 7], (0,))[:2] == [3, 6]


def test_faithfulness_is_the_mean_difference_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    cited, random = rng.normal(0.5, 0.1, 400).tolist(), rng.normal(0.2, 0.1, 400).tolist()
    falls = Falls(1000, cited, random, [2.0] * 400, [1.0, 2.0] * 200)
    found = faithfulness.measure(falls, 2000, 0)
    differences = np.subtract(cited, random)
    assert found.difference == pytest.approx(differences.mean())
    half = 1.96 * differences.std() / 20  # the normal interval
    assert (found.low, found.high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.003)
    assert (found.users, found.reasons, found.cited_events, found.random_events) == (400, 1000, 2.0, 1.5)
    assert faithfulness.measure(Falls(0, [], [], [], []), 10, 0).difference is None
