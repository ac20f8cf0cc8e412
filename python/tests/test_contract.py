"""What the plug-ins need is found in source, and missed where it is not there."""

from __future__ import annotations

import ast
import io
import unittest
import zipfile

from replicator_client.contract import FRAMEWORKS as NEEDS
from replicator_client.contract import Attribute, Function, source_of

from .fakes import FRAMEWORKS


class Frameworks(unittest.TestCase):
    def test_the_tests_stand_ins_are_as_the_plug_ins_need_them(self) -> None:
        for framework in NEEDS:
            with self.subTest(framework.name):
                self.assertEqual(framework.faults(lambda file: (FRAMEWORKS / file).read_text()), [])

    def test_each_need_is_missed(self) -> None:
        for framework in NEEDS:
            self.assertEqual(len(framework.faults(lambda _: "")), len(framework.needs))
            self.assertTrue(all(what.startswith("there is no ") for what in framework.faults(lambda _: None)))

    def test_wheels(self) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as wheel:
            wheel.writestr("vllm/a.py", "x = 1")
        with zipfile.ZipFile(buffer) as wheel:
            source = source_of(wheel)
            self.assertEqual((source("vllm/a.py"), source("vllm/b.py")), ("x = 1", None))


class Needs(unittest.TestCase):
    def test_functions(self) -> None:
        need = Function("f.py", "commit", ("state", "layer"), called=True)
        for source, words in (
            ("def commit(state, layer): ...\ncommit(1, 2)", None),
            ("def commit(state, layer, more=1, *, other=2): ...\ndef f(): commit(1, 2)", None),
            ("def commit(state, layer): ...", "nothing there calls commit"),
            ("def commit(state, layer): ...\nother.commit(1, 2)", "nothing there calls commit"),
            ("def commit(layer, state): ...\ncommit(1, 2)", r"takes \(layer, state\), not \(state, layer\)"),
            ("def commit(state): ...\ncommit(1)", r"takes \(state\)"),
            ("def commit(state, layer, more): ...\ncommit(1, 2)", "wants more than"),
            ("class commit: ...\ncommit(1, 2)", "no function commit"),
            ("class A:\n  def commit(state, layer): ...", "no function commit"),
        ):
            with self.subTest(source):
                fault = need.fault(ast.parse(source))
                if words is None:
                    self.assertIsNone(fault)
                else:
                    self.assertRegex(fault or "", words)
        method = Function("f.py", "A.commit", ("self",))
        self.assertIsNone(method.fault(ast.parse("class A:\n  def commit(self): ...")))
        self.assertIsNotNone(method.fault(ast.parse("def commit(self): ...")))

    def test_attributes(self) -> None:
        for name, source, there in (
            ("A.x", "class A:\n  x: int", True),
            ("A.x", "class A:\n  x = 1", True),
            ("A.x", "class A:\n  def __init__(self):\n    self.x = 1", True),
            ("A.x", "class A:\n  def __init__(self):\n    self.x: int = 1", True),
            ("A.x", "class A:\n  @property\n  def x(self): ...", True),
            ("A.x", "class A:\n  y = 1\nx = 1", False),
            ("A.x", "x = 1", False),
            ("x", "from y import x", True),
            ("x", "from y import x as z", False),
            ("x", "x = 1", True),
            ("x", "class A:\n  x = 1", False),
        ):
            with self.subTest(source, name=name):
                self.assertEqual(Attribute("f.py", name).fault(ast.parse(source)) is None, there)
