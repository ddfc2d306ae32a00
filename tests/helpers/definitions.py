"""Reference implementations of all alignment metrics, written from the papers: float64, n × n kernels, plain loops.

They are slow and share no code with the library, so that the tests can compare the two. Every function takes matched
rows X (n, d_x) and Y (n, d_y) and the number of neighbours `k`, which only the neighbour metrics use. It returns one
number, which is 1 for a space compared with itself, except in `cycle_knn`. "Chance" is the mean score of unrelated
spaces.
"""

from collections.abc import Callable

import numpy as np

FLOAT32_STEP = 2.0**-23  # rows are float32, so relative singular values below max(n, d) times this are rounding


def unit(X: np.ndarray) -> np.ndarray:
    """Return the rows at unit length, float64."""
    X = np.asarray(X, dtype=np.float64)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def centred(X: np.ndarray) -> np.ndarray:
    """Return the columns minus their means, float64."""
    X = np.asarray(X, dtype=np.float64)
    return X - X.mean(axis=0)


def neighbour_lists(X: np.ndarray, k: int) -> list[list[int]]:
    """Return the `k` nearest other rows of every row by cosine, nearest first. The order of ties is not defined."""
    similar = unit(X) @ unit(X).T
    lists = []
    for i, row in enumerate(similar):
        others = [j for j in range(len(row)) if j != i]
        lists.append(sorted(others, key=lambda j, row=row: (-row[j], j))[:k])
    return lists


def neighbour_mask(X: np.ndarray, k: int) -> np.ndarray:
    """Return the mask (n, n) that is 1 where j is one of the `k` nearest neighbours of row i, and 0 elsewhere."""
    mask = np.zeros((len(X), len(X)))
    for i, near in enumerate(neighbour_lists(X, k)):
        mask[i, near] = 1
    return mask


def mutual_knn(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """mean_i |N_x(i) ∩ N_y(i)| / k. Chance k / (n - 1). In [0, 1].

    Huh, Cheung, Wang, Isola 2024, "The Platonic Representation Hypothesis", appendix A.
    """
    lists = zip(neighbour_lists(X, k), neighbour_lists(Y, k), strict=True)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in lists]))


