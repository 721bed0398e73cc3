"""Metrics as a gateway gets them: a real HTTP server takes the place of one."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from llmrec.config import Pipeline
from llmrec.local.object_store import free_ports
from llmrec.report import prometheus

DONE: dict[str, Any] = {
    "refused": "", "seconds": 12.5, "steps": [{"name": "train", "seconds": 3.0}], "drift": None, "summaries": {},
}  # fmt: skip


def test_a_gateway_gets_what_the_file_says() -> None:
    taken: list[tuple[str, str, bytes]] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((self.command, self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    registry = prometheus.registry(DONE, 99.0, succeeded=True)
    assert prometheus.pushed(registry, Pipeline(pushgateway=f"127.0.0.1:{server.server_port}", job="daily"))
    thread.join()
    server.server_close()
    ((method, path, body),) = taken
    assert (method, path) == ("PUT", "/metrics/job/daily") and body == prometheus.text(registry)
    samples = {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(body.decode()) for s in family.samples
    }  # fmt: skip
    assert samples["llmrec_stage_seconds", "train"] == 3 and samples["llmrec_published_timestamp_seconds",] == 99


def test_a_gateway_that_is_not_there_is_told_and_no_more() -> None:
    (port,) = free_ports(1)
    registry = prometheus.registry(DONE, None, succeeded=False)
    assert not prometheus.pushed(registry, Pipeline(pushgateway=f"127.0.0.1:{port}"))
