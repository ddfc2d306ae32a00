"""Score one translation on held-out pairs: what it finds, what it keeps, and what chance would give, per use."""

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.kernels import cka_unbiased, cka_unbiased_null
from repstitch.metrics.neighbours import check_spread, knn, overlap
from repstitch.metrics.null import calibrate, permute_neighbours
from repstitch.metrics.retrieval import hubness, mrr, ranks, recall
from repstitch.names import USES

MAX_POOL = 10_000
RECALLS = (1, 5, 10)
ALIGNMENTS = ("mutual_knn", "cka_unbiased")


def scorecard(
    X: np.ndarray,
    Y: np.ndarray,
    translated: np.ndarray,
    bare: np.ndarray,
    floor: np.ndarray,
    uses: tuple[str, ...] = USES,
    permutations: int = 100,
    seed: int = 0,
) -> dict:
    """Scores of `translated` (n, d_target) against the native rows `Y` (n, d_target), as plain JSON types.

    `X` (n, d_source) are the source rows, `bare` what the map gave before output normalisation, `floor` (d_target,) the
    training targets' mean, the constant that ignores the source. All rows are held out and normalised as the stitcher
    normalises. Retrieval is among these n rows ("pool"); of more than 10,000 a fixed random 10,000 are used. Each use
    also gets its shuffled control: the same scores with the pairs broken, which must be at chance.
    """
    if not set(uses) <= set(USES):
        raise InputError(f"`uses` must be among {', '.join(USES)}; got {', '.join(map(repr, uses))}.")
    n = len(X)
    if n < 2:
        raise InputError(f"At least 2 held-out pairs are needed to score; got {n}.")
    if n > MAX_POOL:
        keep = np.sort(np.random.default_rng(seed).permutation(n)[:MAX_POOL])
        X, Y, translated, bare = X[keep], Y[keep], translated[keep], bare[keep]
    x, y, t, b = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (X, Y, translated, bare))
    if not bool((y != y[0]).any()):
        raise InputError(f"The {len(y)} held-out target rows are all the same, so nothing can be scored.")
    k = min(10, len(x) - 1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    card: dict = {"n": n, "pool": len(x), "k": k, "chance": {f"recall@{r}": min(1.0, r / len(x)) for r in RECALLS}}
    native = knn(y, y, k, own=True)
    same = torch.unique(y, dim=0, return_inverse=True)[1]  # alike by the native rows: equal translations are no copies
    for use in uses:
        queries, gallery = (t, y) if use == "query" else (y, t)
        found = knn(queries, gallery, k, own=True)
        broken = ranks(t[order], y, same) if use == "query" else ranks(y, t[order], same)
        card[use] = _retrieval(ranks(queries, gallery, same)) | {
            f"overlap@{k}": float(overlap(found, native).mean()),
            "hubness_skew": hubness(found, len(gallery)),
            "shuffled": {f"recall@{r}": recall(broken, r) for r in RECALLS},
        }
    card["reconstruction"] = _reconstruction(y, t, b, torch.from_numpy(np.asarray(floor, dtype=np.float32)))
    card["alignment"] = {
        "mutual_knn": {
            "before": _mutual_knn(x, "source", y, native, k, permutations, seed),
            "after": _mutual_knn(t, "translated", y, native, k, permutations, seed),
        },
        "cka_unbiased": {
            "before": _cka(x, y, permutations, seed),
            "after": _cka(t, y, permutations, seed),
        },
    }
    return card


def _retrieval(found: Tensor) -> dict:
    return {f"recall@{r}": recall(found, r) for r in RECALLS} | {
        "mrr": mrr(found),
        "median_rank": float(found.float().quantile(0.5)),
    }


def _reconstruction(y: Tensor, t: Tensor, bare: Tensor, floor: Tensor) -> dict:
    """Cosine with its floor, R² of the bare map on centred vectors, and predicted over native spread."""
    cosine = torch.nn.functional.cosine_similarity
    centred, predicted = y - y.mean(0), bare - bare.mean(0)
    total = centred.square().sum()
    return {
        "cosine": float(cosine(t, y).mean()),
        "cosine_floor": float(cosine(floor.expand_as(y), y).mean()),
        "r2": float(1 - (y - bare).square().sum() / total),
        "norm_ratio": float((predicted.square().sum() / total).sqrt()),
    }


def _mutual_knn(a: Tensor, name: str, y: Tensor, native: Tensor, k: int, permutations: int, seed: int) -> dict:
    try:
        check_spread(a, k, name)
        check_spread(y, k, "target")
    except InputError as error:
        return {"refused": str(error)}
    own = knn(a, a, k, own=True)
    placed = calibrate(float(overlap(own, native).mean()), permute_neighbours(own, native, permutations, seed))
    return {"score": placed.score, "null": placed.null, "p": placed.p, "calibrated": placed.calibrated}


def _cka(a: Tensor, y: Tensor, permutations: int, seed: int) -> dict:
    try:
        placed = calibrate(cka_unbiased(a, y), cka_unbiased_null(a, y, permutations, seed))
    except InputError as error:
        return {"refused": str(error)}
    return {"score": placed.score, "null": placed.null, "p": placed.p, "calibrated": placed.calibrated}


# --- for people -------------------------------------------------------------------------------------------------------


def table(card: dict) -> str:
    """The scorecard as lines of text."""
    uses = [use for use in USES if use in card]
    k, held = card["k"], card.get("held_out", "held-out pairs")
    rows = [(f"{card['n']} {held}, pool of {card['pool']}", *uses, "chance")]
    for r in RECALLS:
        rows.append((f"recall@{r}", *(_num(card[u][f"recall@{r}"]) for u in uses), _num(card["chance"][f"recall@{r}"])))
    chance_overlap = _num(k / max(1, card["pool"] - 1))
    rows.append(("mean reciprocal rank", *(_num(card[u]["mrr"]) for u in uses), ""))
    rows.append(("median rank", *(f"{card[u]['median_rank']:.0f}" for u in uses), f"{card['pool'] / 2:.0f}"))
    rows.append((f"neighbour overlap@{k}", *(_num(card[u][f"overlap@{k}"]) for u in uses), chance_overlap))
    rows.append(("hubness skew", *(f"{card[u]['hubness_skew']:.1f}" for u in uses), ""))
    rows.append(("shuffled pairs, recall@10", *(_num(card[u]["shuffled"]["recall@10"]) for u in uses), ""))
    lines = [_columns(rows)]
    if "control_fit" in card:
        lines.append(f"a map fitted to shuffled pairs: recall@10 {_num(card['control_fit']['recall@10'])} (query)")
    rec = card["reconstruction"]
    lines.append(
        f"cosine {_num(rec['cosine'])} (a constant would score {_num(rec['cosine_floor'])}), R² {_num(rec['r2'])}, "
        f"norm ratio {rec['norm_ratio']:.2f}"
    )
    if "confidence" in card:
        lines.append(_confidence(card["confidence"]))
    align: list[tuple] = [("alignment with the target space", "before", "after", "null", "p")]
    for name in ALIGNMENTS:
        sides = card["alignment"][name]
        before, after = sides["before"], sides["after"]
        refused = [side for side in (before, after) if "refused" in side]
        if refused:
            lines.append(f"{name} not scored: {refused[0]['refused']}")
            continue
        align.append((name, *(_num(v) for v in (before["score"], after["score"], after["null"], after["p"]))))
    return "\n".join([*lines, _columns(align)])


def _confidence(found: dict) -> str:
    """How true what the stitcher says of single rows was on the held-out ones."""
    ranked = "" if found["auroc"] is None else f", AUROC {_num(found['auroc'])}"
    calibrated = "" if found["calibrated"] else ", not calibrated"
    return (
        f"confidence (n = {found['n']}): p_match in a pool of {found['pool']}{calibrated}: calibration error "
        f"{_num(found['ece'])}{ranked}; {found['covered']:.1%} of cosines above the bound ({found['level']:.0%} meant)"
    )


def _num(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # no minus before a zero


def _columns(rows: list[tuple]) -> str:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([str(row[0]).ljust(widths[0]), *(str(c).rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def model_card(config: dict, card: dict) -> str:
    """The README of a stitcher's folder, in the Hub's form, written from its scorecard."""
    source, target = config["source"], config["target"]
    about = [
        f"# {source['name']} → {target['name']}",
        f"Translates embeddings of `{source['name']}` ({source['dim']} dimensions) into the space of "
        f"`{target['name']}` ({target['dim']} dimensions). Method `{config['method']}`, chosen for the objective "
        f"`{config['objective']}`; input normalisation `{config['input_norm']}`, output `{config['output_norm']}`.",
    ]
    if card:
        about += [
            "## Scores",
            f"Measured on {card.get('held_out', 'held-out pairs')} only.",
            f"```\n{table(card)}\n```",
        ]
        if card.get("refit"):
            about.append("The map was fitted once more on all pairs after these scores were taken.")
    about += [
        "## Use",
        '```python\nfrom repstitch.stitcher import load\n\ntranslated = load("PATH").translate(vectors)\n```',
        "It works one way only, for vectors of that source space only. A translated vector is an estimate: where the "
        "source holds less than the target, what is missing cannot be brought back.",
        "A vector in a known space can be inverted to its text or image; treat translated vectors like the data "
        "they were made from.",
    ]
    front = "---\nlibrary_name: repstitch\ntags:\n- embeddings\n- model-stitching\n---\n\n"
    return front + "\n\n".join(about) + "\n"
