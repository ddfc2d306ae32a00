"""Exact nearest neighbours by cosine, computed in tiles.

Products are in full float32, whatever the global settings are: coarser arithmetic changes one neighbour set in fifteen
if the rows lie in a narrow cone. Lists are nearest first. Ties are broken by an order that depends on the values of the
rows, not on their positions (`tie_order`). If ties went to the lower position, the same row would be a hub in two
unrelated spaces, and a permutation of the rows would not reveal it. Cosines that are mathematically equal but differ in
float32 are not ties: rounding decides which of them is larger, and the result may change with the lengths of the rows.
"""

import itertools
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from repstitch.arguments import check_neighbours, check_whole
from repstitch.errors import InputError
from repstitch.metrics.matrices import MatrixLike, as_matrix
from repstitch.precision import exact_products

TILE_ROWS = 1440
DEVICE_TILE_ROWS = 16_384  # on a CUDA device, where each tile costs several synchronisations
BLOCK = 32  # similarities of a row whose maximum is checked before they are read
STEP = 2.0**-23  # spacing of float32 numbers near 1
SAME = (2 * STEP) ** 0.5  # largest distance of unit rows whose cosine is 1 in float32
SKETCH = 8  # random directions on which rows are projected to search for copies
COMPARED = 4096  # pairs of rows that are compared at once
TREE_ROWS_ALONE = 10_000  # up to this many rows, threads take longer to start than they save
NEAR = 4  # nearest rows in the sketch, including the row itself, that are checked as copies


@dataclass(frozen=True)
class Graph:
    """The nearest neighbours of every row of one space. A row is not a neighbour of itself.

    `neighbours` (n, k) are positions, nearest first, and `similarities` (n, k) their cosines. `following` (n,) is the
    next neighbour, −1 if there is none. `mean` (n,) is each row's mean cosine to all n rows, including itself. `tied`
    counts the rows whose k-th and next neighbour are equally near in float32, so that `tie_order` decided between them.
    """

    neighbours: Tensor
    similarities: Tensor
    following: Tensor
    mean: Tensor
    tied: int

    def __len__(self) -> int:
        return len(self.neighbours)

    @property
    def k(self) -> int:
        return self.neighbours.shape[1]

    @cached_property
    def mutual(self) -> Tensor:
        """Whether each edge (n, k) has its reverse in the graph."""
        rows = torch.arange(len(self), device=self.neighbours.device)
        return (self.neighbours[self.neighbours] == rows[:, None, None]).any(2)

    def first(self, k: int) -> "Graph":
        """Return the graph of the first k ≤ `self.k` neighbours."""
        if k == self.k:
            return self
        neighbours, similarities = self.neighbours[:, :k].contiguous(), self.similarities[:, :k].contiguous()
        tied = int((similarities[:, -1] - self.similarities[:, k] <= STEP).sum())
        following = self.neighbours[:, k].contiguous()
        return replace(self, neighbours=neighbours, similarities=similarities, following=following, tied=tied)

    def to(self, device: torch.device | str) -> "Graph":
        """Return the graph with its tensors on `device`."""
        tensors = {name: getattr(self, name).to(device) for name in ("neighbours", "similarities", "following", "mean")}
        return replace(self, **tensors)


