"""The list of mutants fits the code: `make mutants` breaks what it names and asks the tests that it names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.bug)
def test_the_line_occurs_once_and_the_tests_exist(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    ast.parse(source.replace(mutant.old, mutant.new))
    assert mutant.new != mutant.old
    assert mutant.tests
    for test in mutant.tests:
        path, name = test.split("::")
        functions = {
            node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
        }
        assert name in functions
