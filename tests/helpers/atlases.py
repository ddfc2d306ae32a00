"""Synthetic atlases as JSON objects, made without embeddings. `made` turns one into a record."""

import numpy as np

from repstitch.alignment.result import Atlas


def made(values: dict) -> Atlas:
    """Check the JSON object of an atlas and return its record."""
    return Atlas.from_dict(values)


def made_atlas(
    N: int,
    families: int | None = 3,
    permutations: int = 200,
    symmetric: bool = True,
    parameters: bool = True,
    metric: str = "mutual_knn",
    seed: int = 0,
) -> dict:
    """Return an atlas of N models that are more similar within a family.

    With `families=None` no card states a family. Otherwise, if N > 4, the last model has no family.
    """
    random = np.random.default_rng(seed)
    group = random.permutation(np.arange(N) % (families or 3))
    centre = random.standard_normal((int(group.max()) + 1, 2))
    at = centre[group] + 0.3 * random.standard_normal((N, 2))
    apart = np.linalg.norm(at[:, None] - at[None], axis=2)
    score = 0.01 + 0.5 * np.exp(-apart)
    if not symmetric:
        score = score + 0.05 * random.random((N, N))
    np.fill_diagonal(score, 1)
    names = [f"{FAMILIES[g]}_{SIZES[i % len(SIZES)]}_{i}" for i, g in enumerate(group)]
    spaces = []
    for i, name in enumerate(names):
        card: dict = {"name": name, "dim": 8, "encoder": f"timm:{name}"}
        if families is not None and not (N > 4 and i == N - 1):
            card["family"] = FAMILIES[group[i]]
        if parameters:
            card["parameters"] = int(1e7 * 4 ** (i % 5))
        spaces.append(card)
    result: dict = {"symmetric": symmetric, "score": listed(score), "se": listed(without_own(0.01 + 0 * score))}
    if permutations:
        null = without_own(np.full((N, N), 0.0098) + 0.002 * score)
        q = without_own(np.where(score > 0.1, 0.005, 0.4))
        result |= {"null": listed(null), "p": listed(q / 2), "q": listed(q), "calibrated": listed(score - null)}
    by_place = np.lexsort([at[:, 1], group])
    return {
        "n": 1024,
        "k": 10,
        "permutations": permutations,
        "seed": seed,
        "spaces": spaces,
        "left_out": {name: {} for name in names},
        "repeats": dict.fromkeys(names, 0),
        "metrics": {metric: result},
        "order": {metric: [names[i] for i in by_place]},
        "map": {metric: dict(zip(names, (at * 0.2).tolist(), strict=True))},
        "nearest": {metric: {name: [] for name in names}},
        "pairs": [],
    }