def cycle_knn(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """Share of rows i with i ∈ N_x(j) for at least one j ∈ N_y(i): out along Y, back along X.

    Not symmetric in X and Y. In [0, 1]. X compared with itself scores only the share of rows that are a neighbour of
    one of their own neighbours. Chance about 1 - (1 - 1 / (n - 1))^(k²); exactly
    1 - mean_i C(n - 1 - c_i, k) / C(n - 1, k), where c_i is the number of lists of X that contain i. Hubs in X
    lower it. Huh et al. 2024, the code released with the paper.
    """
    near_x, near_y = neighbour_lists(X, k), neighbour_lists(Y, k)
    return float(np.mean([any(i in near_x[j] for j in near_y[i]) for i in range(len(near_x))]))


def lcs_knn(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """mean_i LCS(list_x(i), list_y(i)) / k, the longest common subsequence of the two ordered lists.

    At most `mutual_knn`; chance just below k / (n - 1). In [0, 1].
    Huh et al. 2024, the code released with the paper, there without the division by k.
    """
    lists = zip(neighbour_lists(X, k), neighbour_lists(Y, k), strict=True)
    return float(np.mean([longest_common_subsequence(a, b) / k for a, b in lists]))


def longest_common_subsequence(a: list[int], b: list[int]) -> int:
    """Return the length of the longest common subsequence, gaps allowed (Wagner and Fischer 1974)."""
    best = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, left in enumerate(a, 1):
        for j, right in enumerate(b, 1):
            best[i, j] = best[i - 1, j - 1] + 1 if left == right else max(best[i - 1, j], best[i, j - 1])
    return int(best[-1, -1])


def edit_knn(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """1 - mean_i Levenshtein(list_x(i), list_y(i)) / k: insert, delete and replace cost one each.

    At most `lcs_knn`; chance about 1 / (n - 1), since one common neighbour helps only in the same place. In [0, 1].
    Huh et al. 2024, the code released with the paper.
    """
    lists = zip(neighbour_lists(X, k), neighbour_lists(Y, k), strict=True)
    return float(1 - np.mean([edit_distance(a, b) / k for a, b in lists]))


def edit_distance(a: list[int], b: list[int]) -> int:
    """Return the smallest number of insertions, deletions and replacements between two lists (Levenshtein 1966)."""
    cost = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    cost[:, 0], cost[0] = range(len(a) + 1), range(len(b) + 1)
    for i, left in enumerate(a, 1):
        for j, right in enumerate(b, 1):
            cost[i, j] = min(cost[i - 1, j] + 1, cost[i, j - 1] + 1, cost[i - 1, j - 1] + (left != right))
    return int(cost[-1, -1])


def biased_hsic(K: np.ndarray, L: np.ndarray) -> float:
    """tr(K H L H) with H = I - 1/n, up to a factor that cancels in CKA. Gretton et al. 2005."""
    n = len(K)
    H = np.eye(n) - 1 / n
    return float(np.trace(K @ H @ L @ H))


def unbiased_hsic(K: np.ndarray, L: np.ndarray) -> float:
    """[tr(K̃L̃) + 1ᵀK̃1 · 1ᵀL̃1 / ((n-1)(n-2)) - 2 · 1ᵀK̃L̃1 / (n-2)] / (n(n-3)), K̃ = K with a zero diagonal.

    Song, Smola, Gretton, Bedo, Borgwardt 2012, "Feature Selection via Dependence Maximization", eq. 5. Needs n > 3.
    """
    n = len(K)
    K, L = K * (1 - np.eye(n)), L * (1 - np.eye(n))
    one = np.ones(n)
    means = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    cross = 2 * (one @ K @ L @ one) / (n - 2)
    return float((np.trace(K @ L) + means - cross) / (n * (n - 3)))


def normalised(score: Callable[[np.ndarray, np.ndarray], float], K: np.ndarray, L: np.ndarray) -> float:
    """score(K, L) / sqrt(score(K, K) · score(L, L)), with no constant in the denominator."""
    return score(K, L) / np.sqrt(score(K, K) * score(L, L))


def cka(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K = X̄X̄ᵀ, L = ȲȲᵀ, the biased HSIC in all three places.

    Chance is not 0: for Gaussian rows about sqrt(d_x d_y / ((n + d_x)(n + d_y))), .5 at d = n. In [0, 1].
    Kornblith, Norouzi, Lee, Hinton 2019, "Similarity of Neural Network Representations Revisited", equation 4.
    """
    X, Y = centred(X), centred(Y)
    return normalised(biased_hsic, X @ X.T, Y @ Y.T)


def cka_unbiased(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """As `cka`, with the unbiased HSIC of Song et al. 2012 in all three places, and no epsilon.

    Chance 0 on average, so it can be negative. In [-1, 1] (Cauchy and Schwarz hold for U-centred kernels, Székely and
    Rizzo 2014). Nguyen, Raghu, Kornblith 2021, "Do Wide and Deep Networks Learn the Same Things?", equation 3.
    """
    X, Y = centred(X), centred(Y)
    return normalised(unbiased_hsic, X @ X.T, Y @ Y.T)


def cka_rbf(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """As `cka`, biased HSIC, on K_ab = exp(-‖x_a - x_b‖² / (2σ²)), σ = the median of ‖x_a - x_b‖ over a < b.

    Each space has its own σ. Chance is not 0, and approaches 1 in wide spaces, where all distances are similar.
    In [0, 1].
    Kornblith et al. 2019, section 3, with the fraction of the median distance at 1.
    """
    return normalised(biased_hsic, gaussian_kernel(X), gaussian_kernel(Y))


def gaussian_kernel(X: np.ndarray) -> np.ndarray:
    """exp(-‖x_a - x_b‖² / (2σ²)), σ the median distance over a < b (of an even number, the mean of the middle two)."""
    X = np.asarray(X, dtype=np.float64)
    n = len(X)
    distance = np.array([[np.linalg.norm(X[a] - X[b]) for b in range(n)] for a in range(n)])
    sigma = np.median(distance[np.triu_indices(n, 1)])
    return np.exp(-(distance**2) / (2 * sigma**2))


def cknna(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """Align(K, L) / sqrt(Align(K, K) Align(L, L)), where

    Align(K, L) = Σ_ij α(i, j) (K_ij - mean_l K_il) (L_ij - mean_l L_il) and
    α(i, j) = [i ≠ j, j ∈ N_x(i), j ∈ N_y(i)]. In Align(K, K) both lists are those of X, in Align(L, L) those of Y.

    K and L are inner products of unit rows. The mean over l includes every row, also l = i (the 1 on the diagonal).
    The factor 1 / (n - 1)² cancels. Chance is slightly below k / (n - 1); in [-1, 1].
    Huh et al. 2024, the appendix on CKNNA.
    """
    spaces = [(row_centred(unit(Z) @ unit(Z).T), neighbour_mask(Z, k)) for Z in (X, Y)]

    def align(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
        (K, near_x), (L, near_y) = a, b
        return float(np.sum(near_x * near_y * K * L))

    x, y = spaces
    return align(x, y) / np.sqrt(align(x, x) * align(y, y))


def row_centred(K: np.ndarray) -> np.ndarray:
    """Return K_ij - mean_l K_il, with l over all n rows."""
    return K - K.mean(axis=1, keepdims=True)


def cknna_released(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """CKNNA as computed by the code released with the paper at its default, `unbiased=True`, without its 1e-6.

    HSIC(M∘K, M∘L) / sqrt(HSIC(M_x∘K, M_x∘K) HSIC(M_y∘L, M_y∘L)), HSIC as in Song et al. 2012, M = M_x∘M_y,
    M_x and M_y the neighbour masks, K and L the *uncentred* inner products of unit rows. The code adds 1e-6 to the
    denominator, which is left out here. The masks are not symmetric, so tr(K̃L̃) counts only neighbours in both
    directions, and 1ᵀK̃L̃1 differs from 1ᵀL̃K̃1. The scores of (X, Y) and (Y, X) therefore differ slightly (.0015 at
    n = 80, .00001 at 1,000). Chance is slightly below k / (n - 1). No theorem bounds the score. Huh et al. 2024, its
    repository.
    """
    K, L = unit(X) @ unit(X).T, unit(Y) @ unit(Y).T
    near_x, near_y = neighbour_mask(X, k), neighbour_mask(Y, k)
    both = near_x * near_y
    self_x, self_y = unbiased_hsic(near_x * K, near_x * K), unbiased_hsic(near_y * L, near_y * L)
    return unbiased_hsic(both * K, both * L) / np.sqrt(self_x * self_y)


def rsa(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """Spearman correlation of the upper triangles of the two cosine-similarity matrices, ties at their average rank.

    Chance 0; in [-1, 1]. Kriegeskorte, Mur, Bandettini 2008, "Representational Similarity Analysis", with cosines.
    """
    above = np.triu_indices(len(X), 1)
    a, b = (average_ranks((unit(Z) @ unit(Z).T)[above]) for Z in (X, Y))
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1. Equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def basis(X: np.ndarray, variance: float = 1.0) -> np.ndarray:
    """Return the fewest left singular vectors (n, r) of the centred rows that contain this share of the variance.

    At 1.0 these are all vectors whose singular value float32 rows can distinguish from 0.
    """
    U, s, _ = np.linalg.svd(centred(X), full_matrices=False)
    rank = int(np.sum(s > max(X.shape) * FLOAT32_STEP * s[0]))
    if variance < 1:
        cumulative = np.cumsum(s**2) / np.sum(s**2)
        rank = min(rank, int(np.argmax(cumulative >= variance)) + 1)
    return U[:, :rank]


def cca(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """Mean canonical correlation: the mean of the min(r_x, r_y) singular values of Q_xᵀQ_y, Q orthonormal bases.

    r is the rank of the centred rows. Chance is not 0: the *squared* correlations average max(r_x, r_y) / (n - 1), and
    all are 1 if n ≤ d + 1. In [0, 1]. Hotelling 1936; Raghu et al. 2017; Kornblith et al. 2019, table 1.
    """
    return float(np.linalg.svd(basis(X).T @ basis(Y), compute_uv=False).mean())


def svcca(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """`cca` of the fewest leading singular directions of each space that contain at least 99 % of its variance.

    Mean over min(r_x, r_y) directions. Chance as in `cca` with the kept dimensions. In [0, 1].
    Raghu, Gilmer, Yosinski, Sohl-Dickstein 2017, "SVCCA: Singular Vector Canonical Correlation Analysis".
    """
    return float(np.linalg.svd(basis(X, 0.99).T @ basis(Y, 0.99), compute_uv=False).mean())


def pwcca(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """Σ_i α_i ρ_i / Σ_i α_i, α_i = Σ_j |⟨h_i, x̄_j⟩|: h_i the canonical variates of X at length 1, x̄_j X's columns.

    i runs over the min(r_x, r_y) correlations. Not symmetric: the weights come from X only (the authors' code uses the
    side with fewer dimensions). The sum of absolute values depends on X's axes, so rotating X changes the score. If
    some but not all correlations are equal, their h_i are not unique, and neither is the score. Chance as in `cca`.
    In [0, 1].
    Morcos, Raghu, Bengio 2018, "Insights on Representational Similarity in Neural Networks with CCA", section 2.
    """
    Q = basis(X)
    U, correlations, _ = np.linalg.svd(Q.T @ basis(Y), full_matrices=False)
    weight = np.abs((Q @ U).T @ centred(X)).sum(axis=1)
    return float(weight @ correlations / weight.sum())


def procrustes(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """‖X̄ᵀȲ‖_* / (‖X̄‖_F ‖Ȳ‖_F), the nuclear norm: the cosine of the two spaces after the best rotation.

    Chance is not 0: for Gaussian rows of one width about 8 / (3π) · sqrt(d / n). In [0, 1].
    Schönemann 1966; Williams, Kunz, Kornblith, Linderman 2021, "Generalized Shape Metrics on Neural Representations".
    """
    X, Y = centred(X), centred(Y)
    return float(np.linalg.norm(X.T @ Y, "nuc") / (np.linalg.norm(X) * np.linalg.norm(Y)))


def angular(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """1 - 2 arccos(procrustes(X, Y)) / π: the angular shape distance as a similarity. In [0, 1].

    Near 1 it magnifies differences: a Procrustes score of 1 - ε is an angular score of about 1 - .9 sqrt(ε).
    Williams et al. 2021.
    """
    return float(1 - 2 * np.arccos(np.clip(procrustes(X, Y), -1, 1)) / np.pi)


def linear_r2(X: np.ndarray, Y: np.ndarray, k: int = 10) -> float:
    """‖Q_xᵀȲ‖_F² / ‖Ȳ‖_F²: the share of Y's variance that the best linear map from X explains on the same rows.

    X is the source and Y the target; not symmetric. Chance r_x / (n - 1), and 1 if n ≤ d_x + 1. In [0, 1].
    Kornblith et al. 2019, table 1, "Linear Reg.", where X and Y are swapped.
    """
    Y = centred(Y)
    return float(np.linalg.norm(basis(X).T @ Y) ** 2 / np.linalg.norm(Y) ** 2)


DEFINITIONS: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "mutual_knn": mutual_knn,
    "cycle_knn": cycle_knn,
    "lcs_knn": lcs_knn,
    "edit_knn": edit_knn,
    "cka": cka,
    "cka_unbiased": cka_unbiased,
    "cka_rbf": cka_rbf,
    "cknna": cknna,
    "cknna_released": cknna_released,
    "rsa": rsa,
    "svcca": svcca,
    "pwcca": pwcca,
    "cca": cca,
    "procrustes": procrustes,
    "angular": angular,
    "linear_r2": linear_r2,
}
