"""A real multi-node Ray cluster on this machine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from llmrec.config import Cluster as ClusterConfig
from llmrec.engine.session import prepare_environment, start_driver
from llmrec.local.object_store import free_ports

MB = 1 << 20


@contextlib.contextmanager
def mini_cluster(config: ClusterConfig, dashboard: bool = False) -> Iterator[Any]:
    """Start a head that runs no work and `config.nodes` worker nodes, stopped at the end.

    Yields the `ray.cluster_utils.Cluster`; tests add and remove nodes through it, from the main thread. Nodes inherit
    this process's environment, and with it the object store's variables.
    """
    prepare_environment(config.no_progress_seconds)
    from ray.cluster_utils import Cluster

    logging.getLogger("ray").setLevel(logging.ERROR)
    common = {"object_store_memory": config.object_store_mb * MB}
    # Every agent would listen on the same port; the head's takes jobs, so another cluster here must not have it.
    head_port, *ports = free_ports(config.nodes + 1)
    head = {"num_cpus": 0, "include_dashboard": dashboard, "dashboard_agent_listen_port": head_port, **common}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for port in ports:
            cluster.add_node(num_cpus=config.cpus_per_node, dashboard_agent_listen_port=port, **common)
        yield cluster
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def joined(cluster: Any) -> Iterator[None]:
    """This process as a driver of a mini cluster."""
    import ray

    start_driver(address=cluster.address)
    try:
        yield
    finally:
        ray.shutdown()
