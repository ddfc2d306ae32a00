# pyright: strict
"""Lazy public names: a package lists them all and imports a module only when one of its names is used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def public_names(
    package: str, homes: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package (PEP 562).

    `homes` maps each module of the package to the public names that the module defines.
    """
    home = {name: module for module, names in homes.items() for name in names}

    def getattr_lazily(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(import_module(package), name, value)
        return value

    def names_offered() -> list[str]:
        names = {*home, *vars(import_module(package))}
        return sorted(name for name in names if name.startswith("__") or not name.startswith("_"))

    return getattr_lazily, names_offered