@exact_products()
def graph(X: Tensor, k: int = 10, name: str = "X") -> Graph:
    """Return the neighbour graph of rows X (n, d). One graph is used for all metrics, pairs and permutations.

    With U the rows scaled to unit length, only tiles on and above the diagonal of U Uᵀ are computed. Each tile is used
    for its rows and for its columns. Exact; about half of n² d products, O(n k + tile²) memory in addition to the rows.
    Raises InputError unless 1 ≤ k < n, on rows that are zero or not finite, and if the neighbours are arbitrary because
    too many rows are repeated or all rows are equally near. `name` is the argument in error messages.
    """
    check_neighbours(k, len(X))
    U = unit(X)
    _check_spread(U, k, name)
    n, mean, order = len(U), U @ U.mean(0), tie_order(U)
    U = _whole_blocks(U, order)
    keys = U.new_full((len(U), min(k + 1, n - 1)), EMPTY, dtype=torch.long)  # one more, to count ties of the k-th
    keys[n:] = _encode(U.new_tensor(torch.inf), torch.tensor(0))  # padding rows accept no neighbours
    parts = tiles(len(U), tile_rows(U, k + 1))
    # Diagonal tiles come first: every row then has a k-th best similarity, so few blocks of the other tiles are read.
    for rows, columns in (pair for far in range(len(parts)) for pair in zip(parts, parts[far:], strict=False)):
        similar = U[rows] @ U[columns].T
        similar[:, max(0, n - columns.start) :] = -torch.inf
        if rows == columns:
            similar.fill_diagonal_(-torch.inf)
        _absorb(keys[rows], similar, columns.start)
        if rows != columns:
            _absorb(keys[columns], similar.T, rows.start)
    places, similarities = (part[order.argsort()] for part in _decode(keys[:n]))
    _check_lead(similarities[:, 0], mean, name)
    neighbours = order[places]
    return Graph(neighbours, similarities, torch.full_like(neighbours[:, 0], -1), mean, tied=0).first(k)


