from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from helpers.migrations import stitcher_of
from helpers.worlds import LIVE, WORLDS

from repstitch.bulk import verification


@pytest.fixture(autouse=True)
def few_queries(monkeypatch) -> None:
    """Verify with some queries, because each is a search of its own."""
    monkeypatch.setattr(verification, "MOST_QUERIES", 60)


@pytest.fixture(scope="session")
def stitcher():
    return stitcher_of()


def some_slow(names: Iterable[str]) -> list[Any]:
    """Mark the worlds that need a server; tests/stores has quick tests of it."""
    return [pytest.param(name, marks=pytest.mark.slow if name.startswith("postgresql") else ()) for name in names]


@pytest.fixture(params=some_slow(WORLDS))
def world(request, tmp_path) -> Iterator[Any]:
    """Each store in turn, with a place for a table."""
    made = WORLDS[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture(params=some_slow(LIVE))
def live_world(request, tmp_path) -> Iterator[Any]:
    """Each store in turn to which others may write during a whole job."""
    made = WORLDS[request.param](tmp_path)
    yield made
    made.close()
