"""The public names of `repstitch`: consistent in every list, typed, and never shadowed by a module."""

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
FACES = ("alignment", "embeddings", "encoders", "evaluation", "fit", "metrics", "mixing", "stitchers", "transfer")


def checked_names(path: Path) -> dict[str, str]:
    """Return the names that a package's TYPE_CHECKING block imports, with their modules."""
    block = next(
        node
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_homes_type_checking_imports_and_all_list_the_same_names():
    home = {name: f"repstitch.{module}" for module, names in rs.HOMES.items() for name in names}
    assert checked_names(PACKAGE / "__init__.py") == home
    assert sorted([*home, "__version__"]) == sorted(rs.__all__)
    assert set(rs.__all__) <= set(dir(rs))


@pytest.mark.parametrize("name", [name for name in rs.__all__ if name != "__version__"])
def test_a_public_name_is_the_object_of_its_module(name):
    home = next(module for module, names in rs.HOMES.items() if name in names)
    assert getattr(rs, name) is getattr(importlib.import_module(f"repstitch.{home}"), name)


def test_no_module_has_the_name_of_a_public_object():
    assert not [name for name in rs.__all__ if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()]
    code = (
        "import pkgutil, repstitch\nprint(*[m.name for m in pkgutil.walk_packages(repstitch.__path__, 'repstitch.')])"
    )
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(modules) > 100
    assert not {f"repstitch.{name}" for name in rs.__all__} & set(modules)


def test_an_unknown_name_raises_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'repstitch' has no attribute 'trian'"):
        rs.trian  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_dir_lists_loaded_modules_and_no_private_names():
    importlib.import_module("repstitch.metrics.kernels")
    assert {"__version__", "__doc__", "metrics", "train"} <= set(dir(rs))
    assert "kernels" in dir(importlib.import_module("repstitch.metrics"))
    assert dir(rs) == sorted(dir(rs))
    assert not [name for name in dir(rs) if name.startswith("_") and not name.startswith("__")]


@pytest.mark.parametrize("package", FACES)
def test_a_package_provides_every_name_in_its_all(package):
    module = importlib.import_module(f"repstitch.{package}")
    assert module.__all__
    assert set(module.__all__) == set(checked_names(PACKAGE / package / "__init__.py"))
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        offered = getattr(module, name)
        assert getattr(module, name) is offered
        assert not isinstance(offered, type(sys)), f"repstitch.{package}.{name} is a module"


def typed() -> None:
    """Checked by the type checker; never called."""
    assert_type(rs.load("x"), rs.Stitcher)
    assert_type(rs.train("x", "y").scorecard, rs.Scorecard)
    assert_type(rs.score(rs.load("x"), "x", "y"), rs.Scorecard)
    assert_type(rs.align("x", "y"), rs.AlignmentScore)
    assert_type(rs.atlas(["x", "y"]), rs.Atlas)
    assert_type(rs.read("x"), rs.Embeddings)
    assert_type(rs.load("x").translate(np.zeros((2, 3), np.float32)), np.ndarray)
    card: Mapping[str, Any] = rs.load("x").scorecard.to_dict()
    assert card
