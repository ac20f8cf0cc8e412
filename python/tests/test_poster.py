"""The poster's threads against stubs: nothing is lost, nothing is raised, nothing waits."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import unittest
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from replicator_client import Client, Poster
from replicator_client.once import OnceLog
from replicator_client.outbox import Outbox
from replicator_client.poster import Endpoint

from .stub import Asked, Reply, Stub, installed, problem

NODES = ("node1", "node2")


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Impatient(Outbox):
    """Waits a hundredth of what it should."""

    def failed(self, pending: object, error: object) -> float:
        return super().failed(pending, error) / 100  # type: ignore[arg-type]


class Case(unittest.TestCase):
    def setUp(self) -> None:
        self.heard = Heard()
        self.logger = logging.getLogger(f"test.{self.id()}")
        self.logger.propagate = False
        self.logger.setLevel(logging.INFO)
        self.logger.addHandler(self.heard)

    def poster(
        self, *addresses: str, nodes: Callable[[int], Sequence[str]] = lambda ranks: NODES[:ranks], timeout: float = 30.0
    ) -> Poster:
        endpoints = [Endpoint(address, lambda address=address: Client(address, timeout=timeout)) for address in addresses]  # type: ignore[misc]
        made = Poster("m", nodes, endpoints, log=OnceLog(self.logger), outbox=Impatient)
        self.addCleanup(made.close, 1.0)
        return made


def post(poster: Poster, layers: dict[int, object], full: bool = False, ranks: int = 2) -> None:
    poster.post(layers, ranks=ranks, logical_experts=2, full=full)  # type: ignore[arg-type]


def rows(asked: Asked) -> dict[int, list[int]]:
    return {int(number): layer["physical_to_logical_map"] for number, layer in asked.body["layers"].items()}


class Posting(Case):
    def test_a_full_map_and_then_layers(self) -> None:
        with Stub(installed) as stub:
            poster = self.poster(stub.address)
            before = time.time_ns() // 1000
            post(poster, {0: [0, 1], 1: [1, 0]}, full=True)
            self.assertTrue(poster.flush(30))
            post(poster, {1: [0, 1]})
            self.assertTrue(poster.flush(30))
            put, patch = stub.asked
        self.assertEqual((put.method, put.path, rows(put)), ("PUT", "/v1/models/m/map", {0: [0, 1], 1: [1, 0]}))
        self.assertNotIn("partial", put.body)
        self.assertEqual([rank["node"] for rank in put.body["ranks"]], ["node1", "node2"])
        self.assertEqual((patch.method, rows(patch), patch.body["partial"]), ("PATCH", {1: [0, 1]}, True))
        self.assertTrue(before <= put.body["epoch"] < patch.body["epoch"] <= time.time_ns() // 1000 + 2)

    def test_what_comes_in_while_a_request_is_under_way_is_merged(self) -> None:
        gate = threading.Event()

        def slow(asked: Asked) -> Reply:
            gate.wait(60)
            return installed(asked)

        with Stub(slow) as stub:
            poster = self.poster(stub.address)
            post(poster, {number: [0, 1] for number in range(4)}, full=True)
            time.sleep(0.1)
            for last in range(1, 101):
                post(poster, {last % 3: [0, 1] if last % 2 else [1, 0]})
            gate.set()
            self.assertTrue(poster.flush(30))
            # 99 is the last of layer 0, 100 that of layer 1, 98 that of layer 2.
            self.assertEqual([rows(asked) for asked in stub.asked[1:]], [{0: [0, 1], 1: [1, 0], 2: [1, 0]}])

    def test_the_caller_never_waits(self) -> None:
        gate = threading.Event()
        with Stub(lambda asked: Reply() if gate.wait(60) else Reply()) as stub:
            poster = self.poster(stub.address)
            post(poster, {0: [0, 1]}, full=True)
            start = time.monotonic()
            for number in range(1000):
                post(poster, {number: [0, 1]})
            self.assertLess(time.monotonic() - start, 10.0)
            gate.set()

    def test_endpoints_do_not_wait_for_each_other(self) -> None:
        with Stub(installed) as one, Stub(installed) as other:
            endpoints = [
                Endpoint("gone", lambda: Client("/nowhere/control.sock")),
                Endpoint("one", lambda: Client(one.address)),
                Endpoint("other", lambda: Client(other.address)),
            ]
            poster = Poster("m", lambda _: NODES, endpoints, log=OnceLog(self.logger))
            post(poster, {0: [0, 1]}, full=True)
            (first,), (second,) = one.wait(1), other.wait(1)
            poster.close(0.2)
        # The same epoch: tables have the same generation on all hosts.
        self.assertEqual(first.body, second.body)

    def test_a_later_number_of_ranks_has_its_own_nodes(self) -> None:
        with Stub(installed) as stub:
            poster = self.poster(stub.address, nodes=lambda ranks: ("a", "b", "c", "d")[:ranks])
            post(poster, {0: [0, 1]}, full=True)
            poster.flush(30)
            post(poster, {0: [0, 1, 1, 0]}, ranks=4)
            self.assertTrue(poster.flush(30))
            self.assertEqual([asked.method for asked in stub.asked], ["PUT", "PUT"])
            self.assertEqual([rank["node"] for rank in stub.asked[1].body["ranks"]], ["a", "b", "c", "d"])


class Trouble(Case):
    def run_through(self, replies: list[Reply], layers_after: dict[int, object] | None = None) -> list[Asked]:
        """Posts a full map to one that answers these first and then takes all."""
        waiting = list(replies)
        with Stub(lambda asked: waiting.pop(0) if waiting else installed(asked)) as stub:
            poster = self.poster(stub.address)
            post(poster, {0: [0, 1]}, full=True)
            self.assertTrue(poster.flush(30), self.heard.lines)
            if layers_after is not None:
                post(poster, layers_after)
                self.assertTrue(poster.flush(30), self.heard.lines)
            return list(stub.asked)

    def test_it_tries_until_it_is_taken(self) -> None:
        ending = problem("ending", 503)
        asked = self.run_through([ending, Reply(raw=b""), ending, Reply(200, raw=b"HTTP/1.1 500 X\r\n\r\n")])
        self.assertEqual(len(asked), 5)
        self.assertEqual({tuple(rows(one)[0]) for one in asked}, {(0, 1)})
        # Each kind of trouble once, and that it is over.
        self.assertEqual(sum("ending" in line for line in self.heard.lines), 1, self.heard.lines)
        self.assertEqual(sum("takes maps of m again" in line for line in self.heard.lines), 1, self.heard.lines)

    def test_a_stale_epoch(self) -> None:
        far = 2**52
        asked = self.run_through([problem("stale-epoch", 409, epoch=far)], {0: [1, 0]})
        self.assertEqual([one.body["epoch"] for one in asked[1:]], [far + 1, far + 2])
        self.assertEqual(self.heard.lines, [])

    def test_a_model_that_was_deleted_is_put_again_in_full(self) -> None:
        asked: list[Asked] = []

        def forgetful(one: Asked) -> Reply:
            asked.append(one)
            return problem("unknown-model", 404) if len(asked) == 2 else installed(one)

        with Stub(forgetful) as stub:
            poster = self.poster(stub.address)
            post(poster, {0: [0, 1], 1: [0, 1]}, full=True)
            poster.flush(30)
            post(poster, {1: [1, 0]})
            self.assertTrue(poster.flush(30))
        self.assertEqual([one.method for one in asked], ["PUT", "PATCH", "PUT"])
        self.assertEqual(rows(asked[2]), {0: [0, 1], 1: [1, 0]})

    def test_every_refusal_is_outlived(self) -> None:
        codes = [("configured", 409), ("unauthorized", 401), ("invalid-map", 422), ("too-large", 413), ("storage", 507)]
        # A hundredth of a minute for each, at least.
        asked = self.run_through([problem(code, status) for code, status in codes])
        self.assertEqual(len(asked), 6)
        self.assertEqual(len(self.heard.lines), 6, self.heard.lines)

    def test_retry_after(self) -> None:
        start = time.monotonic()
        self.run_through([problem("no-room", 503, {"Retry-After": "50"})])
        # A hundredth of it, and of the second of jitter.
        self.assertGreaterEqual(time.monotonic() - start, 0.5)

    def test_nothing_is_raised_whatever_is_posted(self) -> None:
        with Stub(installed) as stub:
            poster = self.poster(stub.address)
            for layers in ({"a": [0]}, None, {9999: [0, 1]}):
                poster.post(layers, ranks=2, logical_experts=2, full=False)  # type: ignore[arg-type]
            post(poster, {0: [0, 1]}, full=True)
            self.assertTrue(poster.flush(30))
            self.assertEqual(rows(stub.asked[0]), {0: [0, 1]})
        self.assertGreaterEqual(len(self.heard.lines), 2)

    def test_ranks_that_nobody_knows_are_told_and_outlived(self) -> None:
        def unknown(ranks: int) -> Sequence[str]:
            raise LookupError(f"{ranks} ranks")

        with Stub(installed) as stub:
            poster = self.poster(stub.address, nodes=unknown)
            post(poster, {0: [0, 1]}, full=True)
            self.assertFalse(poster.flush(0.2))
            self.assertEqual(stub.asked, [])
        self.assertEqual(len(self.heard.lines), 1)
        self.assertIn("LookupError: 2 ranks", self.heard.lines[0])

    def test_incomplete_layers_are_told_once(self) -> None:
        with Stub(installed) as stub:
            poster = self.poster(stub.address)
            post(poster, {0: [0, 1], 1: [0, -1]}, full=True)
            poster.flush(30)
            for _ in range(3):
                post(poster, {1: [1, -1]})
                self.assertTrue(poster.flush(30))
            self.assertEqual(len(stub.asked), 1)
            post(poster, {1: [1, 0]})
            self.assertTrue(poster.flush(30))
            self.assertEqual(rows(stub.asked[1]), {1: [1, 0]})
        self.assertEqual(self.heard.lines, ["layer 1 of m is left out: no slot has expert 1"])


class Ending(Case):
    def test_closing_sends_what_is_not_sent(self) -> None:
        def slow(asked: Asked) -> Reply:
            time.sleep(0.1)
            return installed(asked)

        with Stub(slow) as stub:
            poster = self.poster(stub.address)
            post(poster, {0: [0, 1]}, full=True)
            time.sleep(0.05)
            post(poster, {0: [1, 0]})
            self.assertTrue(poster.close(30))
            self.assertEqual([rows(asked) for asked in stub.asked], [{0: [0, 1]}, {0: [1, 0]}])
            post(poster, {0: [0, 1]})
            self.assertTrue(poster.close(1))
            self.assertEqual(len(stub.asked), 2)

    def test_closing_does_not_wait_for_one_that_does_not_answer(self) -> None:
        gate = threading.Event()
        with Stub(lambda asked: Reply() if gate.wait(60) else Reply()) as stub:
            poster = self.poster(stub.address)
            post(poster, {0: [0, 1]}, full=True)
            start = time.monotonic()
            self.assertFalse(poster.close(0.3))
            self.assertLess(time.monotonic() - start, 10.0)
            gate.set()

    def test_closing_ends_a_pause(self) -> None:
        poster = Poster("m", lambda _: NODES, [Endpoint("gone", lambda: Client("/nowhere/c.sock"))], log=OnceLog(self.logger))
        post(poster, {0: [0, 1]}, full=True)
        time.sleep(0.2)
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("replicator-")]
        self.assertFalse(poster.close(30.0))
        self.assertFalse(any(thread.is_alive() for thread in threads))

    def test_a_process_that_ends_flushes(self) -> None:
        script = (
            "import sys\n"
            "from replicator_client import Client, Poster\n"
            "from replicator_client.poster import Endpoint\n"
            "poster = Poster('m', lambda _: ('a',), [Endpoint('s', lambda: Client(sys.argv[1]))])\n"
            "poster.post({0: [0]}, ranks=1, logical_experts=1, full=True)\n"
        )
        package = Path(__file__).parent.parent
        with Stub(installed) as stub:
            done = subprocess.run(
                [sys.executable, "-c", script, stub.address], cwd=package, timeout=120, capture_output=True, text=True
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertEqual(len(stub.asked), 1)


class Forking(Case):
    def test_a_child_posts_what_is_given_to_it_and_nothing_of_before(self) -> None:
        with Stub(installed) as stub:
            poster = self.poster(stub.address)
            post(poster, {0: [0, 1], 1: [0, 1]}, full=True)
            self.assertTrue(poster.flush(30))
            with warnings.catch_warnings():
                # Later Pythons say that forking with threads is dangerous, which is what this is about.
                warnings.simplefilter("ignore")
                # As if another thread were within `post` at this moment.
                with poster._changed:
                    child = os.fork()
                    if child == 0:
                        # Whatever happens, the test runner must not go on here.
                        status = 1
                        try:
                            post(poster, {1: [1, 0]})
                            status = 0 if poster.flush(30) else 2
                        finally:
                            os._exit(status)
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 0)
            self.assertEqual([(asked.method, rows(asked)) for asked in stub.asked[1:]], [("PATCH", {1: [1, 0]})])
            post(poster, {0: [1, 0]})
            self.assertTrue(poster.flush(30))
            self.assertEqual(rows(stub.asked[2]), {0: [1, 0]})


class Once(Case):
    def test_a_kind_is_told_once_until_it_is_over(self) -> None:
        log = OnceLog(self.logger)
        log.warn("a 1", "first")
        log.warn("a 1", "again")
        log.warn("b", "other")
        self.assertFalse(log.over("c"))
        self.assertTrue(log.over("a "))
        log.warn("a 1", "anew")
        log.warn("b", "still")
        self.assertEqual(self.heard.lines, ["first", "other", "anew"])

    def test_a_log_that_fails_disturbs_nobody(self) -> None:
        def fails(_: logging.LogRecord) -> bool:
            raise RuntimeError("full disk")

        self.logger.addFilter(fails)
        OnceLog(self.logger).warn("a", "first")
