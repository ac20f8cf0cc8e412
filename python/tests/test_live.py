"""A real daemon, where REPLICATOR_TEST_API names its socket: maps of all experts on `local` come and go there."""

from __future__ import annotations

import os
import time
import unittest

from replicator_client import Client, Poster, Refused
from replicator_client.expert_map import ExpertMap
from replicator_client.poster import Endpoint

ADDRESS = os.environ.get("REPLICATOR_TEST_API")
MODEL = "replicator-client-test"


@unittest.skipIf(ADDRESS is None, "REPLICATOR_TEST_API names no socket of a daemon")
class Live(unittest.TestCase):
    def setUp(self) -> None:
        self.client = Client(ADDRESS or "")
        self.forget()
        self.addCleanup(self.forget)

    def forget(self) -> None:
        try:
            self.client.delete(MODEL)
        except Refused as refused:
            self.assertEqual(refused.code, "unknown-model")

    def map(self, *layers: int, experts: int = 2, node: str = "local") -> ExpertMap:
        return ExpertMap(MODEL, experts, (node,), {layer: list(range(experts)) for layer in layers})

    def code(self, call: object, *arguments: object) -> str:
        with self.assertRaises(Refused) as raised:
            call(*arguments)  # type: ignore[operator]
        self.assertTrue(raised.exception.detail)
        return raised.exception.code

    def test_a_map_comes_changes_and_goes(self) -> None:
        client = self.client
        put = client.put_map(self.map(0, 1).document(10, partial=False))
        self.assertEqual((put.model, put.epoch, sorted(put.layers)), (MODEL, 10, [0, 1]))
        self.assertIn(put.bit_string_length, (64, 128, 256, 512, 1024))
        patch = client.patch_layers(self.map(1).document(11, partial=True))
        self.assertEqual((patch.epoch, sorted(patch.layers), patch.layers[1].epoch), (11, [1], 11))
        self.assertEqual(patch.layers[1].alias, put.layers[1].alias)
        self.assertNotEqual(patch.layers[1].bift_id, put.layers[1].bift_id)
        self.assertEqual(client.get_map(MODEL)["epoch"], 11)
        self.assertEqual(client.epochs(MODEL).epoch, 11)
        self.assertEqual(client.bift_ids(MODEL).layers[0].epoch, 10)
        self.assertIn(MODEL, [model.model for model in client.models()])
        self.assertEqual(client.delete(MODEL).epoch, 11)
        self.assertEqual(self.code(client.get_map, MODEL), "unknown-model")

    def test_the_daemon_tells_about_itself(self) -> None:
        self.assertGreater(self.client.status().pid, 0)
        self.assertEqual(len(self.client.neighbors()), self.client.status().neighbors.total)
        self.assertIn("sent", self.client.stats().outcomes)
        self.client.ready()

    def test_refusals(self) -> None:
        client = self.client
        self.assertEqual(self.code(client.patch_layers, self.map(0).document(9, partial=True)), "unknown-model")
        client.put_map(self.map(0).document(10, partial=False))
        with self.assertRaises(Refused) as stale:
            client.put_map(self.map(0).document(10, partial=False))
        self.assertEqual((stale.exception.code, stale.exception.epoch), ("stale-epoch", 10))
        for document in (
            self.map(0, experts=3).document(11, partial=True),
            {**self.map(0).document(11, partial=True), "ranks": [{"rank": 0, "node": "nobody-knows-it"}]},
            {**self.map(0).document(11, partial=True), "more": 1},
        ):
            with self.assertRaises(Refused) as invalid:
                client.patch_layers(document)
            self.assertEqual(invalid.exception.code, "invalid-map")
            self.assertTrue(invalid.exception.faults)
        self.assertEqual(client.get_map(MODEL)["epoch"], 10)

    def test_waiting_for_a_newer_epoch(self) -> None:
        self.client.put_map(self.map(0).document(10, partial=False))
        self.assertEqual(self.client.bift_ids(MODEL, after=9, wait=30).epoch, 10)
        start = time.monotonic()
        self.assertEqual(self.client.bift_ids(MODEL, after=10, wait=1).epoch, 10)
        self.assertGreaterEqual(time.monotonic() - start, 0.9)

    def test_the_poster(self) -> None:
        poster = Poster(MODEL, lambda ranks: ("local",) * ranks, [Endpoint("daemon", lambda: self.client)])
        self.addCleanup(poster.close)
        poster.post({0: [0, 1], 1: [0, 1]}, ranks=1, logical_experts=2, full=True)
        self.assertTrue(poster.flush(10))
        poster.post({1: [1, 0]}, ranks=1, logical_experts=2, full=False)
        self.assertTrue(poster.flush(10))
        # Another number of ranks wants a full map.
        poster.post({0: [0, 1], 1: [1, 0]}, ranks=2, logical_experts=2, full=False)
        self.assertTrue(poster.flush(10))
        self.assertEqual(len(self.client.get_map(MODEL)["ranks"]), 2)
        # One that was deleted comes back whole, and later than one of another's clock.
        self.client.delete(MODEL)
        poster.post({1: [0, 1]}, ranks=2, logical_experts=2, full=False)
        self.assertTrue(poster.flush(10))
        self.assertEqual(sorted(self.client.get_map(MODEL)["layers"]), ["0", "1"])
        future = 2**52
        self.client.put_map(self.map(0, 1).document(future, partial=False))
        poster.post({0: [1, 0]}, ranks=2, logical_experts=2, full=False)
        self.assertTrue(poster.flush(10))
        self.assertGreater(self.client.epochs(MODEL).epoch, future)
