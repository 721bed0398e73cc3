"""Work in units: a function over buckets through Ray Data, with progress as units finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

SECONDS_BETWEEN_LINES = 5.0


class Pool(Protocol):
    """Settings of a pool of actors."""

    @property
    def actors(self) -> int: ...

    @property
    def cpus_per_actor(self) -> float: ...

    @property
    def gpus_per_actor(self) -> float: ...


def each(
    units: Sequence[Mapping[str, Any]], function: Callable[..., pa.Table], arguments: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Run `function(one-row table, **arguments)` over units as tasks; its rows, as they come."""
    import ray

    data = ray.data.from_items([dict(u) for u in units], override_num_blocks=min(len(units), 10_000))
    done = data.map_batches(function, batch_size=1, fn_kwargs=dict(arguments), batch_format="pyarrow")
    yield from done.iter_rows()


def by_actors(
    units: Sequence[Mapping[str, Any]], actor: Callable[..., Any], arguments: tuple[Any, ...], pool: Pool
) -> Iterator[dict[str, Any]]:
    """Run `actor(*arguments)` of a fixed pool over units, one-row tables; its rows, as they come."""
    import ray

    done = ray.data.from_items([dict(u) for u in units], override_num_blocks=min(len(units), 10_000)).map_batches(
        actor,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(units))),
        num_cpus=pool.cpus_per_actor,
        num_gpus=pool.gpus_per_actor,
    )
    yield from done.iter_rows()


def reporting(
    rows: Iterator[dict[str, Any]], total: int, say: Callable[[str], None], what: str, units: str = "buckets"
) -> list[dict[str, Any]]:
    """Collect rows, with a line every few seconds on how many of `total` are done; `units`: what a row stands for."""
    found, last = [], time.monotonic()
    for row in rows:
        found.append(row)
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{what}: {len(found)} of {total} {units}")
    return found
