"""Documents, and what cannot be one."""

from __future__ import annotations

import json
import unittest

from replicator_client import expert_map
from replicator_client.expert_map import ExpertMap, MapError

NODES = ("node1", "node1", "node2")
LAYERS = {3: [0, 1, 2, 0, 3, 0], 4: [3, 1, 0, 2, 2, -1]}


class Documents(unittest.TestCase):
    def test_the_example_of_the_documentation(self) -> None:
        document = ExpertMap("small", 4, NODES, LAYERS).document(7, partial=False)
        self.assertEqual(
            document,
            {
                "version": 1,
                "model": "small",
                "epoch": 7,
                "logical_experts": 4,
                "ranks": [
                    {"rank": 0, "node": "node1"},
                    {"rank": 1, "node": "node1"},
                    {"rank": 2, "node": "node2"},
                ],
                "layers": {
                    "3": {"physical_to_logical_map": [0, 1, 2, 0, 3, 0]},
                    "4": {"physical_to_logical_map": [3, 1, 0, 2, 2, -1]},
                },
            },
        )
        self.assertEqual(json.loads(expert_map.encode(document)), document)

    def test_what_stands_in_partial_maps_and_those_with_numbered_tables(self) -> None:
        document = ExpertMap("small", 4, NODES, {3: LAYERS[3]}, 100).document(8, partial=True)
        self.assertIs(document["partial"], True)
        self.assertEqual(document["first_table"], 100)
        self.assertEqual(list(document["layers"]), ["3"])

    def test_what_no_map_can_have(self) -> None:
        def made(**changes: object) -> None:
            fields = {"model": "small", "logical_experts": 4, "nodes": NODES, "layers": LAYERS} | changes
            ExpertMap(**fields).document(7, partial=False)  # type: ignore[arg-type]

        made()
        made(model="é" * 63)
        unfit: tuple[dict[str, object], ...] = (
            {"model": ""},
            {"model": "m" * 64},
            {"model": "a\nb"},
            {"model": " a"},
            {"logical_experts": 0},
            {"logical_experts": 1025},
            {"nodes": ()},
            {"nodes": ("node1", "node 2", "node3")},
            {"nodes": tuple(f"n{i}" for i in range(4097))},
            {"nodes": tuple(f"n{i}" for i in range(256)), "layers": {0: [0, 1, 2, 3] * 64}},
            {"layers": {}},
            {"layers": {2048: LAYERS[3]}},
            {"layers": {-1: LAYERS[3]}},
            {"layers": {0: [0, 1, 2, 0]}},
            {"first_table": 2048},
        )
        for changes in unfit:
            with self.subTest(changes), self.assertRaises(MapError):
                made(**changes)
        for epoch in (-1, 2**53):
            with self.assertRaises(MapError):
                ExpertMap("small", 4, NODES, LAYERS).document(epoch, partial=False)

    def test_why_a_layer_cannot_be_sent(self) -> None:
        self.assertIsNone(expert_map.fault([0, 1, -1, 0], 2, 2))
        self.assertIsNone(expert_map.fault([0, 1], 1, 2))
        for row, ranks, experts, words in (
            ([0, 1, 1], 2, 2, "3 slots on 2 ranks"),
            ([], 1, 1, "0 slots"),
            ([0] * 4098, 1, 1, "4098 slots"),
            ([0, 0], 1, 2, "no slot has expert 1"),
            ([0] * 2, 1, 12, "no slot has expert 1, 2, 3, 4, 5, 6, 7, 8 and 3 more"),
            ([0, 2], 1, 2, "expert 2 is not from 0 to 1"),
            ([0, -2], 1, 1, "expert -2"),
        ):
            with self.subTest(words):
                self.assertIn(words, expert_map.fault(row, ranks, experts) or "")

    def test_a_map_that_is_too_long(self) -> None:
        layers = {number: [0] * 4096 for number in range(2048)}
        document = ExpertMap("m", 1, ("a",), layers).document(1, partial=False)
        with self.assertRaisesRegex(MapError, "16777216"):
            expert_map.encode(document)


class Files(unittest.TestCase):
    def test_rows(self) -> None:
        rows = [[0, 1], [1, 0]]
        self.assertEqual(expert_map.rows(rows), rows)
        self.assertEqual(expert_map.rows({"physical_to_logical_map": rows}), rows)
        self.assertEqual(expert_map.rows({"phy2log": rows, "logcnt": 3}), rows)
        for strange in ({}, {"phy2log": rows, "physical_to_logical_map": rows}, [], 3, [1], [[0.5]], [[True]]):
            with self.subTest(strange), self.assertRaises(MapError):
                expert_map.rows(strange)

    def test_ranks(self) -> None:
        self.assertEqual(expert_map.ranks([{"rank": 1, "node": "b"}, {"rank": 0, "node": "a"}]), ("a", "b"))
        unfit: tuple[object, ...] = (
            {},
            [],
            ["a"],
            [{"rank": 0}],
            [{"rank": 1, "node": "a"}],
            [{"rank": 0, "node": "a"}, {"rank": 0, "node": "b"}],
            [{"rank": True, "node": "a"}],
            [{"rank": 0, "node": "a", "more": 1}],
            [{"rank": 0, "node": "a/b"}],
        )
        for strange in unfit:
            with self.subTest(strange), self.assertRaises(MapError):
                expert_map.ranks(strange)

    def test_nodes(self) -> None:
        self.assertEqual(expert_map.spread(["a", "b"], 2), ("a", "a", "b", "b"))
