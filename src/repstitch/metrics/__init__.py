"""Alignment metrics of two spaces, and retrieval metrics.

The sixteen alignment metrics take matched rows as NumPy arrays, torch tensors or nested lists and return a number.
`METRICS` has them by name. `knn` and `ranks` search a gallery by cosine. `recall`, `mrr`, `ndcg`, `relevant_recall` and
`hubness` score the results of a search.
"""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.metrics.alignment import METRICS
    from repstitch.metrics.kernels import cka, cka_rbf, cka_unbiased, rsa
    from repstitch.metrics.nearest_kernels import cknna, cknna_released
    from repstitch.metrics.neighbour_lists import cycle_knn, edit_knn, lcs_knn, mutual_knn
    from repstitch.metrics.neighbours import knn
    from repstitch.metrics.retrieval import hubness, mrr, ndcg, ranks, recall, relevant_recall
    from repstitch.metrics.subspaces import angular, cca, linear_r2, procrustes, pwcca, svcca

__all__ = [
    "METRICS",
    "angular",
    "cca",
    "cka",
    "cka_rbf",
    "cka_unbiased",
    "cknna",
    "cknna_released",
    "cycle_knn",
    "edit_knn",
    "hubness",
    "knn",
    "lcs_knn",
    "linear_r2",
    "mrr",
    "mutual_knn",
    "ndcg",
    "procrustes",
    "pwcca",
    "ranks",
    "recall",
    "relevant_recall",
    "rsa",
    "svcca",
]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "alignment": ("METRICS",),
        "kernels": ("cka", "cka_rbf", "cka_unbiased", "rsa"),
        "nearest_kernels": ("cknna", "cknna_released"),
        "neighbour_lists": ("cycle_knn", "edit_knn", "lcs_knn", "mutual_knn"),
        "neighbours": ("knn",),
        "retrieval": ("hubness", "mrr", "ndcg", "ranks", "recall", "relevant_recall"),
        "subspaces": ("angular", "cca", "linear_r2", "procrustes", "pwcca", "svcca"),
    },
)
