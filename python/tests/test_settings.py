"""The environment, and what is wrong with it."""

from __future__ import annotations

import json
import re
import tempfile
import unittest
from pathlib import Path

from replicator_client import settings
from replicator_client.settings import Settings, SettingsError

LEAST = {"REPLICATOR_API": "/s", "REPLICATOR_NODES": "a,b", "REPLICATOR_RANKS_PER_NODE": "2"}


class Environment(unittest.TestCase):
    def made(self, **variables: str) -> Settings:
        made = Settings.from_environment({**LEAST, **variables})
        assert made is not None
        return made

    def refused(self, words: str, **variables: str | None) -> None:
        environment = {key: value for key, value in {**LEAST, **variables}.items() if value is not None}
        with self.assertRaisesRegex(SettingsError, words):
            Settings.from_environment(environment)

    def test_none(self) -> None:
        self.assertIsNone(Settings.from_environment({"PATH": "/bin", "REPLICATOR_OFFLINE": "1", "REPLICATOR_API": " "}))

    def test_the_least(self) -> None:
        made = self.made()
        self.assertEqual(made.addresses, ("/s",))
        self.assertEqual(made.placement.nodes(3), ("a", "a", "b"))
        self.assertEqual((made.post_ranks, made.first_layer, made.first_table, made.model), ({0}, 0, None, None))

    def test_all_of_them(self) -> None:
        made = self.made(
            REPLICATOR_API="/run/replicator/control.sock, https://10.0.0.2:8139",
            REPLICATOR_MODEL="org/m", REPLICATOR_POST_RANK="0,8", REPLICATOR_FIRST_LAYER="3",
            REPLICATOR_FIRST_TABLE="100", REPLICATOR_CA_FILE="/ca", REPLICATOR_TOKEN_FILE="/token",
        )  # fmt: skip
        self.assertEqual(made.addresses, ("/run/replicator/control.sock", "https://10.0.0.2:8139"))
        self.assertEqual((made.model, made.post_ranks, made.first_layer, made.first_table), ("org/m", {0, 8}, 3, 100))
        self.assertEqual((made.ca_file, made.token_file), (Path("/ca"), Path("/token")))

    def test_what_is_wrong_names_the_variable(self) -> None:
        self.refused("REPLICATOR_API is not set", REPLICATOR_API=None)
        self.refused("REPLICATOR_API: `sock`", REPLICATOR_API="sock")
        self.refused("REPLICATOR_API: .*only https", REPLICATOR_API="http://h:1")
        self.refused("REPLICATOR_API has an address twice", REPLICATOR_API="/s,/s")
        self.refused("REPLICATOR_API has no address", REPLICATOR_API=",")
        self.refused("REPLICATOR_NODES is not set", REPLICATOR_NODES=None)
        self.refused("REPLICATOR_NODES: 'a b'", REPLICATOR_NODES="a b")
        self.refused("REPLICATOR_NODES: 0 ranks", REPLICATOR_NODES=",")
        self.refused("REPLICATOR_RANKS_PER_NODE is not set", REPLICATOR_RANKS_PER_NODE=None)
        self.refused("REPLICATOR_RANKS_PER_NODE is '0'", REPLICATOR_RANKS_PER_NODE="0")
        self.refused("REPLICATOR_RANKS_PER_NODE goes with a list", REPLICATOR_NODES="/ranks.json")
        self.refused("REPLICATOR_MODEL:", REPLICATOR_MODEL="m" * 64)
        self.refused("REPLICATOR_POST_RANK is '-1'", REPLICATOR_POST_RANK="-1")
        self.refused("REPLICATOR_FIRST_LAYER is '2048'", REPLICATOR_FIRST_LAYER="2048")
        self.refused("REPLICATOR_FIRST_TABLE is '1e3'", REPLICATOR_FIRST_TABLE="1e3")

    def test_more_ranks_than_there_are_nodes_for(self) -> None:
        with self.assertRaisesRegex(SettingsError, "says where 4 ranks are, and the engine has 5"):
            self.made().placement.nodes(5)


class Files(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_ranks_are_read_when_they_are_wanted(self) -> None:
        file = self.folder / "ranks.json"
        made = Settings.from_environment({"REPLICATOR_API": "/s", "REPLICATOR_NODES": str(file)})
        assert made is not None
        with self.assertRaisesRegex(SettingsError, "ranks.json"):
            made.placement.nodes(1)
        for node in ("a", "b"):
            file.write_text(json.dumps([{"rank": 0, "node": node}]))
            self.assertEqual(made.placement.nodes(1), (node,))
        for text in ("[", "{}", "[{}]"):
            file.write_text(text)
            with self.subTest(text), self.assertRaisesRegex(SettingsError, "REPLICATOR_NODES: .*ranks.json"):
                made.placement.nodes(1)

    def test_tokens_are_read_for_each_client_and_only_for_tls(self) -> None:
        file = self.folder / "token"
        variables = {**LEAST, "REPLICATOR_API": "https://h:1,/s", "REPLICATOR_TOKEN_FILE": str(file)}
        made = Settings.from_environment(variables)
        assert made is not None
        over_tls, local = made.endpoints()
        with self.assertRaisesRegex(SettingsError, "REPLICATOR_TOKEN_FILE: .*No such file"):
            over_tls.connect()
        self.assertIsNone(local.connect().token)
        for token in ("token-1", "token-2"):
            file.write_text(f"{token}\n")
            self.assertEqual(over_tls.connect().token, token)
            self.assertNotIn(token, f"{over_tls.connect()!r}")


class Documentation(unittest.TestCase):
    def test_the_readme_has_every_variable(self) -> None:
        text = (Path(__file__).parent.parent / "README.md").read_text()
        documented = re.findall(r"^\| `(REPLICATOR_\w+)` \|", text, re.MULTILINE)
        self.assertEqual(tuple(documented), settings.VARIABLES)
