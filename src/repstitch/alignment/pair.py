"""The alignment of two spaces by one metric."""

from dataclasses import replace

from repstitch.alignment.inputs import read_named, unit_rows
from repstitch.alignment.result import AlignmentScore
from repstitch.alignment.scores import ScoringSettings, score_all
from repstitch.arguments import check_draws, check_neighbours, check_seed, check_whole, names_keywords
from repstitch.devices import pick_device
from repstitch.embeddings.matching import match
from repstitch.embeddings.rows import EmbeddingsLike
from repstitch.metrics.alignment import check_metrics


@names_keywords
def align(
    X: EmbeddingsLike,
    Y: EmbeddingsLike,
    metric: str = "mutual_knn",
    *,
    k: int = 10,
    permutations: int = 200,
    seed: int = 0,
    device: str = "auto",
) -> AlignmentScore:
    """Score how similar two spaces are, compared with a permutation null. For more spaces or metrics see `atlas`.

    Args:
        X: The source: an array (n, d_x), the path of embeddings, or `Embeddings`.
        Y: The target, likewise. Rows are matched by id if both sides have ids, otherwise by position.
        metric: A name from `repstitch.metrics.METRICS`. Rows are scaled to unit length first, as in `atlas`.
        k: Number of neighbours of each row, for the metrics that use neighbours.
        permutations: Number of draws of the null. With 0, there are no `null`, `p` and `calibrated`.
        seed: Seed of the null.
        device: Where neighbour graphs are computed: auto, cpu or cuda.

    Returns:
        The score with its null, p-value, calibrated score and standard error; `atlas` returns the same numbers for the
        pair. Arrays are called "X" and "Y". Two sets of one space, such as translated and native rows, can be
        compared; the name of the second then ends in "-2".

    Raises:
        InputError: On an unknown metric, on rows that do not match or cannot be used, on fewer than 20 items, if `k` is
            not below the number of items, and if the metric cannot be computed for a space.
    """
    check_metrics([metric], "metric")
    k, permutations, seed = check_whole(k, "`k`"), check_draws(permutations), check_seed(seed)
    first, second = read_named(X, "X"), read_named(Y, "Y")
    if first.space.name == second.space.name:
        second = replace(second, space=replace(second.space, name=f"{second.space.name}-2"))
    matched = match([first, second])
    check_neighbours(k, len(matched))
    settings = ScoringSettings(k, permutations, seed, pick_device(device))
    ((_, measured),) = score_all([metric], unit_rows(matched), matched.names, {metric: [(0, 1)]}, settings)
    source, target = matched.names
    return AlignmentScore({"source": source, "target": target, "metric": metric} | measured.pair(0))
