"""TODO evaluation.report."""

import math

from repstitch.evaluation.scoring import RECALLS
from repstitch.names import USES
from repstitch.text import columns, num

ALIGNMENTS = ("mutual_knn", "cka_unbiased")


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