@exact_products()
def knn(queries: MatrixLike, gallery: MatrixLike, k: int = 10, exclude_self: bool = False) -> Tensor:
    """Return the positions (n, k) of each query's `k` nearest gallery rows by cosine, nearest first.

    `queries` is (n, d), `gallery` (m, d). Ties are broken by `tie_order`. With `exclude_self`, query i is row i of the
    gallery, and its list leaves that row out. Exact; O(n m d) time, O(n k + tile²) memory. Raises InputError if the
    numbers of columns differ, and unless `k` is at least 1 and at most the number of gallery rows (m, or m − 1 with
    `exclude_self`).
    """
    queries, gallery = as_matrix(queries, "queries"), as_matrix(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(
            f"`queries` and `gallery` must have the same number of columns; got {tuple(queries.shape)} and "
            f"{tuple(gallery.shape)}."
        )
    n_rows = len(gallery) - int(exclude_self)
    if not 1 <= check_whole(k, "`k`") <= n_rows:
        raise InputError(f"`k` must be at least 1 and at most the number of candidate rows ({n_rows}); got {k}.")
    if exclude_self and len(queries) > len(gallery):
        raise InputError(
            f"With `exclude_self`, `gallery` must have a row for every query; got {len(queries)} queries and "
            f"{len(gallery)} gallery rows."
        )
    Q, G = unit(queries), unit(gallery)
    order = tie_order(G)
    G, place = _whole_blocks(G, order), order.argsort()
    keys = Q.new_full((len(Q), k), EMPTY, dtype=torch.long)
    step = tile_rows(Q, k)
    for rows in tiles(len(Q), step):
        for columns in tiles(len(G), step):
            similar = Q[rows] @ G[columns].T
            similar[:, max(0, len(gallery) - columns.start) :] = -torch.inf
            if exclude_self:
                own_column = place[rows] - columns.start
                inside = ((own_column >= 0) & (own_column < similar.shape[1])).nonzero()[:, 0]
                similar[inside, own_column[inside]] = -torch.inf
            _absorb(keys[rows], similar, columns.start)
    return order[_decode(keys)[0]]


def nearest(similar: Tensor, k: int) -> Tensor:
    """Return the positions (n, k) of the largest values of each row of `similar` (n, m), largest first.

    Ties go to the lower position.
    """
    keys = similar.new_full((len(similar), k), EMPTY, dtype=torch.long)
    padded = torch.nn.functional.pad(similar, (0, -similar.shape[1] % BLOCK), value=-torch.inf)
    _absorb(keys, padded, 0)
    return _decode(keys)[0]


def unit(X: Tensor) -> Tensor:
    """Return rows (n, d) scaled to length one, float32. Raises InputError on rows that are zero or not finite."""
    X = X.float()
    norms = torch.linalg.vector_norm(X, dim=1, keepdim=True)
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise InputError("Rows must be finite and not all zeros; remove invalid rows first.")
    return X / norms


def check_spread(X: Tensor, k: int, name: str) -> None:
    """Raise InputError if too many rows of a space are copies of other rows.

    The neighbour lists of such a space are arbitrary, but two such spaces could look aligned.
    """
    check_neighbours(k, len(X))
    _check_spread(unit(X), k, name)


def _check_lead(nearest: Tensor, mean: Tensor, name: str) -> None:
    """Raise InputError if all rows are equally near to one another in float32."""
    n = len(mean)
    others = (mean * n - 1) / (n - 1)
    if n > 2 and float((nearest - others).median()) <= 16 * STEP:
        raise InputError(
            f"`{name}` has rows that are all equally near to one another in float32, so its nearest neighbours are "
            "arbitrary; centre the rows if they hardly differ from their mean, or leave the space out."
        )


def tie_order(U: Tensor) -> Tensor:
    """Return an order (n,) of unit rows (n, d) that breaks ties between them. It does not depend on the rows' lengths.

    Rows are ordered along one random direction, so by their values. Copies are ordered by random numbers, whose seed
    depends on the rows and their positions. So the graph of permuted rows is the permuted graph, which makes a
    permutation test exact.
    """
    along = _sketch(U, 1)[:, 0].double().cpu()
    weights = torch.randn(len(U), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = float(along.abs() @ weights) / len(U) ** 0.5
    # Rounded, because the lengths of the rows change the last digits.
    lot = torch.Generator().manual_seed(abs(round(drawn * 2**12)))
    return (along + 1e-4 * torch.randn(len(U), generator=lot, dtype=torch.float64)).argsort().to(U.device)


def count_repeats(U: Tensor) -> int:
    """Return how many unit rows (n, d) copy another row in float32: n minus the number of different directions.

    Copies are close in any projection, so each row is compared only with its nearest rows in a projection on eight
    random directions. One row of each set of copies is kept, and the search is repeated until it finds no copies. O(n
    (d + log n)) time. Copies are missed only if many other rows are as close to them as they are to each other.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    sketch = (_sketch(U, SKETCH) / SKETCH**0.5).cpu().double().numpy()
    # Merge rows that are equal to a fiftieth of SAME first, because a k-d tree cannot split equal points.
    cells = (sketch / (SAME / 50)).round() @ np.random.default_rng(0).standard_normal(SKETCH)
    kept = np.unique(cells, return_index=True)[1]
    while len(kept) > 1:
        threads = torch.get_num_threads() if len(kept) > TREE_ROWS_ALONE else 1
        tree = KDTree(sketch[kept])
        nearest = tree.query(tree.data, k=min(NEAR, len(kept)), distance_upper_bound=2 * SAME, workers=threads)
        distance, other = (np.asarray(part)[:, 1:] for part in nearest)  # the first is the row itself
        row, rank = np.isfinite(distance).nonzero()
        other = other[row, rank]
        pairs = torch.from_numpy(kept[np.stack([row, other])]).to(U.device).split(COMPARED, dim=1)
        gap = [torch.linalg.vector_norm(U[left] - U[right], dim=1).cpu() for left, right in pairs]
        same = torch.cat(gap).numpy() <= SAME if gap else np.zeros(0, dtype=bool)
        row, other = row[same], other[same]
        if not len(row):
            break
        copies = csr_array((np.ones(len(row)), (row, other)), shape=(len(kept), len(kept)))
        kept = kept[np.unique(connected_components(copies)[1], return_index=True)[1]]
    return len(U) - len(kept)


@exact_products()
def _sketch(U: Tensor, width: int) -> Tensor:
    """Project rows on random directions: (n, width). Distances are kept on average, up to a factor of √width."""
    directions = torch.randn(width, U.shape[1], generator=torch.Generator().manual_seed(0))
    return U @ directions.to(U).T


def _check_spread(U: Tensor, k: int, name: str) -> None:
    different = len(U) - count_repeats(U)
    if different <= max(k, len(U) // 2):
        raise InputError(
            f"`{name}` has only {different} different directions in {len(U)} rows, so its nearest neighbours are "
            "arbitrary; remove the repeated rows, or centre rows that hardly differ from their mean."
        )


# A candidate is encoded as one integer: the similarity in the upper 32 bits, the reversed position in the lower 32. The
# larger of two integers is the nearer row or, if both are equally near, the row at the lower position.


def _encode(values: Tensor, positions: Tensor) -> Tensor:
    bits = (values + 0.0).view(torch.int32).long()  # adding 0 turns −0 into 0
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) + (LAST - positions)


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    bits = (keys >> 32).int()
    values = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return LAST - (keys & LAST), values


def _absorb(keys: Tensor, similar: Tensor, start: int) -> None:
    """Merge the similarities `similar` (n, m) into `keys` (n, k), the encoded k best candidates of each row so far.

    Column j of `similar` is position `start` + j. Only blocks whose maximum reaches the k-th best similarity of the row
    are read: k blocks a row in the first tile, more with ties, and hardly any after a few tiles.
    """
    k = keys.shape[1]
    best = (
        similar.unflatten(1, (-1, BLOCK)).amax(2)
        if similar.is_contiguous()
        else similar.T.unflatten(0, (-1, BLOCK)).amax(1).T
    )
    floor = _decode(keys[:, -1:])[1]
    if best.shape[1] > k and bool((floor == -torch.inf).any()):
        floor = torch.maximum(floor, best.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True))
    blocks = similar.unflatten(1, (-1, BLOCK))
    hits = (best >= floor) & (best > -torch.inf)
    at, block = hits.nonzero(as_tuple=True)
    inside = blocks[at, block]
    which, place = ((inside >= floor[at]) & (inside > -torch.inf)).nonzero(as_tuple=True)
    rows = at[which]
    if not len(rows):
        return
    counts = torch.bincount(rows, minlength=len(keys))
    slot = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    candidates = keys.new_full((len(keys), int(counts.max())), EMPTY)
    candidates[rows, slot] = _encode(inside[which, place], block[which] * BLOCK + place + start)
    keys.copy_(torch.cat([keys, candidates], 1).topk(k, dim=1).values)


def _whole_blocks(U: Tensor, order: Tensor) -> Tensor:
    """Return the rows in this order, padded with rows of zeros to a multiple of `BLOCK`."""
    rows = U.new_zeros(len(U) + -len(U) % BLOCK, U.shape[1])
    torch.index_select(U, 0, order, out=rows[: len(U)])
    return rows


def tile_rows(rows: Tensor, k: int, columns: int | None = None) -> int:
    """Return how many rows one tile of similarities should have. It has `columns` columns, or is square by default.

    1,440 rows on the CPU. On a CUDA device, the largest power of two for which the tile fits a quarter of the free
    memory, between 32 and 16,384. `_absorb` needs 12 bytes per similarity. If a row has no more than `k` blocks,
    `_absorb` reads all of them and needs 96 bytes.
    """
    if rows.device.type != "cuda":
        return TILE_ROWS
    free = torch.cuda.mem_get_info(rows.device)[0]
    free += torch.cuda.memory_reserved(rows.device) - torch.cuda.memory_allocated(rows.device)
    cells, dense = free // 4 // 12, free // 4 // 96
    most = _whole_power(cells // columns if columns else math.isqrt(cells))
    if k < (columns or most) // BLOCK:
        return most
    return _whole_power(dense // columns if columns else math.isqrt(dense))


def _whole_power(most: int) -> int:
    """Return the largest power of two up to `most`, from 32 to 16,384.

    Rounding depends on the size of a tile, so only few sizes are used.
    """
    return min(DEVICE_TILE_ROWS, max(BLOCK, 1 << max(0, most.bit_length() - 1)))


def tiles(n: int, most: int) -> list[slice]:
    """Split n rows into slices of about equal length, at most `most` if n and `most` are multiples of `BLOCK`.

    All slices but the last begin and end at multiples of `BLOCK`.
    """
    count = -(-n // most)
    edges = [n * i // count // BLOCK * BLOCK for i in range(count)] + [n]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges) if start < stop]


LAST = 2**32 - 1
EMPTY = (-8388608 ^ 0x7FFFFFFF) << 32  # no candidate: similarity −∞ at the last position
