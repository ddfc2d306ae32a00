"""Limits on the length of files and functions, and a list of names that are too vague to use."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "service").rglob("*.py")])
LONGEST_FILE, LONGEST_BODY = 420, 60
# These names could mean anything; use a noun for the content instead.
EMPTY_NAMES = {"found", "held", "known", "given", "said", "told", "asked", "thing", "around", "beside"}


def names_bound(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each variable, parameter, attribute, function, class and import that a file binds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_names_bound_detects_every_kind_of_binding():
    code = "import a as b\ndef c(d, *e, f=0): g = 0\nclass h: i: int = 0\nfor j in k: x.l = 0\nwith m as n: (o := 0)"
    assert {name for _, name in names_bound(ast.parse(code))} == set("bcdefghijlno")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert body_lines(node) <= LONGEST_BODY, f"{node.name} at line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_too_vague(path):
    empty = [
        f"{name} at line {line}"
        for line, name in names_bound(ast.parse(path.read_text(encoding="utf-8")))
        if name.strip("_") in EMPTY_NAMES
    ]
    assert not empty, ", ".join(empty)
