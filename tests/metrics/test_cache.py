from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.spaces import gaussian

from repstitch.errors import InputError
from repstitch.metrics import cache
from repstitch.metrics.cache import kept_graph
from repstitch.metrics.neighbours import Graph, graph


def same(a: Graph, b: Graph) -> bool:
    parts = ("neighbours", "similarities", "mean")
    return all(torch.equal(getattr(a, part), getattr(b, part)) for part in parts) and a.tied == b.tied


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Record the `k` of every graph that is computed rather than read from the cache."""
    requested: list[int] = []

    def counted(X, k, name):
        requested.append(k)
        return graph(X, k, name)

    monkeypatch.setattr(cache, "graph", counted)
    return requested


def test_a_graph_is_computed_once_and_then_read_back_unchanged(tmp_path, computed):
    X = torch.from_numpy(gaussian(60, 16)).sign()  # many rows are equally near
    first, second = (kept_graph(X, 7, "a", tmp_path / "deep" / "er") for _ in range(2))
    assert computed == [7]
    assert same(first, graph(X, 7))
    assert same(second, first)
    assert second.tied > 30


def test_a_cached_graph_is_reused_for_a_smaller_k_only(tmp_path, computed):
    X = torch.from_numpy(gaussian(60, 5))
    kept_graph(X, 10, "a", tmp_path)
    assert same(kept_graph(X, 4, "a", tmp_path), graph(X, 4))
    assert computed == [10]
    assert same(kept_graph(X, 12, "a", tmp_path), graph(X, 12))
    assert computed == [10, 12]


@pytest.mark.parametrize("changed", ["value", "shape"])
def test_a_cached_graph_is_not_reused_for_other_rows(tmp_path, computed, changed):
    X = torch.from_numpy(gaussian(60, 4))
    kept_graph(X, 5, "a", tmp_path)
    other = X.reshape(40, 6) if changed == "shape" else X.clone()
    other[3, 1] += 1e-3
    assert same(kept_graph(other, 5, "a", tmp_path), graph(other, 5))
    assert computed == [5, 5]


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "text", "another graph"])
def test_a_graph_whose_file_is_damaged_is_computed_again_with_a_warning(tmp_path, computed, caplog, how):
    X = torch.from_numpy(gaussian(60, 5))
    kept_graph(X, 5, "rows", tmp_path)
    (path,) = tmp_path.iterdir()
    whole = bytearray(path.read_bytes())
    if how == "another graph":
        kept_graph(X[:40], 5, "rows", tmp_path)
        whole = bytearray(next(p for p in tmp_path.iterdir() if p != path).read_bytes())
        computed.pop()
    whole[len(whole) // 3] ^= 0xFF if how == "flipped" else 0
    path.write_bytes({"cut": whole[:-30], "empty": b"", "text": b"hello"}.get(how, bytes(whole)))
    assert same(kept_graph(X, 5, "rows", tmp_path), graph(X, 5))
    assert computed == [5, 5]
    assert len(caplog.messages) == 1
    assert f"{path} cannot be read" in caplog.messages[0]
    assert same(kept_graph(X, 5, "rows", tmp_path), graph(X, 5))
    assert computed == [5, 5]


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def stopped(file, **_parts):
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stopped)
    with pytest.raises(KeyboardInterrupt):
        kept_graph(torch.from_numpy(gaussian(60, 5)), 5, "a", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("k", [0, 60])
def test_invalid_arguments_are_refused_before_anything_is_written(tmp_path, k):
    with pytest.raises(InputError, match="`k` must be at least 1 and below the number of rows"):
        kept_graph(torch.from_numpy(gaussian(60, 5)), k, "a", tmp_path)
    with pytest.raises(InputError, match="`rows` has only 1 different directions"):
        kept_graph(torch.ones(60, 5), 5, "rows", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"`cache` .*taken must be a writable folder"):
        kept_graph(torch.from_numpy(gaussian(60, 5)), 5, "a", tmp_path / "taken")
