"""Which rows of a table to embed anew."""

import numpy as np
import pytest
import torch
from helpers.lance_world import LanceWorld
from helpers.migrations import stitcher_of
from helpers.spaces import gaussian

from repstitch.addresses import parse_address
from repstitch.bulk.choosing import choose_ids, share_curve
from repstitch.bulk.translation import Translation
from repstitch.metrics.neighbours import knn
from repstitch.mixing.reembedding import choose_rows, density
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stores.opening import open_store

N, D, E = 400, 16, 24


@pytest.fixture
def stitcher():
    return stitcher_of(D, E)


@pytest.fixture
def table(tmp_path):
    """A table of a dense clump and loose rows, in a random order, and its vectors."""
    vectors = np.concatenate([gaussian(1, D, 1) + 0.1 * gaussian(N // 2, D, 2), gaussian(N - N // 2, D, 3)])
    vectors = vectors[np.random.default_rng(0).permutation(N)].astype(np.float32)
    address = LanceWorld(tmp_path).create(list(range(N)), vectors)
    store = open_store(parse_address(address))
    yield store, vectors
    store.close()


def test_the_densest_translated_rows_are_chosen(table, stitcher):
    store, vectors = table
    ids = choose_ids(store, Translation(stitcher), 0.2)
    expected = choose_rows(density(stitcher.translate(vectors)), 0.2)
    assert len(ids) == 80
    assert set(ids) == {str(row) for row in expected}


def test_rows_that_more_queries_find_come_first(table, stitcher):
    store, vectors = table
    queries = gaussian(30, E, 8)
    ids = choose_ids(store, Translation(stitcher), 0.1, queries)
    lists = knn(torch.from_numpy(queries), torch.from_numpy(stitcher.translate(vectors)), 50)
    counts = np.bincount(lists.flatten().numpy(), minlength=N)
    chosen = counts[ids.astype(int)]
    assert chosen.min() >= np.sort(counts)[-40]


def test_no_row_and_every_row_can_be_chosen(table, stitcher):
    store, _ = table
    assert len(choose_ids(store, Translation(stitcher), 0.0)) == 0
    assert len(set(choose_ids(store, Translation(stitcher), 1.0))) == N


def test_the_curve_rises_from_translated_rows_to_native_ones_and_dense_rows_lead(stitcher):
    rows = np.concatenate([gaussian(1, D, 1) + 0.3 * gaussian(200, D, 2), gaussian(200, D, 3)]).astype(np.float32)
    translated = stitcher.translate(rows)
    native = translated + 0.1 * gaussian(400, E, 5)
    held_out = HeldOutRows(np.arange(400).astype(str).astype(object), native.astype(np.float32), translated, rows)
    curve = share_curve(held_out)
    assert curve is not None
    assert [point["share"] for point in curve] == [0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0]
    assert curve[-1]["overlap"] == curve[-1]["random"] == 1
    assert curve[0]["overlap"] == curve[0]["random"] < 0.9
    assert curve[3]["overlap"] > curve[3]["random"]


def test_there_is_no_curve_without_translations(stitcher):
    assert share_curve(None) is None
    assert share_curve(HeldOutRows(np.array(["a"], object), gaussian(1, E))) is None
