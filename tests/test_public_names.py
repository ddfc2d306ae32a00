"""The names that `import repstitch as rs` offers: the same in every list, typed, and never hidden by a module."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest

import repstitch as rs

PACKAGE = Path(rs.__file__).parent
FACES = ("alignment", "embeddings", "encoders", "evaluation", "fit", "metrics", "stitchers", "transfer")


def checked_names(path: Path) -> dict[str, str]:
    """The names that a package's TYPE_CHECKING block imports, and the modules they come from."""
    block = next(
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_the_table_the_type_checker_and_all_agree():
    home = {name: f"repstitch.{module}" for module, names in rs.HOMES.items() for name in names}
    assert checked_names(PACKAGE / "__init__.py") == home
    assert sorted([*home, "__version__"]) == sorted(rs.__all__)
    assert set(rs.__all__) <= set(dir(rs))


@pytest.mark.parametrize("name", [name for name in rs.__all__ if name != "__version__"])
def test_a_public_name_is_what_its_module_defines(name):
    home = next(module for module, names in rs.HOMES.items() if name in names)
    assert getattr(rs, name) is getattr(importlib.import_module(f"repstitch.{home}"), name)


def test_no_module_hides_a_public_name():
    assert not [name for name in rs.__all__ if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()]
    code = (
        "import pkgutil, repstitch\nprint(*[m.name for m in pkgutil.walk_packages(repstitch.__path__, 'repstitch.')])"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(modules) > 100
    assert not {f"repstitch.{name}" for name in rs.__all__} & set(modules)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'repstitch' has no attribute 'trian'"):
        rs.trian  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_a_package_lists_its_loaded_modules_and_nothing_private():
    importlib.import_module("repstitch.metrics.kernels")
    assert {"__version__", "__doc__", "metrics", "train"} <= set(dir(rs))
    assert "kernels" in dir(importlib.import_module("repstitch.metrics"))
    assert dir(rs) == sorted(dir(rs))
    assert not [name for name in dir(rs) if name.startswith("_") and not name.startswith("__")]


@pytest.mark.parametrize("package", FACES)
def test_the_face_of_a_package_offers_what_it_lists(package):
    module = importlib.import_module(f"repstitch.{package}")
    assert module.__all__
    assert set(module.__all__) == set(checked_names(PACKAGE / package / "__init__.py"))
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        offered = getattr(module, name)
        assert getattr(module, name) is offered
        assert not isinstance(offered, type(sys)), f"repstitch.{package}.{name} is a module"


def typed() -> None:
    """Never called: the type checker reads it."""
    assert_type(rs.load("x"), rs.Stitcher)
    assert_type(rs.train("x", "y").scorecard, rs.Scorecard)
    assert_type(rs.score(rs.load("x"), "x", "y"), rs.Scorecard)
    assert_type(rs.align("x", "y"), rs.AlignmentScore)
    assert_type(rs.atlas(["x", "y"]), rs.Atlas)
    assert_type(rs.read("x"), rs.Embeddings)
    assert_type(rs.load("x").translate(np.zeros((2, 3), np.float32)), np.ndarray)
    card: Mapping[str, Any] = rs.load("x").scorecard.to_dict()
    assert card
