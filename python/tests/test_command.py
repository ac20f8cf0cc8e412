"""`replicator-plugin`, as an operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from .fakes import FRAMEWORKS
from .stub import Asked, Reply, Stub, installed

PACKAGE = Path(__file__).parent.parent
MAP = {"phy2log": [[0, 1, 1, 0], [1, 1, 0, 0]], "logcnt": [[2, 2], [2, 2]]}


class Case(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.file = self.folder / "map.json"
        self.file.write_text(json.dumps(MAP))

    def run_it(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **variables}
        return subprocess.run(
            [sys.executable, "-m", "replicator_client", *arguments],
            cwd=PACKAGE, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip


class Show(Case):
    ARGUMENTS = ("--model", "a/b", "--nodes", "node1,node2", "--ranks-per-node", "2", "--epoch", "5")

    def test_it_prints_what_would_be_sent(self) -> None:
        done = self.run_it("show", *self.ARGUMENTS, "--first-layer", "3", "--api", "/s", str(self.file))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        put, patch = done.stdout.split("# /s\n")[1:]
        head, body = put.strip().split("\n\n")
        self.assertEqual(head.splitlines()[0], "PUT /v1/models/a%2Fb/map HTTP/1.1")
        self.assertIn(f"Content-Length: {len(body)}", head)
        document = json.loads(body)
        self.assertEqual([rank["node"] for rank in document["ranks"]], ["node1", "node1", "node2", "node2"])
        self.assertEqual(document["layers"]["4"], {"physical_to_logical_map": [1, 1, 0, 0]})
        self.assertEqual((document["epoch"], document["logical_experts"]), (5, 2))
        self.assertTrue(patch.startswith("PATCH /v1/models/a%2Fb/layers HTTP/1.1\n"))
        self.assertEqual(json.loads(patch.strip().split("\n\n")[1]), {**document, "partial": True})

    def test_the_token_is_not_printed(self) -> None:
        token = self.folder / "token"
        token.write_text("s3cret")
        done = self.run_it(
            "show", *self.ARGUMENTS, "--api", "https://h:1", str(self.file), REPLICATOR_TOKEN_FILE=str(token)
        )
        self.assertIn("Authorization: Bearer ...\n", done.stdout)
        self.assertNotIn("s3cret", done.stdout + done.stderr)

    def test_it_sends_if_it_is_to(self) -> None:
        with Stub(installed) as stub:
            for method, expected in ((), "PUT"), (("--method", "patch"), "PATCH"):
                done = self.run_it("show", "--send", *method, *self.ARGUMENTS, "--api", stub.address, str(self.file))
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertEqual(stub.asked[-1].method, expected)
            self.assertEqual(len(stub.asked), 2)
        done = self.run_it("show", "--send", *self.ARGUMENTS, "--api", "/nowhere/s", str(self.file))
        self.assertEqual(done.returncode, 2)
        self.assertIn("error: /nowhere/s: ", done.stderr)

    def test_variables_take_the_place_of_options(self) -> None:
        ranks = self.folder / "ranks.json"
        ranks.write_text(json.dumps([{"rank": 0, "node": "x"}, {"rank": 1, "node": "y"}]))
        variables = {"REPLICATOR_NODES": "a", "REPLICATOR_RANKS_PER_NODE": "1", "REPLICATOR_MODEL": "m"}
        done = self.run_it("show", "--method", "put", str(self.file), **variables)
        self.assertIn("# /run/replicator/control.sock\nPUT /v1/models/m/map", done.stdout)
        self.assertIn('"ranks":[{"rank":0,"node":"a"}]', done.stdout)
        done = self.run_it("show", "--ranks", str(ranks), str(self.file), **variables)
        self.assertIn('"ranks":[{"rank":0,"node":"x"},{"rank":1,"node":"y"}]', done.stdout)

    def test_what_is_wrong_is_one_line(self) -> None:
        nodes = ("--nodes", "a,b,c", "--ranks-per-node", "1")
        for arguments, words in (
            ((str(self.file), "--model", "m"), "REPLICATOR_NODES is not set"),
            ((str(self.file), *self.ARGUMENTS[2:]), "--model is not given"),
            ((str(self.file), "--model", "m", *nodes), "layer 0 has 4 slots, and there are 3 ranks"),
            ((str(self.file), *self.ARGUMENTS, "--experts", "3"), "no slot has expert 2"),
            ((str(self.folder / "none.json"), *self.ARGUMENTS), "none.json"),
        ):
            with self.subTest(words):
                done = self.run_it("show", *arguments)
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertRegex(done.stderr, f"^error: .*{words}.*\n$")


class Check(Case):
    def test_nothing_set_and_nothing_installed(self) -> None:
        done = self.run_it("check")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        expected = "settings: none, so the plug-ins do nothing; set REPLICATOR_API"
        self.assertEqual(done.stdout.splitlines(), [expected, "vllm: not installed here", "sglang: not installed here"])

    def test_a_replicator_and_frameworks(self) -> None:
        summary = {"model": "m", "epoch": 7, "logical_experts": 8, "layers": 2}

        def answer(asked: Asked) -> Reply:
            if asked.path == "/readyz":
                return Reply(503, {"ready": False, "missing": ["neighbor node2"]})
            return Reply(200, {"models": [summary]})

        with Stub(answer) as stub:
            done = self.run_it(
                "check", REPLICATOR_API=stub.address, REPLICATOR_NODES="node1,node2",
                REPLICATOR_RANKS_PER_NODE="4", PYTHONPATH=str(FRAMEWORKS),
            )  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("ranks: 8 on node1, node2\n", done.stdout)
        self.assertIn("control.sock: not ready: neighbor node2; models: m at epoch 7\n", done.stdout)
        self.assertIn("vllm of unknown version: has what the plug-in hooks\n", done.stdout)
        self.assertIn("sglang of unknown version: has what the plug-in hooks\n", done.stdout)

    def test_what_does_not_do_is_told_and_ends_with_1(self) -> None:
        variables = {"REPLICATOR_NODES": str(self.folder / "none.json"), "REPLICATOR_API": "/nowhere/s"}
        done = self.run_it("check", **variables)
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        self.assertRegex(done.stdout, "ranks: REPLICATOR_NODES: .*none.json")
        self.assertIn("/nowhere/s: ", done.stdout)
        done = self.run_it("check", REPLICATOR_NODES="a")
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        self.assertIn("settings: REPLICATOR_API is not set", done.stdout)
