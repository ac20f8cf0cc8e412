"""The client against a stub: what it asks, what it makes of answers, and of things that are none."""

from __future__ import annotations

import shutil
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
from collections.abc import Callable
from unittest import mock

from replicator_client import BadAnswer, Client, Refused, Unreachable, answers, client
from replicator_client.answers import DecodeError, decode
from replicator_client.expert_map import ExpertMap

from .stub import Asked, Reply, Stub, installed, problem

FULL = ExpertMap("a/b c", 2, ("node1", "node2"), {3: [0, 1]}).document(7, partial=False)
TABLE = {"epoch": 7, "bift_id": 769, "alias": 768, "table": 3, "generation": 1}


def ask(reply: Reply, call: Callable[[Client], object], timeout: float = 30.0) -> tuple[object, Asked]:
    with Stub(lambda _: reply) as stub:
        result = call(Client(stub.address, timeout=timeout))
        return result, stub.asked[0]


class Requests(unittest.TestCase):
    def test_maps(self) -> None:
        with Stub(installed) as stub:
            client = Client(stub.address)
            result = client.put_map(FULL)
            self.assertEqual(result, answers.Installed("a/b c", 7, 64, {3: answers.LayerTable(7, 769, 768, 3, 1)}))
            client.patch_layers({**FULL, "partial": True})
            put, patch = stub.asked
        self.assertEqual((put.method, put.path, put.body), ("PUT", "/v1/models/a%2Fb%20c/map", FULL))
        self.assertEqual(put.headers["content-type"], "application/json")
        self.assertNotIn("authorization", put.headers)
        self.assertEqual((patch.method, patch.path), ("PATCH", "/v1/models/a%2Fb%20c/layers"))
        self.assertEqual(patch.body, {**FULL, "partial": True})

    def test_what_else_there_is(self) -> None:
        summary = {"model": "m", "epoch": 7, "logical_experts": 8, "layers": 2}
        table = {"model": "m", "epoch": 7, "bit_string_length": 64, "layers": {"3": TABLE}}
        epochs = {
            "model": "m",
            "epoch": 7,
            "layers": {
                "3": {"epoch": 7, "superseded": [{"epoch": 6, "bift_id": 770, "seconds_left": 1.5}]},
                "4": {"epoch": None, "superseded": []},
            },
        }
        status = {
            "version": "0.1.0", "pid": 4, "uptime_seconds": 2.5, "origin": None,
            "interfaces": [{"name": "eth0", "ifindex": 2, "mode": "native"}],
            "neighbors": {"total": 3, "resolved": 2}, "models": [summary], "configured_tables": 1, "bift_ids": 4,
            "superseded": 1, "behind": False,
        }  # fmt: skip
        ready = {"name": "node1", "id": 1, "resolution": {"state": "ready", "ifindex": 2, "mac": "02:00:00:00:00:01"}}
        pending = {"name": "node2", "id": 2, "resolution": {"state": "pending", "reason": "no route"}}
        stats = {"uptime_seconds": 1, "outcomes": {"sent": 5}, "neighbors": {"node1": {"copies": 5, "bytes": 500}}}
        a_summary = answers.ModelSummary("m", 7, 8, 2)
        superseded = answers.Superseded(6, 770, 1.5)
        for body, call, path, expected in (
            ({"models": [summary]}, lambda c: c.models(), "/v1/models", (a_summary,)),
            (FULL, lambda c: c.get_map("m"), "/v1/models/m/map", FULL),
            (
                epochs,
                lambda c: c.epochs("m"),
                "/v1/models/m/epochs",
                answers.Epochs("m", 7, {3: answers.LayerEpochs(7, (superseded,)), 4: answers.LayerEpochs(None)}),
            ),
            (
                table,
                lambda c: c.bift_ids("m"),
                "/v1/models/m/bift-ids",
                answers.Installed("m", 7, 64, {3: answers.LayerTable(7, 769, 768, 3, 1)}),
            ),
            (
                status,
                lambda c: c.status(),
                "/v1/status",
                answers.StatusReport(
                    "0.1.0", 4, 2.5, None, (answers.Interface("eth0", 2, "native"),), answers.Count(3, 2),
                    (a_summary,), 1, 4, 1, False,
                ),
            ),
            (
                {"neighbors": [ready, pending]},
                lambda c: c.neighbors(),
                "/v1/neighbors",
                (
                    answers.Neighbor("node1", 1, answers.Resolution("ready", 2, "02:00:00:00:00:01")),
                    answers.Neighbor("node2", 2, answers.Resolution("pending", reason="no route")),
                ),
            ),
            (
                stats,
                lambda c: c.stats(),
                "/v1/stats",
                answers.Stats(1.0, {"sent": 5}, {"node1": answers.Traffic(5, 500)}),
            ),
        ):  # fmt: skip
            with self.subTest(path):
                result, asked = ask(Reply(200, body), call)
                self.assertEqual((asked.method, asked.path), ("GET", path))
                self.assertEqual(result, expected)

    def test_deletion(self) -> None:
        result, asked = ask(Reply(200, {"model": "m", "epoch": 7}), lambda c: c.delete("m"))
        self.assertEqual((asked.method, asked.path, result), ("DELETE", "/v1/models/m", answers.Deleted("m", 7)))

    def test_waiting_for_a_newer_epoch_takes_longer_than_the_timeout(self) -> None:
        body = {"model": "m", "epoch": 8, "bit_string_length": 64, "layers": {}}

        def slow(_: Asked) -> Reply:
            time.sleep(0.5)
            return Reply(200, body)

        with Stub(slow) as stub:
            result = Client(stub.address, timeout=0.1).bift_ids("m", after=7, wait=5)
            self.assertEqual(result.epoch, 8)
            self.assertEqual(stub.asked[0].path, "/v1/models/m/bift-ids?after=7&wait=5")
            with self.assertRaises(Unreachable):
                Client(stub.address, timeout=0.1).bift_ids("m")

    def test_readiness_is_an_answer_with_either_status(self) -> None:
        result, _ = ask(Reply(200, {"ready": True, "missing": []}), lambda c: c.ready())
        self.assertEqual(result, answers.Readiness(True))
        result, asked = ask(Reply(503, {"ready": False, "missing": ["no map"]}), lambda c: c.ready())
        self.assertEqual((result, asked.path), (answers.Readiness(False, ("no map",)), "/readyz"))
        with self.assertRaises(Refused):
            ask(problem("ending", 503), lambda c: c.ready())


