"""The plug-ins in what they take for vLLM and SGLang, posting to a stub."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from replicator_client import feed, sglang_plugin, vllm_plugin
from replicator_client.once import OnceLog

from .fakes import Tensor, Torch, framework
from .stub import Asked, Stub, installed

MODEL = types.SimpleNamespace(num_logical_experts=2, num_local_physical_experts=1)


class Config:
    def __init__(self, model: str, initial: Tensor) -> None:
        self.model = model
        self.initial = initial

    def compute_hash(self) -> str:
        return self.model


def rows(asked: Asked) -> dict[int, list[int]]:
    return {int(number): layer["physical_to_logical_map"] for number, layer in asked.body["layers"].items()}


def nodes(asked: Asked) -> list[str]:
    return [rank["node"] for rank in asked.body["ranks"]]


class Case(unittest.TestCase):
    name = ""

    def setUp(self) -> None:
        self.stub = self.enter(Stub(installed))
        self.enter(framework(self.name))
        self.enter(mock.patch.object(feed, "log", OnceLog(logging.getLogger("replicator_client"))))
        for plugin in (vllm_plugin, sglang_plugin):
            self.enter(mock.patch.object(plugin, "log", feed.log))
        self.enter(mock.patch.object(feed, "_told", set()))
        self.enter(mock.patch.object(sglang_plugin, "_registered_with", None))
        self.posters: list[Any] = []
        real = feed.Feed.__init__

        def remembered(made: feed.Feed, *args: Any) -> None:
            real(made, *args)
            self.posters.append(made)

        self.enter(mock.patch.object(feed.Feed, "__init__", remembered))
        self.addCleanup(self.close)
        self.set()

    def enter(self, context: Any) -> Any:
        result = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return result

    def close(self) -> None:
        for made in self.posters:
            if made._poster is not None:
                made._poster.close(1)

    def set(self, **variables: str) -> None:
        base = {"REPLICATOR_API": self.stub.address, "REPLICATOR_NODES": "node1,node2", "REPLICATOR_RANKS_PER_NODE": "1"}
        self.enter(mock.patch.dict(os.environ, {**base, **variables}))

    def flush(self) -> None:
        for made in self.posters:
            if made._poster is not None:
                self.assertTrue(made._poster.flush(30))


class Vllm(Case):
    name = "vllm"

    def load(self) -> Any:
        vllm_plugin.register()
        self.state_module: Any = importlib.import_module("vllm.distributed.eplb.eplb_state")
        self.parallel: Any = importlib.import_module("vllm.distributed.parallel_state")
        return self.state_module.EplbState(None, None)

    def add(self, state: Any, model: str, matrix: list[list[int]], name: str | None = None) -> Any:
        state.add_model(MODEL, Config(model, Tensor(matrix)), model_name=name)
        return state.model_states[model]

    def test_the_map_to_start_with_then_layers_then_all_at_once(self) -> None:
        self.set(REPLICATOR_FIRST_LAYER="3", REPLICATOR_FIRST_TABLE="40")
        state = self.load()
        model_state = self.add(state, "org/model", [[0, 1], [0, 1]])
        self.flush()
        self.assertEqual(state.step(model_state, Tensor([1, 0]), 1), "moved")
        self.flush()
        state.rearrange([Tensor([[1, 0], [0, 1]])])
        self.flush()
        put, layer, both = self.stub.asked
        self.assertEqual((put.method, put.path), ("PUT", "/v1/models/org%2Fmodel/map"))
        self.assertEqual((rows(put), nodes(put)), ({3: [0, 1], 4: [0, 1]}, ["node1", "node2"]))
        self.assertEqual((put.body["logical_experts"], put.body["first_table"]), (2, 40))
        self.assertEqual((layer.method, rows(layer)), ("PATCH", {4: [1, 0]}))
        self.assertEqual((both.method, rows(both)), ("PATCH", {3: [1, 0], 4: [0, 1]}))

    def test_what_is_posted_does_not_follow_later_changes_of_the_tensor(self) -> None:
        state = self.load()
        model_state = self.add(state, "m", [[0, 1]])
        self.flush()
        row = Tensor([1, 0])
        state.step(model_state, row, 0)
        row.values[:] = [0, 0]
        self.flush()
        self.assertEqual(rows(self.stub.asked[1]), {0: [1, 0]})

    def test_other_ranks_do_not_post(self) -> None:
        state = self.load()
        self.parallel.RANK = 1
        model_state = self.add(state, "m", [[0, 1]])
        state.step(model_state, Tensor([1, 0]), 0)
        self.assertTrue(all(made._poster is None for made in self.posters))
        self.parallel.RANK = 0
        state.step(model_state, Tensor([1, 0]), 0)
        self.flush()
        self.assertEqual(len(self.stub.asked), 1)

    def test_ranks_that_are_to_post(self) -> None:
        self.set(REPLICATOR_POST_RANK="8, 9", REPLICATOR_MODEL="ours")
        state = self.load()
        for rank, posted in ((0, 0), (8, 1), (10, 1), (9, 2)):
            self.parallel.RANK = rank
            self.add(state, "m", [[0, 1]])
            self.flush()
            self.assertEqual(len(self.stub.asked), posted)
        self.assertEqual(self.stub.asked[0].path, "/v1/models/ours/map")

    def test_more_ranks_while_layers_are_committed_one_by_one(self) -> None:
        self.set(REPLICATOR_NODES="node1,node2,node3,node4")
        state = self.load()
        model_state = self.add(state, "m", [[0, 1], [1, 0]])
        self.flush()
        # As vLLM does it: new slots are empty until their layer is committed.
        model_state.physical_to_logical_map = Tensor([[0, 1, -1, -1], [1, 0, -1, -1]])
        state.step(model_state, Tensor([0, 1, 1, 0]), 0)
        self.flush()
        state.step(model_state, Tensor([1, 1, 0, 0]), 1)
        self.flush()
        first, grown, last = self.stub.asked
        self.assertEqual((grown.method, rows(grown)), ("PUT", {0: [0, 1, 1, 0], 1: [1, 0, -1, -1]}))
        self.assertEqual((nodes(first), nodes(grown)), (["node1", "node2"], ["node1", "node2", "node3", "node4"]))
        self.assertEqual((last.method, rows(last)), ("PATCH", {1: [1, 1, 0, 0]}))

    def test_fewer_ranks(self) -> None:
        state = self.load()
        self.add(state, "m", [[0, 1]])
        self.flush()
        with mock.patch.object(MODEL, "num_logical_experts", 1):
            state.rearrange([Tensor([[0]])])
            self.flush()
        self.assertEqual((self.stub.asked[1].method, nodes(self.stub.asked[1])), ("PUT", ["node1"]))

    def test_maps_on_a_device_are_not_waited_for(self) -> None:
        torch = Torch()
        self.enter(mock.patch.dict(sys.modules, {"torch": torch}))
        state = self.load()
        matrix = Tensor([[0, 1], [1, 0]], "cuda")
        state.add_model(MODEL, Config("m", matrix))
        matrix.values[0] = [0, 0]
        self.flush()
        self.assertEqual(rows(self.stub.asked[0]), {0: [0, 1], 1: [1, 0]})
        self.assertEqual(torch.pinned, [True])
        state.step(state.model_states["m"], Tensor([1, 0], "cuda"), 0)
        self.flush()
        self.assertEqual(rows(self.stub.asked[1]), {0: [1, 0]})

    def test_a_model_that_drafts_is_not_posted(self) -> None:
        state = self.load()
        draft = self.add(state, "draft", [[1, 0]], "m (draft)")
        self.add(state, "m", [[0, 1], [0, 1]])
        state.step(draft, Tensor([0, 1]), 0)
        self.flush()
        self.assertEqual([asked.path for asked in self.stub.asked], ["/v1/models/m/map"])

    def test_of_two_models_the_one_with_more_layers_is_posted(self) -> None:
        self.set(REPLICATOR_MODEL="m")
        state = self.load()
        draft = self.add(state, "mtp", [[1, 0]])
        self.add(state, "main", [[0, 1], [0, 1]])
        self.flush()
        with self.assertLogs("replicator_client", "INFO"):
            state.step(draft, Tensor([0, 1]), 0)
        self.flush()
        self.assertEqual(rows(self.stub.asked[-1]), {0: [0, 1], 1: [0, 1]})

    def test_loading_it_again_posts_nothing_twice(self) -> None:
        state = self.load()
        vllm_plugin.register()
        self.add(state, "m", [[0, 1]])
        self.flush()
        self.assertEqual(len(self.stub.asked), 1)

    def test_another_vllm_is_left_alone(self) -> None:
        module = importlib.import_module("vllm.distributed.eplb.eplb_state")
        for name, changed in (
            ("_commit_eplb_maps", None),
            ("_commit_eplb_maps_for_layer", lambda model_state, new_maps, layer: None),
            ("EplbState", types.SimpleNamespace()),
            ("get_ep_group", None),
        ):
            with self.subTest(name), mock.patch.object(module, name, changed):
                if changed is None:
                    delattr(module, name)
                feed.log.over("")
                with self.assertLogs("replicator_client", "WARNING") as logs:
                    vllm_plugin.register()
                    vllm_plugin.register()
                self.assertEqual(len(logs.records), 1)
                self.assertRegex(logs.output[0], f"vLLM .* not as this plug-in needs it: .*{name}")
                self.assertFalse(feed.is_wrapped(getattr(module, "_commit_eplb_maps", None)))
                if changed is None:
                    setattr(module, name, None)

    def test_errors_stay_out_of_the_engine(self) -> None:
        state = self.load()
        model_state = self.add(state, "m", [[0, 1]])
        self.flush()
        with self.assertLogs("replicator_client", "WARNING") as logs:
            with mock.patch.object(MODEL, "num_local_physical_experts", 3):
                self.assertEqual(state.step(model_state, Tensor([1, 0]), 0), "moved")
                self.assertEqual(state.step(model_state, Tensor([1, 0]), 0), "moved")
        self.assertEqual(len(logs.records), 1)
        # Those of the engine are its own.
        with self.assertRaises(IndexError):
            state.step(model_state, Tensor([1, 0]), 7)

    def test_a_name_that_no_model_can_have(self) -> None:
        state = self.load()
        with self.assertLogs("replicator_client", "WARNING") as logs:
            self.add(state, "/long" * 20, [[0, 1]])
        self.assertIn("set REPLICATOR_MODEL", logs.output[0])
        self.assertEqual(self.stub.asked, [])

    def test_nothing_set_does_nothing_and_says_so_once(self) -> None:
        self.set(REPLICATOR_API="", REPLICATOR_NODES="", REPLICATOR_RANKS_PER_NODE="")
        with self.assertLogs("replicator_client", "INFO") as logs:
            self.load()
            vllm_plugin.register()
        self.assertEqual([record.levelname for record in logs.records], ["INFO"])
        self.assertIn("REPLICATOR_API is not set", logs.output[0])
        self.assertFalse(feed.is_wrapped(self.state_module._commit_eplb_maps))

    def test_settings_that_cannot_be_followed(self) -> None:
        self.set(REPLICATOR_RANKS_PER_NODE="zero")
        with self.assertLogs("replicator_client", "WARNING") as logs:
            self.load()
        self.assertIn("REPLICATOR_RANKS_PER_NODE is 'zero'", logs.output[0])
        self.assertFalse(feed.is_wrapped(self.state_module._commit_eplb_maps))

    def test_ranks_in_a_file_may_come_later(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "ranks.json"
            file.write_text(json.dumps([{"rank": rank, "node": f"n{rank}"} for rank in range(4)]))
            with mock.patch.dict(os.environ):
                del os.environ["REPLICATOR_RANKS_PER_NODE"]
                self.set(REPLICATOR_NODES=str(file))
                del os.environ["REPLICATOR_RANKS_PER_NODE"]
                state = self.load()
                self.add(state, "m", [[0, 1]])
                self.flush()
        self.assertEqual(nodes(self.stub.asked[0]), ["n0", "n1"])


class Sglang(Case):
    name = "sglang"

    def load(self) -> None:
        sglang_plugin.register()
        sglang_plugin.register()
        importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry.apply_hooks()
        self.location = importlib.import_module("sglang.srt.eplb.expert_location")
        self.context = importlib.import_module("sglang.srt.runtime_context")
        module = importlib.import_module("sglang.srt.eplb.expert_location_updater")
        self.updater = module.ExpertLocationUpdater()

    def metadata(self, matrix: list[list[int]], ranks: int = 2) -> Any:
        # What is on the device raises when it is read.
        return self.location.ExpertLocationMetadata(Tensor(matrix, "cuda"), Tensor(matrix), 2, ranks)

    def test_the_map_to_start_with_then_chunks_of_layers(self) -> None:
        self.set(REPLICATOR_FIRST_LAYER="1")
        self.load()
        self.location.set_global_expert_location_metadata(self.metadata([[0, 1], [0, 1], [0, 1]]))
        self.flush()
        new = self.metadata([[1, 0], [1, 0], [1, 0]])
        result = self.updater.update({}, new, update_layer_ids=[2], nnodes=2, rank=0, use_flat_topology=False)
        self.assertEqual(result, {})
        self.flush()
        put, patch = self.stub.asked
        self.assertEqual((put.method, put.path, rows(put)), ("PUT", "/v1/models/served/map", {1: [0, 1], 2: [0, 1]}))
        self.assertEqual((patch.method, rows(patch)), ("PATCH", {2: [1, 0]}))
        self.assertEqual(nodes(put), ["node1", "node2"])

    def test_only_one_rank_posts(self) -> None:
        self.load()
        self.context.PARALLEL.tp_rank = 1
        new = self.metadata([[1, 0]])
        self.location.set_global_expert_location_metadata(new, allow_overwrite=True)
        self.updater.update({}, new, [0], 2, 1)
        self.assertTrue(all(made._poster is None for made in self.posters))
        self.updater.update({}, new, [0], 2, 0)
        self.flush()
        self.assertEqual(len(self.stub.asked), 1)

    def test_ranks_that_joined_later_count_on(self) -> None:
        self.set(REPLICATOR_NODES="a,b,c,d", REPLICATOR_POST_RANK="2")
        self.load()
        self.context.PARALLEL.ep_join_rank_offset = 2
        self.location.set_global_expert_location_metadata(self.metadata([[1, 0, 0, 1]], 4), allow_overwrite=True)
        self.flush()
        self.assertEqual(nodes(self.stub.asked[0]), ["a", "b", "c", "d"])

    def test_no_map_is_none(self) -> None:
        self.load()
        with self.assertNoLogs("replicator_client"):
            self.location.set_global_expert_location_metadata(None)
        self.assertIsNone(self.location.CURRENT)

    def test_errors_stay_out_of_the_engine(self) -> None:
        self.load()
        with self.assertLogs("replicator_client", "WARNING") as logs:
            for _ in range(2):
                self.assertEqual(self.updater.update({}, None, [0], 2, 0), {})
        self.assertEqual(len(logs.records), 1)

    def test_another_sglang_is_left_alone(self) -> None:
        module = importlib.import_module("sglang.srt.eplb.expert_location_updater")
        registry = importlib.import_module("sglang.srt.plugins.hook_registry").HookRegistry
        with mock.patch.object(module.ExpertLocationUpdater, "update", lambda self, metadata: None):
            with self.assertLogs("replicator_client", "WARNING") as logs:
                sglang_plugin.register()
        self.assertIn("ExpertLocationUpdater.update takes (self, metadata)", logs.output[0])
        self.assertEqual(registry._hooks, [])
