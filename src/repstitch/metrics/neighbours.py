"""Nearest neighbours by cosine, exact and tiled.

Products are in float32 whatever the global settings say: coarser arithmetic changes one neighbour set in fifteen where
rows lie in a cone. Lists are nearest first. Ties are broken in an order that depends on what the rows are, not on where
they stand (`tie_order`): if ties went to the lower row, that row would be a hub in two unrelated spaces, and permuted
rows would not show it. Cosines that are equal by arithmetic but not in float32 are no ties: which of them is larger is
then rounding, and may change with the length of the rows.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from repstitch.arguments import check_neighbours, check_whole
from repstitch.errors import InputError
from repstitch.metrics.matrices import MatrixLike, as_matrix
from repstitch.precision import exact_products

TILE_ROWS = 1440
DEVICE_TILE_ROWS = 16_384  # on a CUDA device, where each tile costs some waits for it
BLOCK = 32  # similarities of a row whose largest is looked at first
STEP = 2.0**-23  # of float32 near 1
SAME = (2 * STEP) ** 0.5  # unit rows no farther apart have a cosine of 1, to float32
SKETCH = 8  # random directions that stand for all when copies are looked for
COMPARED = 4096  # pairs of rows at once
TREE_ROWS_ALONE = 10_000  # up to here threads take longer to start than they save
NEAR = 4  # rows in the sketch, the row itself among them, that may be its copies


@dataclass(frozen=True)
class Graph:
    """The nearest neighbours of every row of one space, itself left out.

    `neighbours` (n, k) are positions, nearest first; `similarities` (n, k) their cosines; `mean` (n,) each row's mean
    cosine to all n rows, itself among them; `tied` counts rows whose k-th neighbour is no nearer, to float32, than the
    next, so that `tie_order` chose.
    """

    neighbours: Tensor
    similarities: Tensor
    mean: Tensor
    tied: int

    def __len__(self) -> int:
        return len(self.neighbours)

    @property
    def k(self) -> int:
        return self.neighbours.shape[1]

    def first(self, k: int) -> "Graph":
        """The graph of the first k ≤ `self.k` neighbours."""
        if k == self.k:
            return self
        neighbours, similarities = self.neighbours[:, :k].contiguous(), self.similarities[:, :k].contiguous()
        tied = int((similarities[:, -1] - self.similarities[:, k] <= STEP).sum())
        return replace(self, neighbours=neighbours, similarities=similarities, tied=tied)

    def to(self, device: torch.device | str) -> "Graph":
        """The same on another device."""
        neighbours, similarities = self.neighbours.to(device), self.similarities.to(device)
        return replace(self, neighbours=neighbours, similarities=similarities, mean=self.mean.to(device))


@exact_products()
def graph(X: Tensor, k: int = 10, name: str = "X") -> Graph:
    """The neighbour graph of rows X (n, d), computed once for every metric, pair and permutation.

    Only tiles on and above the diagonal of U Uᵀ are computed; each serves its rows and its columns. Exact; about half
    of n² d products, O(n k + tile²) memory besides the rows. Raises InputError unless 1 ≤ k < n, on rows without a
    direction, and where neighbours are arbitrary because many rows repeat one another or all are equally near; `name`
    is what the message calls X.
    """
    check_neighbours(k, len(X))
    U = unit(X)
    _check_spread(U, k, name)
    n, mean, order = len(U), U @ U.mean(0), tie_order(U)
    U = _whole_blocks(U, order)
    keys = U.new_full((len(U), min(k + 1, n - 1)), EMPTY, dtype=torch.long)  # one more shows whether the k-th is tied
    keys[n:] = _encode(U.new_tensor(torch.inf), torch.tensor(0))  # what fills the last block looks for nothing
    parts = tiles(len(U), tile_rows(U, k + 1))
    # The diagonal first: then every row has a k-th best to compare the other tiles with.
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
    return Graph(order[places], similarities, mean, tied=0).first(k)


@exact_products()
def knn(queries: MatrixLike, gallery: MatrixLike, k: int = 10, exclude_self: bool = False) -> Tensor:
    """Positions (n, k) of each query's `k` nearest gallery rows by cosine, nearest first, ties by `tie_order`.

    `queries` is (n, d), `gallery` (m, d). With `exclude_self`, query i is row i of the gallery, and its list leaves
    that row out. Exact; O(n m d) time, O(n k + tile²) memory. Raises InputError on rows of unequal widths, and unless
    1 ≤ k ≤ rows left.
    """
    queries, gallery = as_matrix(queries, "queries"), as_matrix(gallery, "gallery")
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(
            f"`gallery` must be in the same space as `queries`; got {tuple(queries.shape)} against "
            f"{tuple(gallery.shape)}."
        )
    n_rows = len(gallery) - int(exclude_self)
    if not 1 <= check_whole(k, "`k`") <= n_rows:
        raise InputError(f"`k` must be at least 1 and at most the number of other rows ({n_rows}); got {k}.")
    if exclude_self and len(queries) > len(gallery):
        raise InputError(
            f"With `exclude_self`, every query needs a gallery row of its own; got {len(queries)} queries and "
            f"{len(gallery)} rows."
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
    """Positions (n, k) of the largest of each row of `similar` (n, m), largest first, ties to the lower position."""
    keys = similar.new_full((len(similar), k), EMPTY, dtype=torch.long)
    padded = torch.nn.functional.pad(similar, (0, -similar.shape[1] % BLOCK), value=-torch.inf)
    _absorb(keys, padded, 0)
    return _decode(keys)[0]


def unit(X: Tensor) -> Tensor:
    """Rows (n, d) at length one, float32; InputError on rows without a direction."""
    X = X.float()
    norms = torch.linalg.vector_norm(X, dim=1, keepdim=True)
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise InputError("Rows must be finite and not all zeros to have neighbours; leave such rows out first.")
    return X / norms


def check_spread(X: Tensor, k: int, name: str) -> None:
    """Refuse a space in which most rows are copies: its neighbour lists are arbitrary but would look aligned."""
    check_neighbours(k, len(X))
    _check_spread(unit(X), k, name)


def _check_lead(nearest: Tensor, mean: Tensor, name: str) -> None:
    """Refuse a space whose rows are all as near to one another as float32 can tell."""
    n = len(mean)
    others = (mean * n - 1) / (n - 1)
    if n > 2 and float((nearest - others).median()) <= 16 * STEP:
        raise InputError(
            f"`{name}` has rows that are all as near to one another, to float32's precision, so its nearest neighbours "
            "are arbitrary; centre the rows if they hardly differ from their mean, or leave the space out."
        )


def tie_order(U: Tensor) -> Tensor:
    """An order (n,) of unit rows (n, d) that breaks ties between them; the rows' lengths do not change it.

    Rows are ordered along one random direction, so by what they are; copies by random numbers whose seed depends on
    which row stands where. So the graph of permuted rows is the permuted graph, which makes a permutation test exact.
    """
    along = _sketch(U, 1)[:, 0].double().cpu()
    weights = torch.randn(len(U), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = float(along.abs() @ weights) / len(U) ** 0.5  # coarse below, for the rows' lengths change the last digits
    lot = torch.Generator().manual_seed(abs(round(drawn * 2**12)))
    return (along + 1e-4 * torch.randn(len(U), generator=lot, dtype=torch.float64)).argsort().to(U.device)


def count_repeats(U: Tensor) -> int:
    """How many of the unit rows (n, d) copy another row, to float32: n less the number of different directions.

    Copies are near one another in any few directions, so each row is compared with its nearest rows in a sketch of
    eight. Of each set of copies one row stays; this repeats until no copies are left. O(n (d + log n)) time. Copies are
    missed only where many other rows lie as near to each other as they do.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    sketch = (_sketch(U, SKETCH) / SKETCH**0.5).cpu().double().numpy()
    # What is the same to a fiftieth goes first, for a tree of equal points is none.
    cells = (sketch / (SAME / 50)).round() @ np.random.default_rng(0).standard_normal(SKETCH)
    kept = np.unique(cells, return_index=True)[1]
    while len(kept) > 1:
        threads = torch.get_num_threads() if len(kept) > TREE_ROWS_ALONE else 1
        tree = KDTree(sketch[kept])
        nearest = tree.query(tree.data, k=min(NEAR, len(kept)), distance_upper_bound=2 * SAME, workers=threads)
        distance, other = (np.asarray(part)[:, 1:] for part in nearest)  # the nearest is the row itself
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
    """Rows (n, width) in random directions: as far apart there as in all, on average."""
    directions = torch.randn(width, U.shape[1], generator=torch.Generator().manual_seed(0))
    return U @ directions.to(U).T


