"""A control API that answers what a test tells it to, on a unix socket or TCP, and remembers what it was asked."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Reply:
    """An answer to give."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """Instead of all of the above: bytes to write before the connection is closed."""


def problem(code: str, status: int, headers: dict[str, str] | None = None, **more: Any) -> Reply:
    """A refusal."""
    body = {"code": code, "status": status, "detail": f"it is {code}", **more}
    return Reply(status, body, {"Content-Type": "application/problem+json", **(headers or {})})


def installed(asked: Asked) -> Reply:
    """What a replicator answers that takes every map, with the tables' numbers made of the layers'."""
    layers = {
        number: {"epoch": asked.body["epoch"], "bift_id": 256 * int(number) + 1, "alias": 256 * int(number), "table": int(number), "generation": 1}
        for number in asked.body["layers"]
    }
    return Reply(200, {"model": asked.body["model"], "epoch": asked.body["epoch"], "bit_string_length": 64, "layers": layers})


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def get_request(self) -> tuple[socket.socket, Any]:
        stream, _ = super().get_request()
        return stream, ("local", 0)


class Stub:
    """A server for the length of a `with`."""

    def __init__(self, answer: Callable[[Asked], Reply]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self._came = threading.Condition()
        self._folder = tempfile.TemporaryDirectory()
        self.address = os.path.join(self._folder.name, "control.sock")
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, json.loads(body) if body else None)
                reply = stub.answer(asked)
                with stub._came:
                    stub.asked.append(asked)
                    stub._came.notify_all()
                self.close_connection = True
                try:
                    if reply.raw is not None:
                        self.wfile.write(reply.raw)
                        return
                    content = json.dumps(reply.body).encode()
                    self.send_response(reply.status)
                    for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except ConnectionError:
                    pass

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _UnixServer(self.address, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def wait(self, count: int, seconds: float = 30.0) -> list[Asked]:
        """Waits for that many requests in all."""
        with self._came:
            if not self._came.wait_for(lambda: len(self.asked) >= count, seconds):
                raise AssertionError(f"{len(self.asked)} requests came, not {count}: {self.asked}")
            return list(self.asked)

    def __enter__(self) -> Stub:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._folder.cleanup()
