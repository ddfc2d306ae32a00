import numpy as np
from helpers.spaces import gaussian

from repstitch.embeddings.cells import CellIndex, axes, cell_hashes, cells, directions, nearby_cells


def test_directions_are_unit_rows_whatever_their_size():
    X = gaussian(30, 5) * np.float32(10.0) ** np.linspace(-30, 30, 30, dtype=np.float32)[:, None]
    np.testing.assert_allclose(np.linalg.norm(directions(X), axis=1), 1, rtol=1e-6)
    assert not directions(np.zeros((2, 3), dtype=np.float32)).any()


def test_axes_depend_on_their_arguments_only_and_have_independent_entries_of_variance_1():
    first = axes(400, 30, "a")
    axes.cache_clear()
    np.testing.assert_array_equal(axes(400, 30, "a"), first)
    assert abs(np.corrcoef(first.ravel(), axes(400, 30, "b").ravel())[0, 1]) < 0.04
    np.testing.assert_allclose(first.T @ first / 400, np.eye(30), atol=0.2)
    assert abs(first.mean()) < 0.04


def test_nearby_cells_are_the_own_cell_and_those_across_the_nearest_edges():
    position = np.array([[0.05, 3.9, -0.02, 7.25, 5.45, 9.5]])
    nearby = {tuple(int(number) for number in cell[0]) for cell in nearby_cells(position, 4)}
    assert tuple(cells(position)[0]) == (0, 3, -1, 7, 5, 9)
    assert nearby == {(a, b, c, d, 5, 9) for a in (0, -1) for b in (3, 4) for c in (-1, 0) for d in (7, 6)}


def test_every_row_that_shares_a_cell_is_a_candidate_however_many_there_are():
    """Cells of three directions that have from one row to hundreds."""
    random = np.random.default_rng(0)
    indexed, rows = (random.normal(scale=random.uniform(0.2, 3, (n, 1)), size=(n, 3)) for n in (3000, 200))
    shared: list[tuple[int, int]] = []
    for _, query, match, blocks in CellIndex.of(cell_hashes(cells(indexed))).candidates(rows, 2):
        shared += zip(query, match, strict=True)
        shared += [(i, j) for some, matches in blocks for i in some for j in matches]
    nearby = np.stack(list(nearby_cells(rows, 2)), axis=1)
    expected = np.argwhere((nearby[:, None] == cells(indexed)[None, :, None]).all(3).any(2))
    assert sorted(shared) == [tuple(pair) for pair in expected.tolist()]