def _check_spread(U: Tensor, k: int, name: str) -> None:
    different = len(U) - count_repeats(U)
    if different <= max(k, len(U) // 2):
        raise InputError(
            f"`{name}` has only {different} different directions in {len(U)} rows, so its nearest neighbours are "
            "arbitrary; remove the repeats, or centre rows that hardly differ from their mean."
        )


# A candidate is one whole number, its similarity above and its position below, so that the larger of two numbers is the
# nearer row, and of rows as near the one whose position is lower.


def _encode(values: Tensor, positions: Tensor) -> Tensor:
    bits = (values + 0.0).view(torch.int32).long()  # adding 0 makes −0 and 0 one
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) + (LAST - positions)


def _decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    bits = (keys >> 32).int()
    values = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return LAST - (keys & LAST), values


def _absorb(keys: Tensor, similar: Tensor, start: int) -> None:
    """Merge the nearest of `similar` (n, m), whose columns are positions from `start` on, into the best `keys` (n, k).

    Only blocks whose largest value reaches a row's k-th best are looked at: k blocks a row in the first tile, except
    for ties, and hardly any after a few tiles.
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
    """Rows in this order, and rows of zeros after them until there are whole blocks."""
    rows = U.new_zeros(len(U) + -len(U) % BLOCK, U.shape[1])
    torch.index_select(U, 0, order, out=rows[: len(U)])
    return rows


def tile_rows(rows: Tensor, k: int, columns: int | None = None) -> int:
    """The rows of one tile of similarities, whose columns are `columns` other rows, or as many rows by default.

    1,440 on the CPU. On a CUDA device the power of two that a quarter of its free memory holds. `_absorb` looks for the
    `k` nearest in 12 bytes a similarity, or in 96 where a row has no more than k blocks, so that it reads all of them.
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
    """The largest power of two up to `most`, within the limits of a tile. Few sizes, since rounding depends on them."""
    return min(DEVICE_TILE_ROWS, max(BLOCK, 1 << max(0, most.bit_length() - 1)))


def tiles(n: int, most: int) -> list[slice]:
    """Slices of about equal length, none above `most`, each of whole blocks where n is."""
    count = -(-n // most)
    edges = [n * i // count // BLOCK * BLOCK for i in range(count)] + [n]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges) if start < stop]


LAST = 2**32 - 1
EMPTY = (-8388608 ^ 0x7FFFFFFF) << 32  # no row yet: −∞, after every position
