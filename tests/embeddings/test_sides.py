"""The rows of two sides, of which a store is asked only for those that the other side has."""

import numpy as np
import pytest
from helpers.lance_world import LanceWorld
from helpers.spaces import card, gaussian

from repstitch.embeddings.reading import read
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.sampling import Sample
from repstitch.embeddings.sides import read_both
from repstitch.embeddings.writing import write
from repstitch.errors import InputError

N = 2_000


@pytest.fixture
def table(tmp_path) -> str:
    """A table of 2,000 rows."""
    return LanceWorld(tmp_path / "large").create(list(range(N)), gaussian(N, 16, 1))


def ids_of(rows: Embeddings) -> list[int]:
    assert rows.ids is not None
    return sorted(int(key) for key in rows.ids)


def side(kind: str, ids: np.ndarray, folder) -> str:
    """Write rows with these ids to a file or to a table, and return where."""
    vectors = gaussian(len(ids), 24, 2)
    if kind == "table":
        return LanceWorld(folder / "small").create(ids.tolist(), vectors)
    write(folder / "small.parquet", Embeddings(vectors, card("new", 24), ids))
    return str(folder / "small.parquet")


@pytest.mark.parametrize("kind", ["file", "table"])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_sample_is_drawn_from_the_ids_that_both_sides_have(table, kind, swapped, tmp_path):
    others = side(kind, np.arange(0, 60_000, 20), tmp_path)  # 100 of its 3,000 ids are in the table
    pairs = (others, table) if swapped else (table, others)
    drawn = [read_both(*pairs, ({}, {}), Sample(40, seed)) for seed in (0, 0, 1)]
    for rows in drawn:
        first, second = (set(ids_of(one)) for one in rows)
        assert len(first & second) == 40
        assert first & second <= set(range(0, N, 20))
    ids = [ids_of(rows[0]) for rows in drawn]
    assert ids[0] == ids[1] != ids[2]
    every = read_both(*pairs, ({}, {}), Sample(1_000))
    assert len(set(ids_of(every[0])) & set(ids_of(every[1]))) == 100


@pytest.mark.parametrize("kind", ["file", "table"])
def test_sides_without_a_common_id_are_refused(table, kind, tmp_path):
    others = side(kind, np.arange(10_000, 10_100), tmp_path)
    with pytest.raises(InputError, match=r"has none of the .* ids of the other side"):
        read_both(table, others, ({}, {}), Sample(40))


def test_only_the_rows_of_the_other_side_are_read(table, tmp_path):
    rows, others = read_both(table, side("file", np.arange(0, 4_000, 100), tmp_path), ({}, {}))
    assert ids_of(rows) == list(range(0, N, 100))
    assert len(others) == 40
    assert len(read(table)) == N