class Refusals(unittest.TestCase):
    def test_every_code(self) -> None:
        for code, status in (
            ("bad-request", 400),
            ("unauthorized", 401),
            ("unknown-model", 404),
            ("not-found", 404),
            ("method-not-allowed", 405),
            ("timeout", 408),
            ("stale-epoch", 409),
            ("configured", 409),
            ("too-large", 413),
            ("invalid-map", 422),
            ("internal", 500),
            ("no-room", 503),
            ("ending", 503),
            ("storage", 507),
        ):
            with self.subTest(code), self.assertRaises(Refused) as raised:
                ask(problem(code, status), lambda c: c.put_map(FULL))
            error = raised.exception
            self.assertEqual((error.code, error.status, error.detail), (code, status, f"it is {code}"))
            self.assertEqual((error.epoch, error.faults, error.retry_after), (None, (), None))

    def test_what_comes_with_it(self) -> None:
        with self.assertRaises(Refused) as raised:
            ask(problem("stale-epoch", 409, epoch=9), lambda c: c.put_map(FULL))
        self.assertEqual(raised.exception.epoch, 9)
        with self.assertRaises(Refused) as raised:
            ask(problem("no-room", 503, {"Retry-After": "17"}), lambda c: c.put_map(FULL))
        self.assertEqual(raised.exception.retry_after, 17.0)
        faults = [{"path": "ranks[1]", "message": "unknown node"}]
        with self.assertRaises(Refused) as raised:
            ask(problem("invalid-map", 422, faults=faults, more_faults=2), lambda c: c.put_map(FULL))
        self.assertEqual(raised.exception.faults, (answers.Fault("ranks[1]", "unknown node"),))
        self.assertEqual(
            str(raised.exception), "422 invalid-map: it is invalid-map\nranks[1]: unknown node\nand 2 more"
        )

    def test_an_error_of_something_in_between(self) -> None:
        with self.assertRaises(Refused) as raised:
            ask(Reply(502, "no upstream"), lambda c: c.models())
        self.assertEqual((raised.exception.code, raised.exception.status), ("unknown", 502))