def with_sizes(atlas: dict, pairs: int = 4) -> dict:
    """Return the atlas with curves over sample sizes for the first `pairs` pairs."""
    (metric, result), names = next(iter(atlas["metrics"].items())), [s["name"] for s in atlas["spaces"]]
    sizes = [32, 64, 128, 256, 512, 1000, 1024]
    curves = []
    for at in range(pairs):
        i, j = at % len(names), (at + 1 + at // len(names)) % len(names)
        top = result["score"][i][j]
        curve = {"source": names[i], "target": names[j], "metric": metric}
        curve |= {"score": [top + 3 / n for n in sizes], "se": [0.15 / n**0.5 for n in sizes]}
        curves.append(curve | ({"null": [10 / (n - 1) for n in sizes]} if "null" in result else {}))
    return atlas | {"sizes": {"k": 10, "sizes": sizes, "draws": [5] * 6 + [1], "curves": curves}}


def made_trend(N: int = 14, families: int = 3, log: bool = True, seed: int = 0) -> dict:
    """Return a rising trend as a JSON object."""
    random = np.random.default_rng(seed)
    values = np.geomspace(5e6, 7e9, N) if log else np.linspace(60, 85, N)
    x = np.log10(values) if log else values
    y = 0.1 + 0.25 * (x - x.min()) / np.ptp(x) + 0.03 * random.standard_normal(N)
    grid = np.geomspace(values[0], values[-1], 50) if log else np.linspace(values[0], values[-1], 50)
    lean = np.linspace(-1, 1, 50)
    models = [
        {
            "name": f"{FAMILIES[i % families]}_{SIZES[i % len(SIZES)]}_{i}",
            "family": None if i == N - 1 else FAMILIES[i % families],
            "value": float(values[i]),
            "alignment": float(y[i]),
        }
        for i in range(N)
    ]
    return {
        "column": "parameters" if log else "score",
        "metric": "mutual_knn",
        "models": models,
        "rank_correlation": 0.91,
        "interval": [0.7, 0.98],
        "p": 0.0001,
        "n_models": N,
        "null_band": {
            "value": grid.tolist(),
            "low": (y.mean() - 0.02 - 0.08 * np.abs(lean)).tolist(),
            "high": (y.mean() + 0.02 + 0.08 * np.abs(lean)).tolist(),
            "line": (y.mean() + 0.12 * lean).tolist(),
            "scale": "log" if log else "linear",
        },
        "against": None,
        "within_lineage": None,
        "verdict": f"alignment rises with parameters (rho = 0.91, 95 % interval [0.70, 0.98], p = 0.0001, {N} models); "
        "within families it rises (rho = 0.82, p = 0.01, 12 models).",
    }


def made_asymmetry(source: str = "dinov2_large", target: str = "clip_base") -> dict:
    """Return the asymmetry of two spaces as a JSON object."""
    places = np.unique(np.geomspace(1, 256, 40).round().astype(int))
    return {
        "source": source,
        "target": target,
        "n": 1024,
        "r2_forward": 0.62,
        "r2_backward": 0.41,
        "r2_forward_interval": [0.6, 0.64],
        "r2_backward_interval": [0.38, 0.44],
        "difference": 0.21,
        "difference_interval": [0.18, 0.24],
        "null_forward": {"mean": -0.003, "high": 0.001},
        "null_backward": {"mean": -0.004, "high": 0.002},
        "shared": {
            "direction": places.tolist(),
            "correlation": (0.95 * np.exp(-places / 60)).tolist(),
            "null": 0.18,
            "above": 100,
            "directions": 256,
        },
        "left_over": {
            "target": {"variance": 0.38, "directions": 90, "predicted": 70},
            "source": {"variance": 0.59, "directions": 120, "predicted": 60},
        },
        "verdict": f"{source} predicts {target} better than the reverse: R² 0.620 against 0.410 (difference 0.210, "
        f"95 % interval [0.180, 0.240]); {target} lacks 59% of the variance of {source}.",
    }


def layered_atlas(depths: dict[str, int] | None = None, seed: int = 0) -> dict:
    """Return an atlas whose spaces are the layers of encoders. Layers at 60 % of the depth are the most similar."""
    depths = depths or {"vit_base": 12, "bert_small": 8, "gpt_tiny": 5}
    named = [(encoder, layer) for encoder, depth in depths.items() for layer in range(1, depth + 1)]
    atlas = made_atlas(len(named), families=None, seed=seed)
    names = [f"{encoder}.layer{layer:02d}" for encoder, layer in named]
    old = [space["name"] for space in atlas["spaces"]]
    depth = np.array([layer / depths[encoder] for encoder, layer in named])
    score = 0.02 + 0.4 * np.exp(-4 * (depth[:, None] - 0.6) ** 2 - 4 * (depth[None] - 0.6) ** 2)
    np.fill_diagonal(score, 1)
    result = atlas["metrics"]["mutual_knn"]
    result["score"] = score.tolist()
    atlas["spaces"] = [
        {"name": name, "dim": 8, "encoder": f"timm:{encoder}", "layer": layer, "family": encoder.split("_")[0]}
        for name, (encoder, layer) in zip(names, named, strict=True)
    ]
    rename = dict(zip(old, names, strict=True))
    atlas["order"] = {"mutual_knn": names}
    atlas["map"] = {"mutual_knn": {rename[k]: v for k, v in atlas["map"]["mutual_knn"].items()}}
    atlas["layers"] = []
    encoders = list(depths)
    for a in range(len(encoders)):
        for b in range(a + 1, len(encoders)):
            own, other = ([i for i, (e, _) in enumerate(named) if e == encoders[x]] for x in (a, b))
            best = max(((i, j) for i in own for j in other), key=lambda at: score[at])
            atlas["layers"].append(
                {
                    "source": encoders[a],
                    "target": encoders[b],
                    "metric": "mutual_knn",
                    "source_layer": named[best[0]][1],
                    "target_layer": named[best[1]][1],
                    "source_space": names[best[0]],
                    "target_space": names[best[1]],
                    "score": float(score[best]),
                    "null": 0.02,
                    "p": 0.005,
                    "q": 0.005,
                    "calibrated": 0.4,
                }
            )
    return atlas


def without_own(matrix: np.ndarray) -> np.ndarray:
    """Return the matrix with NaN on its diagonal."""
    return np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)


def listed(matrix: np.ndarray) -> list[list[float | None]]:
    """Return the matrix as nested lists for JSON, with None for NaN."""
    return [[None if np.isnan(v) else float(v) for v in row] for row in matrix]


FAMILIES = [
    "dinov2",
    "clip",
    "bge",
    "e5",
    "gte",
    "mae",
    "vit",
    "llama",
    "gemma",
    "mistral",
    "olmo",
    "bloomz",
    "jina",
    "nomic",
    "cohere",
    "openai",
    "resnet",
    "squeezenet",
    "mobilenet",
    "swin",
]
SIZES = ("small", "base", "large", "huge", "giant_patch14")
