"""The service on Ray Serve: replicas that each hold the model, batch what is asked at the same time, and shed load."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import time
from typing import Any

from ray import serve
from ray.serve.config import BackpressureConfig

from llmrec import config
from llmrec.engine.prompts import check_items
from llmrec.engine.run import to_serve
from llmrec.engine.scorer import model_directory
from llmrec.errors import UserError
from llmrec.layout import Layout
from llmrec.serving import web
from llmrec.serving.ranking import Answer, Ranking
from llmrec.serving.request import Asked

NAME = "llmrec"
RETRY_SECONDS = 1
LOAD_ATTEMPTS = 2
SECONDS_BETWEEN_LOOKS = 2.0


class Replica:
    """One copy of the model, behind the web application."""

    def __init__(self, settings: config.Config) -> None:
        self.secret = web.token(settings.serve)
        self.ranking = Ranking(settings, Layout.of(settings))
        self.failed = ""
        self.together.set_max_batch_size(settings.serve.batch)
        self.together.set_batch_wait_timeout_s(settings.serve.batch_wait_ms / 1000)

    def __serve_build_asgi_app__(self) -> Any:
        of = self.ranking
        return web.application(self.together, lambda: self.failed, of.bounds, of.model_version, self.secret)

    @serve.batch
    async def together(self, asked: list[Asked]) -> list[Answer | UserError]:
        try:
            # In a thread, so that the replica goes on answering how it is.
            answers = await asyncio.to_thread(self.ranking.rank, asked)
        except Exception as error:
            self.failed = f"scoring failed ({type(error).__name__})"
            raise
        self.failed = ""
        return answers

    def check_health(self) -> None:
        """What Ray Serve asks; a replica that fails is replaced."""
        if self.failed:
            raise RuntimeError(self.failed)


def build(arguments: dict[str, str]) -> serve.Application:
    """The application for `serve run` and `serve deploy`. arguments: `config`, a YAML file, local or s3://."""
    return application(config.load(arguments["config"]))


def application(settings: config.Config) -> serve.Application:
    wanted = settings.serve
    deployed = serve.deployment(
        serve.ingress()(Replica), name="ranker", num_replicas=wanted.replicas,
        ray_actor_options={"num_cpus": wanted.cpus_per_replica, "num_gpus": wanted.gpus_per_replica},
        max_ongoing_requests=wanted.max_ongoing, max_queued_requests=wanted.max_queued,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_SECONDS),
        max_constructor_retry_count=LOAD_ATTEMPTS,
    )  # fmt: skip
    return deployed.bind(settings)


def start(settings: config.Config, layout: Layout) -> str:
    """Start the service on the cluster that this process has joined; the version of the model that it serves.

    Raises:
        UserError: no token, the model or tables are not there or fail the probe, or the port is taken.
    """
    wanted = settings.serve
    web.token(wanted)
    job = to_serve(settings, layout)
    check_items(model_directory(job), layout)
    _check_port(wanted)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    options = {"host": wanted.host, "port": wanted.port, "request_timeout_s": wanted.timeout_seconds}
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(proxy_location="EveryNode", http_options=options, logging_config=quiet)
    try:
        serve.run(application(settings), name=NAME, logging_config=quiet)
    except RuntimeError as error:
        told = re.findall(r"UserError: (.+)", f"{error}\n{_said_by_replicas()}")
        stop()
        if told:
            raise UserError(told[-1].strip()) from None
        raise
    return job.model_version


def stop() -> None:
    with contextlib.suppress(Exception):
        serve.delete(NAME)


def watch() -> None:
    """Until the service is stopped by somebody else.

    Raises:
        UserError: none of its replicas runs any more.
    """
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        found = serve.status().applications.get(NAME)
        if found is None:
            return
        if found.status == "DEPLOY_FAILED":
            raise UserError(f"the service has failed: {found.message.splitlines()[0][:200]}")


def _said_by_replicas() -> str:
    found = serve.status().applications.get(NAME)
    return "" if found is None else "\n".join(of.message for of in found.deployments.values())


def _check_port(wanted: config.Serve) -> None:
    with contextlib.suppress(Exception):
        if serve.status().proxies:  # Serve runs already, and the port is its own
            return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((wanted.host, wanted.port))
        except OSError as error:
            raise UserError(f"serve.port = {wanted.port} at {wanted.host}: {error.strerror}; choose another") from None
