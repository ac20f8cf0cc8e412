"""One request at a time to one replicator, over its unix socket or TLS."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from . import answers
from .answers import DecodeError, decode
from .errors import BadAnswer, Refused, Unreachable
from .expert_map import Document, encode

DEFAULT_ADDRESS = "/run/replicator/control.sock"
"""Where a replicator listens that is configured for nothing else."""

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""The longest answer that is read: the largest map."""

MAX_WAIT_SECONDS = 60
"""The longest that a replicator waits for a newer epoch."""

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A request without what belongs to the connection."""

    method: str
    path: str
    body: bytes | None = None


@dataclass(frozen=True)
class Answer:
    """An answer as it came. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def put_request(document: Document) -> Request:
    """Puts a full map in force. Raises MapError where the document is too large."""
    return Request("PUT", f"{_model_path(str(document['model']))}/map", encode(document))


def patch_request(document: Document) -> Request:
    """Puts some layers in force. Raises MapError where the document is too large."""
    return Request("PATCH", f"{_model_path(str(document['model']))}/layers", encode(document))


def _model_path(model: str) -> str:
    return f"/v1/models/{urllib.parse.quote(model, safe='')}"


@dataclass(frozen=True)
class Client:
    """A replicator's control API. It has no connection between requests, so threads and forks may share it.

    `address` is the path of a unix socket or `https://HOST:PORT`. Over TLS, `token` goes with each request, and
    `ca_file` has the certificates to trust instead of the system's. `timeout` is for each request, in seconds.
    Requests are never repeated here: that is for the caller to decide.
    """

    address: str = DEFAULT_ADDRESS
    token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    timeout: float = 30.0

    def __post_init__(self) -> None:
        check_address(self.address)
        # http.client would name the token in its error.
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ValueError("the token is empty or has characters that no header can carry")

    def put_map(self, document: Document) -> answers.Installed:
        """Puts a full map in force; answers when every table is in the kernel."""
        return self._get(answers.Installed, put_request(document))

    def patch_layers(self, document: Document) -> answers.Installed:
        """Puts the layers of a partial map in force; the others stay as they are."""
        return self._get(answers.Installed, patch_request(document))

    def get_map(self, model: str) -> Document:
        """The full map in force."""
        document = _json(self.send(Request("GET", f"{_model_path(model)}/map")))
        if not isinstance(document, dict):
            raise BadAnswer(f"{self.address}: the answer is no map")
        return document

    def models(self) -> tuple[answers.ModelSummary, ...]:
        """The models there are."""
        return self._get(answers.ModelList, Request("GET", "/v1/models")).models

    def epochs(self, model: str) -> answers.Epochs:
        """The epochs of a model's layers."""
        return self._get(answers.Epochs, Request("GET", f"{_model_path(model)}/epochs"))

    def bift_ids(self, model: str, *, after: int | None = None, wait: int | None = None) -> answers.Installed:
        """The tables of all layers. With `after`, waits up to `wait` seconds (at most 60) for a larger epoch."""
        query = {"after": after, "wait": wait}
        text = urllib.parse.urlencode({key: value for key, value in query.items() if value is not None})
        path = f"{_model_path(model)}/bift-ids{'?' if text else ''}{text}"
        waits = 0 if after is None else MAX_WAIT_SECONDS if wait is None else wait
        return self._get(answers.Installed, Request("GET", path), timeout=self.timeout + waits)

    def delete(self, model: str) -> answers.Deleted:
        """Takes a model out of force."""
        return self._get(answers.Deleted, Request("DELETE", _model_path(model)))

    def status(self) -> answers.StatusReport:
        """The daemon and what it looks after."""
        return self._get(answers.StatusReport, Request("GET", "/v1/status"))

    def neighbors(self) -> tuple[answers.Neighbor, ...]:
        """The neighbors and whether they are resolved."""
        return self._get(answers.NeighborList, Request("GET", "/v1/neighbors")).neighbors

    def stats(self) -> answers.Stats:
        """What the datapath counted."""
        return self._get(answers.Stats, Request("GET", "/v1/stats"))

    def ready(self) -> answers.Readiness:
        """Whether frames can be replicated, and what is missing. Not being ready is no error."""
        answer = self._exchange(Request("GET", "/readyz"), self.timeout)
        if answer.status == 503 and "problem" not in answer.headers.get("content-type", ""):
            return self._decode(answers.Readiness, answer)
        return self._decode(answers.Readiness, _accepted(answer))

    def headers(self, request: Request) -> dict[str, str]:
        """The headers of a request; the token is among them."""
        headers = {"Accept": "application/json, application/problem+json"}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if self.token is not None and self.address.startswith("https://"):
            headers["Authorization"] = f"Bearer {self.token}"
        return headers

    def send(self, request: Request, timeout: float | None = None) -> Answer:
        """Sends a request and reads the answer.

        Raises Refused where it is a problem, Unreachable where none came, BadAnswer where it is of another kind.
        """
        return _accepted(self._exchange(request, self.timeout if timeout is None else timeout))

    def _get(self, form: type[T], request: Request, timeout: float | None = None) -> T:
        return self._decode(form, self.send(request, timeout))

    def _decode(self, form: type[T], answer: Answer) -> T:
        try:
            return decode(form, _json(answer))
        except DecodeError as error:
            raise BadAnswer(f"{self.address}: {error}") from None

    def _exchange(self, request: Request, timeout: float) -> Answer:
        deadline = time.monotonic() + timeout
        try:
            connection = self._connection(timeout)
        except (OSError, ssl.SSLError) as error:
            raise Unreachable(f"cannot read {self.ca_file}: {error}") from error
        try:
            try:
                connection.request(request.method, request.path, request.body, self.headers(request))
            except (BrokenPipeError, ConnectionResetError):
                # Refused before the whole body was sent: the answer may be there already.
                if connection.sock is None:
                    raise
            response = connection.getresponse()
            body = _read(response, connection, deadline)
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, body)
        except BadAnswer as error:
            raise BadAnswer(f"{self.address}: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"{self.address}: {reason}") from error
        finally:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if not self.address.startswith("https://"):
            return _UnixConnection(self.address, timeout)
        url = urllib.parse.urlsplit(self.address)
        context = ssl.create_default_context(cafile=self.ca_file)
        return http.client.HTTPSConnection(url.hostname or "", url.port, timeout=timeout, context=context)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(self.timeout)
            stream.connect(self._path)
        except BaseException:
            stream.close()
            raise
        self.sock = stream


def check_address(address: str) -> None:
    """Raises ValueError where it is neither the path of a unix socket nor `https://HOST:PORT`."""
    if "://" not in address:
        if not address.startswith("/"):
            raise ValueError(f"`{address}` is no address: write the whole path of a unix socket, or https://HOST:PORT")
        return
    url = urllib.parse.urlsplit(address)
    if url.scheme != "https":
        raise ValueError(f"`{address}`: only https:// is spoken over TCP")
    if not url.hostname or url.path not in ("", "/") or url.query or url.fragment or "@" in url.netloc:
        raise ValueError(f"`{address}` is no address: write https://HOST:PORT")
    # Raises where it is no number up to 65535.
    _ = url.port


def _read(response: http.client.HTTPResponse, connection: http.client.HTTPConnection, deadline: float) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := response.read1(64 * 1024):
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise BadAnswer(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        chunks.append(chunk)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not end in time")
        # The connection lets go of its socket where the answer ends with it.
        if connection.sock is not None:
            connection.sock.settimeout(left)
    # `read1` does not complain when the sender ends too early.
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(chunks)


def _json(answer: Answer) -> object:
    try:
        value: object = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise BadAnswer(f"the answer with status {answer.status} is no JSON") from None
    return value


def _accepted(answer: Answer) -> Answer:
    if 200 <= answer.status < 300:
        return answer
    if answer.status < 400:
        raise BadAnswer(f"the answer has status {answer.status}: this API sends nobody elsewhere")
    try:
        problem = decode(answers.Problem, _json(answer))
    except (BadAnswer, DecodeError):
        text = answer.body[:200].decode("utf-8", "replace").strip()
        problem = answers.Problem("unknown", answer.status, text or "no reason given")
    seconds = answer.headers.get("retry-after", "")
    raise Refused(problem, float(seconds) if seconds.isascii() and seconds.isdigit() else None)