class StrangeAnswers(unittest.TestCase):
    def test_none(self) -> None:
        with self.assertRaisesRegex(Unreachable, "/nowhere/control.sock"):
            Client("/nowhere/control.sock").models()
        head = b"HTTP/1.1 200 OK\r\n"
        for raw in (b"", b"SSH-2.0-x\r\n", head + b"Content-Length: 9\r\n\r\n{}", head + b"X: " + b"x" * 70000):
            with self.subTest(raw[:60]), self.assertRaises(Unreachable):
                ask(Reply(raw=raw), lambda c: c.models())

    def test_of_another_kind(self) -> None:
        for reply in (
            Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<p>"),
            Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100000),
            Reply(200, {"models": {}}),
            Reply(200, {}),
            Reply(200, []),
            Reply(302, {}, {"Location": "https://elsewhere/"}),
        ):
            with self.subTest(reply.body), self.assertRaises(BadAnswer):
                ask(reply, lambda c: c.models())
        with self.assertRaises(BadAnswer):
            ask(Reply(200, []), lambda c: c.get_map("m"))

    def test_one_without_end(self) -> None:
        head = b"HTTP/1.1 200 OK\r\n\r\n"
        with mock.patch.object(client, "MAX_ANSWER_BYTES", 100_000):
            with self.assertRaisesRegex(BadAnswer, "longer than 100000"):
                ask(Reply(raw=head + b" " * 100_001), lambda c: c.models())
            self.assertEqual(ask(Reply(raw=head + b'{"models":[]}' + b" " * 99_000), lambda c: c.models())[0], ())

    def test_one_that_drips_ends_with_the_timeout(self) -> None:
        ours, theirs = socket.socketpair()
        stop = threading.Event()

        def drip() -> None:
            theirs.recv(65536)
            theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not stop.wait(0.05):
                try:
                    theirs.sendall(b" ")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()

        class Dripping(client._UnixConnection):
            def connect(self) -> None:
                self.sock = ours
                ours.settimeout(self.timeout)

        real = client._UnixConnection
        client._UnixConnection = Dripping  # type: ignore[misc]
        try:
            start = time.monotonic()
            with self.assertRaises(Unreachable):
                Client("/stub", timeout=0.3).models()
            self.assertLess(time.monotonic() - start, 20.0)
        finally:
            client._UnixConnection = real  # type: ignore[misc]
            stop.set()
            thread.join()
            theirs.close()

    def test_a_refusal_before_the_body_is_read(self) -> None:
        listener = socket.socket(socket.AF_UNIX)
        # The kernel picks a name.
        listener.bind("")
        path = listener.getsockname()
        listener.listen(1)
        body = b'{"code":"too-large","status":413,"detail":"no"}'
        answer = b"HTTP/1.1 413 X\r\nContent-Type: application/problem+json\r\nContent-Length: %d\r\n\r\n" % len(body)

        def refuse() -> None:
            stream, _ = listener.accept()
            with stream:
                stream.recv(1024)
                stream.sendall(answer + body)
                stream.shutdown(socket.SHUT_RD)

        thread = threading.Thread(target=refuse)
        thread.start()

        class Early(client._UnixConnection):
            def __init__(self, _: str, timeout: float) -> None:
                super().__init__(path, timeout)

        real = client._UnixConnection
        client._UnixConnection = Early  # type: ignore[misc, assignment]
        try:
            layers = {number: [0] * 4096 for number in range(1000)}
            document = ExpertMap("m", 1, ("a",), layers).document(1, partial=False)
            with self.assertRaises(Refused) as raised:
                Client("/stub", timeout=30.0).put_map(document)
            self.assertEqual(raised.exception.code, "too-large")
        finally:
            client._UnixConnection = real  # type: ignore[misc]
            thread.join()
            listener.close()


