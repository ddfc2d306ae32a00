"""What each method retrieves on real pairs: `python benchmarks/fidelity.py`. Prints the table and keeps it in results/.

Sixty, fifteen, twenty-five per cent split by hashed id (captions by photo), five split seeds. Everything is chosen on
the selecting half of validation; the numbers are of test rows: query use, both sides at unit length, cosine.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from machine import header, markdown
from real_pairs import PAIRS, load

from repstitch.fit.contrastive import Recipe
from repstitch.fit.judge import Judge
from repstitch.fit.select import METHODS, Problem
from repstitch.metrics.neighbours import knn, overlap
from repstitch.metrics.retrieval import ranks, recall
from repstitch.pairs import Pairs, split
from repstitch.stitcher import normalise

RESULTS = Path(__file__).parent / "results"
SCORES = ("recall@1", "recall@10", "overlap@10", "cosine")


def measure(pairs: Pairs, seed: int) -> dict[str, dict]:
    """Every method's test scores on one split."""
    X, Y = (normalise(torch.from_numpy(side), "unit") for side in (pairs.X, pairs.Y))
    parts = split(pairs, seed=seed)
    judge = Judge("match", X[parts.select], Y[parts.select], Y[parts.train])
    problem = Problem(X[parts.train], Y[parts.train], judge, Recipe(seed=seed))
    x, y = X[parts.test], Y[parts.test]
    native = knn(y, y, 10, own=True)
    table = {}
    for method, fit in METHODS.items():
        began = time.perf_counter()
        chosen = fit(problem)
        seconds = time.perf_counter() - began
        with torch.inference_mode():
            translated = chosen.map(x)
        found = ranks(translated, y)
        table[method] = {
            "recall@1": recall(found, 1),
            "recall@10": recall(found, 10),
            "overlap@10": float(overlap(knn(translated, y, 10, own=True), native).mean()),
            "cosine": float(torch.nn.functional.cosine_similarity(translated, y).mean()),
            "seconds": seconds,
            "pool": len(y),
            "settings": chosen.settings,
        }
    return table


def report(measured: dict[str, list[dict]]) -> str:
    """Means over the seeds, and each pair's best contrastive map against its reference."""
    rows, verdicts = [], []
    for name, runs in measured.items():
        pool = round(float(np.mean([run["ridge"]["pool"] for run in runs])))
        mean = {m: {s: float(np.mean([run[m][s] for run in runs])) for s in SCORES} for m in METHODS}
        cells = [" / ".join(f"{mean[m][s]:.3f}" for s in SCORES) for m in METHODS]
        rows.append([f"{name} ({pool})", *cells])
        best = max(("linear", "mlp"), key=lambda m: mean[m]["recall@1"])
        score, reference = mean[best]["recall@1"], PAIRS[name].reference
        if reference is None:
            continue
        error = (score * (1 - score) / pool) ** 0.5
        spread = float(np.std([run[best]["recall@1"] for run in runs]))
        met = score >= 0.97 * reference or score >= reference - 2 * error
        shown = f"{score:.3f} ± {spread:.3f}", f"{error:.3f}", f"{reference:.3f}", f"{score / reference:.2f}"
        verdicts.append([name, best, *shown, "yes" if met else "**no**"])
    return (
        f"\nMeans over {len(next(iter(measured.values())))} split seeds: R@1 / R@10 / overlap@10 / cosine; mean pool "
        "in brackets. Every setting is chosen on validation rows.\n\n"
        + markdown(["pair (pool)", *METHODS], rows)
        + "\nThe better of `linear` and `mlp` against the reference (± is the spread over seeds; s.e. is that of one "
        "split's R@1). The bar is 0.97 of the reference, or within two standard errors of it.\n\n"
        + markdown(["pair", "method", "R@1", "s.e.", "reference", "ratio", "met"], verdicts)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--raw", type=Path, help="also keep every run's numbers, and take up what it already holds")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    kept = json.loads(args.raw.read_text()) if args.raw and args.raw.exists() else {}
    measured: dict[str, list[dict]] = {}
    for name in args.pairs:
        pairs = load(PAIRS[name])
        for seed in range(args.seeds):
            key = f"{name}/{seed}"
            if key not in kept:
                kept[key] = measure(pairs, seed)
                if args.raw:
                    args.raw.write_text(json.dumps(kept))
            measured.setdefault(name, []).append(kept[key])
            scores = ", ".join(f"{m} {kept[key][m]['recall@1']:.3f} {kept[key][m]['seconds']:.0f}s" for m in METHODS)
            print(f"{key}: {scores}", file=sys.stderr, flush=True)
    text = header("Fidelity on real pairs", "python benchmarks/fidelity.py") + report(measured)
    if args.pairs == list(PAIRS):
        (RESULTS / "fidelity.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
