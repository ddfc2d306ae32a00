"""Score one translation on held-out pairs: what it finds, what it keeps, and what chance would give, per use."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.metrics.kernels import centred
from repstitch.metrics.lists import held, overlap
from repstitch.metrics.neighbours import check_spread, knn
from repstitch.metrics.null import calibrate, random_orders, shared_weight
from repstitch.metrics.resample import interval, resampled_means
from repstitch.metrics.retrieval import hubness, recall, search
from repstitch.metrics.table import measure
from repstitch.names import USES
from repstitch.verdict import MIN_QUERIES, Thresholds, not_judged, standing, verdict

MAX_POOL = 10_000
RECALLS = (1, 5, 10)
SHORTLIST = 100
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
    thresholds: Thresholds | None = None,
    near: np.ndarray | None = None,
) -> dict:
    """Scores of `translated` (n, d_target) against the native rows `Y` (n, d_target), as plain JSON types.

    `X` (n, d_source) are the source rows, `bare` what the map gave before output normalisation, `floor` (d_target,) the
    training targets' mean, the constant that ignores the source. All rows are held out and normalised as the stitcher
    normalises. Retrieval is among these n rows ("pool"); of more than 10,000 a fixed random 10,000 are used. `near`
    (n,) marks rows that are near duplicates of training rows: recall and overlap are then also given without these
    queries, in the same gallery.

    Each use holds how well counterparts are found and the target's own neighbours are kept, with 95 % `intervals` over
    queries; recall of the controls (`shuffled` pairs, the `constant` floor, a `naive` swap of untranslated rows where
    the dimensions agree); what it is worth beside its `references`, see `_worth`; and the `verdict`.
    """
    if not set(uses) <= set(USES):
        raise InputError(f"`uses` must be among {', '.join(USES)}; got {', '.join(map(repr, uses))}.")
    n = len(X)
    if n < 2:
        raise InputError(f"At least 2 held-out pairs are needed to score; got {n}.")
    near = None if near is None else np.asarray(near)
    if near is not None and (near.shape != (n,) or near.dtype != bool):
        raise InputError(f"`near` must hold one bool a row ({n}); got {near.dtype} of shape {near.shape}.")
    if n > MAX_POOL:
        keep = np.sort(np.random.default_rng(seed).permutation(n)[:MAX_POOL])
        X, Y, translated, bare = X[keep], Y[keep], translated[keep], bare[keep]
        near = None if near is None else near[keep]
    x, y, t, b = (torch.from_numpy(np.ascontiguousarray(side, dtype=np.float32)) for side in (X, Y, translated, bare))
    mean = torch.from_numpy(np.asarray(floor, dtype=np.float32))
    if not bool((y != y[0]).any()):
        raise InputError(f"The {len(y)} held-out target rows are all the same, so nothing can be scored.")
    pool = len(x)
    k, depth = min(10, pool - 1), min(SHORTLIST, pool - 1)
    own = {"source": knn(x, x, depth, own=True), "target": knn(y, y, depth, own=True)}
    native = own["target"][:, :k]
    doubt = _doubt(x, y, k)
    card: dict = {
        "n": n,
        "pool": pool,
        "k": k,
        "chance": {f"recall@{r}": min(1.0, r / pool) for r in RECALLS},
        "hubness_native": hubness(native, pool),
    }
    without: dict = {} if near is None else {"left_out": int(near.sum())}
    for use in uses:
        found = _searches(use, x, y, t, mean, depth, seed)
        placed, lists = found["translated"]
        rows = {f"recall@{r}": (placed <= r).numpy() for r in RECALLS}
        rows |= {"mrr": (1.0 / placed).numpy(), f"overlap@{k}": overlap(lists[:, :k], native).numpy()}
        spread = resampled_means(np.column_stack(list(rows.values())), seed=seed)
        card[use] = {name: float(row.mean()) for name, row in rows.items()} | {
            "median_rank": float(placed.float().quantile(0.5)),
            "hubness_skew": hubness(lists[:, :k], pool),
            "intervals": {name: interval(draws) for name, draws in zip(rows, spread.T, strict=True)},
        }
        for name in ("shuffled", "constant", "naive"):
            if name in found:
                card[use][name] = {f"recall@{r}": recall(found[name][0], r) for r in RECALLS}
        card[use] |= _worth(use, found, own, k, doubt, thresholds or Thresholds(), seed)
        if near is not None and not near.all():
            kept = (f"recall@{RECALLS[0]}", f"recall@{RECALLS[-1]}", f"overlap@{k}")
            without[use] = {name: float(rows[name][~near].mean()) for name in kept}
    if near is not None:
        card["without_near_duplicates"] = without
    card["reconstruction"] = _reconstruction(y, t, b, mean)
    translated_own = knn(t, t, k, own=True)
    card["alignment"] = {
        "mutual_knn": {
            "before": _mutual_knn(x, "source", own["source"][:, :k], y, native, k, permutations, seed),
            "after": _mutual_knn(t, "translated", translated_own, y, native, k, permutations, seed),
        },
        "cka_unbiased": {
            "before": _cka(x, y, permutations, seed),
            "after": _cka(t, y, permutations, seed),
        },
    }
    return card


def _searches(use: str, x: Tensor, y: Tensor, t: Tensor, mean: Tensor, depth: int, seed: int) -> dict[str, Any]:
    """What a use finds with the translation, and with each control in its place: the rank (n,) of each query's
    counterpart, and its nearest others (n, depth), None where all are equally near."""
    same = torch.unique(y, dim=0, return_inverse=True)[1]  # alike by the native rows: equal translations are no copies
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    stand_ins = {"translated": t, "shuffled": t[order]} | ({"naive": x} if x.shape[1] == y.shape[1] else {})
    # In a gallery of one row many times over every row ties, and a tie counts against the query.
    tied = 1 + len(y) - torch.bincount(same)[same], None
    if use == "corpus":
        return {name: search(y, rows, depth, same) for name, rows in stand_ins.items()} | {"constant": tied}
    constant = search(mean[None], y, depth, same) if bool(mean.any()) else tied
    return {name: search(rows, y, depth, same) for name, rows in stand_ins.items()} | {"constant": constant}


def _worth(
    use: str,
    found: dict[str, Any],
    own: dict[str, Tensor],
    k: int,
    doubt: str | None,
    thresholds: Thresholds,
    seed: int,
) -> dict:
    """The `references` of one use and its `verdict`.

    What a use should give back are the neighbours that full re-embedding would: in corpus use the target's own, for old
    vectors would be embedded with the target model; in query use the source's own, for it is the new model there, and
    the index would be embedded with it. So full re-embedding scores 1 (`ceiling`), and keeping the old model scores
    mutual_knn of the two spaces (`keep_old`: the old model's own neighbours). Each is scored twice: overlap@k is the
    share of the k true neighbours among the first k found, topk_in_m their share among the first m (100, or all others
    of a smaller pool), as candidates for a second stage. `references` is left out where neighbours are arbitrary.
    """
    if doubt is not None:
        return {"verdict": not_judged(doubt, thresholds)}
    truth, old = ("source", "target") if use == "query" else ("target", "source")
    pool, depth = own[truth].shape
    short = f"top{k}_in_{depth}"
    chance = {f"overlap@{k}": k / (pool - 1), short: depth / (pool - 1)}
    lists = {name: searched[1] for name, searched in found.items()} | {"keep_old": own[old], "ceiling": own[truth]}
    worth: dict = {"truth": truth, "chance": chance}
    for shown, reach in ((f"overlap@{k}", k), (short, depth)):
        worth[shown] = standing(
            {
                name: np.full(pool, chance[shown]) if seen is None else held(own[truth][:, :k], seen[:, :reach]).numpy()
                for name, seen in lists.items()
            },
            seed,
        )
    if pool < MIN_QUERIES:
        said = not_judged(f"{pool} queries are too few to judge by; at least {MIN_QUERIES} are needed.", thresholds)
    else:
        deciding, neighbours = worth[f"overlap@{k}"], f" with the {truth}'s own neighbours"
        said = verdict(f"overlap@{k}", deciding, short, worth[short], thresholds, chance[short], neighbours)
    return {"references": worth, "verdict": said}


def _doubt(x: Tensor, y: Tensor, k: int) -> str | None:
    """Why the neighbours of either space mean nothing, if they do."""
    try:
        check_spread(x, k, "source")
        check_spread(y, k, "target")
    except InputError as error:
        return str(error)
    return None


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


def _mutual_knn(
    a: Tensor, name: str, own: Tensor, y: Tensor, native: Tensor, k: int, permutations: int, seed: int
) -> dict:
    try:
        check_spread(a, k, name)
        check_spread(y, k, "target")
    except InputError as error:
        return {"refused": str(error)}
    draws = shared_weight([own, native], [(0, 1)], random_orders(len(own), permutations, seed))[0] / own.numel()
    return asdict(calibrate(float(overlap(own, native).mean()), draws))


def _cka(a: Tensor, y: Tensor, permutations: int, seed: int) -> dict:
    try:
        found = measure("cka_unbiased", [centred(a), centred(y, name="Y")], [(0, 1)], permutations, seed).pair(0)
    except InputError as error:
        return {"refused": str(error)}
    return {name: value for name, value in found.items() if name != "se"}


# --- for people -------------------------------------------------------------------------------------------------------


def table(card: dict) -> str:
    """The scorecard as lines of text; what a card of an earlier release does not hold is left out."""
    uses = [use for use in USES if use in card]
    k, held_out = card["k"], card.get("held_out", "held-out pairs")
    rows = [(f"{card['n']} {held_out}, pool of {card['pool']}", *uses, "chance")]
    for r in RECALLS:
        rows.append(
            (f"recall@{r}", *(_scored(card[u], f"recall@{r}") for u in uses), num(card["chance"][f"recall@{r}"]))
        )
    chance_overlap = num(k / max(1, card["pool"] - 1))
    rows.append(("mean reciprocal rank", *(_scored(card[u], "mrr") for u in uses), ""))
    rows.append(("median rank", *(f"{card[u]['median_rank']:.0f}" for u in uses), f"{card['pool'] / 2:.0f}"))
    rows.append((f"neighbour overlap@{k}", *(_scored(card[u], f"overlap@{k}") for u in uses), chance_overlap))
    native = f" (native: {card['hubness_native']:.1f})" if "hubness_native" in card else ""
    rows.append((f"hubness skew{native}", *(f"{card[u]['hubness_skew']:.1f}" for u in uses), ""))
    rows.append(("shuffled pairs, recall@10", *(num(card[u]["shuffled"]["recall@10"]) for u in uses), ""))
    for name, words in (("constant", "constant mean"), ("naive", "naive swap")):
        if uses and all(name in card[u] for u in uses):
            rows.append((f"{words}, recall@10", *(num(card[u][name]["recall@10"]) for u in uses), ""))
    lines = [columns(rows)]
    if "control_fit" in card:
        lines.append(f"a map fitted to shuffled pairs: recall@10 {num(card['control_fit']['recall@10'])} (query)")
    if "without_near_duplicates" in card:
        lines.append(_without_near(card["without_near_duplicates"], uses))
    rec = card["reconstruction"]
    lines.append(
        f"cosine {num(rec['cosine'])} (a constant would score {num(rec['cosine_floor'])}), R² {num(rec['r2'])}, "
        f"norm ratio {rec['norm_ratio']:.2f}"
    )
    if "confidence" in card:
        lines.append(_confidence(card["confidence"]))
    if "probe_transfer" in card:
        lines.append(_probe_transfer(card["probe_transfer"]))
    align: list[tuple] = [("alignment with the target space", "before", "after", "null", "p")]
    for name in ALIGNMENTS:
        sides = card["alignment"][name]
        before, after = sides["before"], sides["after"]
        refused = [side for side in (before, after) if "refused" in side]
        if refused:
            lines.append(f"{name} not scored: {refused[0]['refused']}")
            continue
        align.append((name, *(num(v) for v in (before["score"], after["score"], after["null"], after["p"]))))
    lines.append(columns(align))
    if card.get("spectrum"):
        lines.append(spectrum_line(card["spectrum"]))
    lines += _standings(card, uses)
    if "relevance" in card:
        found = card["relevance"]
        lines.append(
            f"judged among {found['documents']} documents ({found['documents_seen_in_training']} seen in training); "
            f"left out: {found['queries_seen_in_training']} queries seen in training, "
            f"{found['queries_without_relevant']} without a relevant document; "
            f"not in the files: {found['unknown_queries']} queries, {found['unknown_documents']} documents"
        )
    judged = [(use, card[use]["verdict"]) for use in uses if "verdict" in card[use]]
    if judged:
        lines += ["", *(f"{use}: {said['verdict'].upper()}. {said['why']}" for use, said in judged)]
    if len(card.get("candidates", ())) > 1:
        lines += ["", columns(_candidates(card["candidates"]))]
    return "\n".join(lines)


def spectrum_line(spectrum: dict) -> str:
    """How many directions the two spaces share, in one sentence."""
    return (
        f"{spectrum['above']} of {spectrum['directions']} canonical directions correlate on held-out pairs more than "
        f"any do when the pairs are shuffled ({num(spectrum['null'])})"
    )


def _standings(card: dict, uses: list[str]) -> list[str]:
    """What each use is worth beside its references: by overlap, and by relevance judgements where there are some."""
    judged = [u for u in uses if "references" in card[u]]
    lines = []
    for parts, title in (
        ([card[u]["references"] for u in judged], "keeps the neighbours of"),
        ([card["relevance"][u] for u in uses] if "relevance" in card else [], "finds what is relevant"),
    ):
        if not parts:
            continue
        over = [f"the {part['truth']}'s own" if "truth" in part else f"{part['queries']} queries" for part in parts]
        names = judged if "truth" in parts[0] else uses
        rows: list[tuple] = [(title, *(f"{u}: {o}" for u, o in zip(names, over, strict=True)))]
        for shown in [m for m in parts[0] if isinstance(parts[0][m], dict) and "translated" in parts[0][m]]:
            for name, words in REFERENCES.items():
                if all(part[shown].get(name) for part in parts):
                    label = f"{shown}, translated" if name == "translated" else f"  {words}"
                    rows.append((label, *(with_interval(part[shown][name]) for part in parts)))
        lines += ["", columns(rows)]
    return lines


def _without_near(without: dict, uses: list[str]) -> str:
    said = f"without the {without['left_out']} near duplicates of training rows: "
    each = [
        f"{use} " + ", ".join(f"{name} {num(value)}" for name, value in without[use].items())
        for use in uses
        if use in without
    ]
    return said + ("; ".join(each) or "no query is left")


def _candidates(candidates: list[dict]) -> list[tuple]:
    """The best of each method by its validation score, the chosen one marked."""
    best: dict[str, dict] = {}
    score = lambda one: -math.inf if one["validation"] is None else one["validation"]  # noqa: E731
    for one in candidates:
        held = best.get(one["method"])
        if one["chosen"] or held is None or (not held["chosen"] and score(one) > score(held)):
            best[one["method"]] = one
    rows: list[tuple] = [("method, at its best on validation", "score", "")]
    for method, one in best.items():
        said = "broke" if one["validation"] is None else num(one["validation"])
        rows.append((method, said, "chosen" if one["chosen"] else ""))
    return rows


def _scored(scores: dict, name: str) -> str:
    """A score, with its interval where there is one."""
    low_high = scores.get("intervals", {}).get(name)
    return num(scores[name]) if low_high is None else with_interval({"score": scores[name], "interval": low_high})


def with_interval(found: dict) -> str:
    """A score with its interval after it."""
    low, high = found["interval"]
    return f"{num(found['score'])} [{num(low)}, {num(high)}]"


def _confidence(found: dict) -> str:
    """How true what the stitcher says of single rows was on the held-out ones."""
    ranked = "" if found["auroc"] is None else f", AUROC {num(found['auroc'])}"
    calibrated = "" if found["calibrated"] else ", not calibrated"
    return (
        f"confidence (n = {found['n']}): p_match in a pool of {found['pool']}{calibrated}: calibration error "
        f"{num(found['ece'])}{ranked}; {found['covered']:.1%} of cosines above the bound ({found['level']:.0%} meant)"
    )


def _probe_transfer(found: dict) -> str:
    """How a probe of the target space does on the source's own rows, carried back through the map."""
    accuracy, kept = found["accuracy"], found["retention"]
    share = "" if kept is None else f", a share of {with_interval(kept)}"
    return (
        f"a probe of {len(found['classes'])} classes of {found['source']}, carried to {found['target']} "
        f"({found['n_test']} unseen rows): accuracy {num(accuracy['carried']['score'])} where one trained there has "
        f"{num(accuracy['native']['score'])}{share}; through shuffled pairs {num(accuracy['shuffled']['score'])}, "
        f"majority class {num(accuracy['majority']['score'])}"
    )


def num(value: float) -> str:
    """Three places."""
    return f"{round(value, 3) + 0.0:.3f}"  # no minus before a zero


def columns(rows: list[tuple]) -> str:
    """Rows as lines, the first column to the left, the others to the right."""
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


REFERENCES = {
    "translated": "translated",
    "keep_old": "keep the old model",
    "ceiling": "full re-embedding",
    "naive": "naive swap",
    "constant": "constant mean",
    "shuffled": "shuffled pairs",
    "over_keep_old": "above keeping the old model",
    "retention": "share of full re-embedding",
}
