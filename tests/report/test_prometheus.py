"""Metrics as a gateway gets them: a real HTTP server takes the place of one."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmrec import config
from llmrec.config import Pipeline
from llmrec.errors import UserError
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


def test_what_answers_but_is_no_gateway_is_told_and_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        registry = prometheus.registry(DONE, None, succeeded=True)
        assert not prometheus.pushed(registry, Pipeline(pushgateway=f"127.0.0.1:{server.getsockname()[1]}"))
        thread.join()


@pytest.mark.parametrize("gateway", ["http://gw:9091", "me:word@gw:9091", "gw", "gw:99999", "gw:9091/a", "g w:9091"])
def test_a_gateway_is_a_host_and_a_port(gateway: str) -> None:
    with pytest.raises(UserError, match=r"pushgateway is host:port, such as") as caught:
        config.build({"pipeline": {"pushgateway": gateway}})
    assert "word" not in str(caught.value).removesuffix("a name or a password")
    for right in ("gw.example:9091", "10.0.0.7:80", "[::1]:9091", ""):
        assert config.build({"pipeline": {"pushgateway": right}}).pipeline.pushgateway == right