class Addresses(unittest.TestCase):
    def test_those_there_are(self) -> None:
        for address in ("/run/replicator/control.sock", "https://host:8443", "https://[fd00::1]:8443/", "https://h"):
            Client(address)
        for address in ("", "control.sock", "http://host:1", "https://", "https://u@h:1", "https://h:1/v1", "https://h:x"):
            with self.subTest(address), self.assertRaises(ValueError):
                Client(address)

    def test_the_token_is_for_tls_alone_and_never_shown(self) -> None:
        secret = "s3cret-token"
        over_tls, local = Client("https://h:1", secret), Client("/s", secret)
        request = client.Request("GET", "/v1/models")
        self.assertEqual(over_tls.headers(request)["Authorization"], f"Bearer {secret}")
        self.assertNotIn("Authorization", local.headers(request))
        self.assertNotIn(secret, f"{over_tls!r} {over_tls} {local!r}")
        for strange in ("", " ", "a\nb", "é"):
            with self.subTest(strange), self.assertRaises(ValueError) as raised:
                Client("https://h:1", strange)
            if strange.strip():
                self.assertNotIn(strange, str(raised.exception))

    def test_a_missing_certificate_authority(self) -> None:
        with self.assertRaisesRegex(Unreachable, "/nowhere/ca.pem"):
            Client("https://127.0.0.1:1", "t", "/nowhere/ca.pem").models()


@unittest.skipIf(shutil.which("openssl") is None, "openssl, which makes the certificate, is not there")
class Tls(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.certificate, key = f"{folder.name}/tls.crt", f"{folder.name}/tls.key"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
        subprocess.run([*command, "-keyout", key, "-out", self.certificate], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self.asked: list[bytes] = []

        class Handler(socketserver.BaseRequestHandler):
            def handle(handler) -> None:
                try:
                    with context.wrap_socket(handler.request, server_side=True) as stream:
                        self.asked.append(stream.recv(65536))
                        stream.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"models":[]}')
                except OSError:
                    pass

        server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        self.addCleanup(server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        self.port = server.server_address[1]

    def test_the_token_goes_to_one_whose_certificate_is_trusted(self) -> None:
        client = Client(f"https://127.0.0.1:{self.port}", "s3cret", self.certificate)
        self.assertEqual(client.models(), ())
        self.assertIn(b"\r\nAuthorization: Bearer s3cret\r\n", self.asked[0])

    def test_it_does_not_go_to_others(self) -> None:
        for host, trusted in (("127.0.0.1", None), ("localhost", self.certificate)):
            with self.subTest(host), self.assertRaisesRegex(Unreachable, "CERTIFICATE_VERIFY_FAILED") as raised:
                Client(f"https://{host}:{self.port}", "s3cret", trusted).models()
            self.assertNotIn("s3cret", str(raised.exception))
        self.assertEqual(self.asked, [])


class Decoding(unittest.TestCase):
    def test_paths_lead_to_what_is_wrong(self) -> None:
        good = {"model": "m", "epoch": 7, "bit_string_length": 64, "layers": {"3": TABLE}, "new": 1}
        self.assertEqual(decode(answers.Installed, good).layers[3].bift_id, 769)
        for changes, words in (
            ({"epoch": "7"}, "answer.epoch"),
            ({"epoch": True}, "answer.epoch"),
            ({"epoch": None}, "answer.epoch: null"),
            ({"layers": []}, "answer.layers"),
            ({"layers": {"x": TABLE}}, "'x' is no number"),
            ({"layers": {"3": {**TABLE, "alias": 1.5}}}, "answer.layers.3.alias"),
            ({"layers": {"3": {}}}, "answer.layers.3: lacks `epoch`"),
        ):
            with self.subTest(words), self.assertRaisesRegex(DecodeError, words):
                decode(answers.Installed, {**good, **changes})
