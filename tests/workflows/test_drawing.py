"""Draw rows of a corpus to train on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.spaces import gaussian, names

from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.sampling import farthest_first
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.spaces import Space
from repstitch.workflows.drawing import draw


@pytest.fixture
def corpus(tmp_path):
    """300 rows, of which 270 are one dense clump, with a text each."""
    clump = 0.01 * gaussian(270, 6) + 1
    rows = np.concatenate([clump, gaussian(30, 6, 1)]).astype(np.float32)
    payload = pa.table({"text": [f"text {i}" for i in range(300)]})
    write(tmp_path / "corpus.parquet", Embeddings(rows, Space("old", 6), ids=names(300), payload=payload))
    return tmp_path / "corpus.parquet"


def test_drawn_rows_keep_their_ids_vectors_columns_and_card(corpus, tmp_path):
    assert draw(corpus, tmp_path / "own.parquet", n=40, columns=["text"]) == 40
    whole, drawn = pq.read_table(corpus), pq.read_table(tmp_path / "own.parquet")
    assert drawn.schema.metadata == whole.schema.metadata
    rows = {
        key: (vector, text)
        for key, vector, text in zip(*(whole[n].to_pylist() for n in ("id", "vector", "text")), strict=True)
    }
    for key, vector, text in zip(*(drawn[n].to_pylist() for n in ("id", "vector", "text")), strict=True):
        assert rows[key] == (vector, text)


def test_rows_are_drawn_with_the_same_probability_or_spread_over_the_corpus(corpus, tmp_path):
    n_outside = {}
    for spread in (False, True):
        draw(corpus, tmp_path / f"{spread}.parquet", n=30, spread=spread)
        ids = pq.read_table(tmp_path / f"{spread}.parquet")["id"].to_pylist()
        assert len(set(ids)) == 30
        n_outside[spread] = len(set(ids) & set(names(300)[270:]))
    assert n_outside[False] < 10
    assert n_outside[True] > 20


def test_each_spread_row_is_the_farthest_from_those_before():
    rows = gaussian(60, 5)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    order = farthest_first(rows, 12, seed=3)
    for place in range(1, 12):
        nearest = (unit @ unit[order[:place]].T).max(axis=1)
        assert nearest[order[place]] == pytest.approx(nearest.min())
    assert sorted(farthest_first(rows, 99)) == list(range(60))


def test_a_corpus_without_ids_a_number_below_one_and_an_existing_file_are_refused(corpus, tmp_path):
    np.save(tmp_path / "bare.npy", gaussian(30, 4))
    with pytest.raises(InputError, match="has no ids, by which the rows could be paired"):
        draw(tmp_path / "bare.npy", tmp_path / "a.parquet")
    with pytest.raises(InputError, match="`n` must be at least 1; got 0"):
        draw(corpus, tmp_path / "a.parquet", n=0)
    with pytest.raises(InputError, match="exists"):
        draw(corpus, corpus)
    assert not (tmp_path / "a.parquet").exists()
