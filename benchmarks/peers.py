"""Compare `auto` with other packages on the same pairs: `python benchmarks/peers.py` (needs the extra `bench`).

Every contender is fitted to the same training rows at unit length. Settings that a package leaves open are chosen on
the half of validation that is used for selection, separately for each score. The numbers are of test rows: source rows,
translated or made comparable in the package's own way, against the target rows of the test split, by cosine. To measure
on one thread, run with OMP_NUM_THREADS=1 and `--threads 1`.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import growth_mb, header, markdown
from real_pairs import PAIRS, load
from torch import Tensor

from repstitch.embeddings.normalising import normalise
from repstitch.embeddings.pairs import Pairs
from repstitch.embeddings.splitting import split
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.recipe import Recipe
from repstitch.fit.selection import Problem, select
from repstitch.metrics.neighbour_lists import overlap
from repstitch.metrics.neighbours import knn
from repstitch.metrics.retrieval import ranks
from repstitch.names import METHODS

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ("match", "neighbours")
COST_PAIR = "fashion mnv1→mnv2"
CAP = 60
DIGITS = "0123456789ab"
PEER_PACKAGES = ("isotrieve", "latentis", "rat-embed")

Use = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Data:
    """Unit rows of one split. `rows` are the indices of the test pairs, `clusters` the group of each test pair."""

    train: tuple[Tensor, Tensor]
    select: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    rows: np.ndarray
    clusters: np.ndarray
    seed: int


@dataclass(frozen=True)
class Contender:
    """A way to fit, and a note on it for the reader.

    `fit` takes float32 arrays and a seed. It returns a list of (setting, use), where `use` takes source rows
    (n, d_source) and target rows (m, d_target) and returns queries and a gallery in the same space.
    """

    fit: Callable[[np.ndarray, np.ndarray, int], list[tuple[Any, Use]]]
    how: str


def prepare(pairs: Pairs, seed: int) -> Data:
    X, Y = (normalise(torch.from_numpy(side), "unit") for side in (pairs.X, pairs.Y))
    parts = split(pairs, seed=seed)
    groups = pairs.ids if pairs.groups is None else pairs.groups
    clusters = np.unique(groups.astype(str), return_inverse=True)[1]
    train, select, test = ((X[part], Y[part]) for part in (parts.train, parts.select, parts.test))
    return Data(train, select, test, parts.test, clusters[parts.test], seed)


def translating(transform: Callable[[np.ndarray], Any]) -> Use:
    """Return the use of a package that maps source rows into the target space."""

    def use(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return torch.as_tensor(np.asarray(transform(x.numpy())), dtype=torch.float32), y

    return use


def isotrieve(name: str) -> Callable:
    def fit(X: np.ndarray, Y: np.ndarray, seed: int) -> list[tuple[Any, Use]]:
        mapping = getattr(import_module("isotrieve.mapping"), name)(seed=seed).fit(X, Y)
        return [(getattr(mapping, "_chosen_alpha", None), translating(mapping.transform))]

    return fit


def isotrieve_contrastive(X: np.ndarray, Y: np.ndarray, seed: int) -> list[tuple[Any, Use]]:
    # Switch off the search, which starts with one evaluation of n² similarities for each weight: hours on these pairs.
    vars(import_module("isotrieve.mapping.contrastive"))["_NM_MAX_PARAMS"] = 0
    return isotrieve("ContrastiveMapping")(X, Y, seed)


def latentis(align: str) -> Callable:
    def fit(X: np.ndarray, Y: np.ndarray, seed: int) -> list[tuple[Any, Use]]:
        aligner, base = import_module("latentis.transform.translate.aligner"), import_module("latentis.transform.base")
        solve = import_module("latentis.transform.translate.functional")
        if align == "procrustes":
            translator = aligner.Procrustes()
        else:
            inner = (
                aligner.SGDAffineAligner(num_steps=300, lr=1e-3, random_seed=seed)
                if align == "sgd"
                else aligner.MatrixAligner("lstsq", solve.lstsq_align_state)
            )
            scaling = {"x_transform": base.StandardScaling(), "y_transform": base.StandardScaling()}
            translator = aligner.Translator(inner, **scaling)
        translator.fit(torch.from_numpy(X), torch.from_numpy(Y))
        return [(None, lambda x, y: (translator.transform(x)[0].detach(), y))]

    return fit


def rat(anchors: int) -> Callable:
    def fit(X: np.ndarray, Y: np.ndarray, seed: int) -> list[tuple[Any, Use]]:
        package, sampling = import_module("rat"), import_module("rat.sampling")
        chosen = sampling.farthest_point_sampling(X, min(anchors, len(X)), seed=seed)
        tried = []
        for scores in ("auto", "always"):
            translator = package.RATranslator(kernel="poly", normalize=scores).fit_embeddings(X[chosen], Y[chosen])

            def use(x: Tensor, y: Tensor, translator=translator) -> tuple[Tensor, Tensor]:
                sides = translator.transform(x.numpy(), "a"), translator.transform(y.numpy(), "b")
                return torch.from_numpy(sides[0]), torch.from_numpy(sides[1])

            tried.append((scores, use))
        return tried

    return fit


def sklearn_ridge(X: np.ndarray, Y: np.ndarray, seed: int) -> list[tuple[Any, Use]]:
    from sklearn.linear_model import RidgeCV

    model: Any = RidgeCV(alphas=np.logspace(-5, 2, 15)).fit(X, Y)
    return [(model.alpha_, translating(model.predict))]


def sklearn_components(name: str, components: tuple[int, ...]) -> Callable:
    """Return a fit of PLS or CCA. It fits one component after another, so the largest fit contains the smaller ones."""

    def fit(X: np.ndarray, Y: np.ndarray, seed: int) -> list[tuple[Any, Use]]:
        most = min(components[-1], X.shape[1], Y.shape[1], len(X) - 1)
        model = getattr(import_module("sklearn.cross_decomposition"), name)(n_components=most).fit(X, Y)
        tried = []
        for k in sorted({min(k, most) for k in components}):
            W = model.x_rotations_[:, :k] @ model.y_loadings_[:, :k].T / model._x_std[:, None] * model._y_std
            tried.append((k, translating(lambda x, W=W: (x - model._x_mean) @ W + model._y_mean)))
        return tried

    return fit


@contextmanager
def capped(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after `seconds` of processor time, which does not depend on other load on the machine."""

    def stop(*_):
        raise TimeoutError(f"over {seconds:.0f} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def score(use: Use, x: Tensor, y: Tensor, extra: Tensor | None = None) -> dict[str, Tensor]:
    """Return each row's rank and its share of native neighbours, in a gallery of the target rows and `extra` rows."""
    gallery = y if extra is None else torch.cat([y, extra])
    queries, searched = use(x, gallery)
    native = knn(y, gallery, 10, exclude_self=True)
    return {"rank": ranks(queries, searched), "overlap": overlap(knn(queries, searched, 10, exclude_self=True), native)}


def packed(scores: dict[str, Tensor]) -> dict[str, str]:
    """Encode scores as one digit for each row: its rank (11 if beyond 10), and its native neighbours out of 10."""
    digits = scores["rank"].clamp(max=11), (10 * scores["overlap"]).round().long()
    return {key: "".join(DIGITS[i] for i in values) for key, values in zip(("rank", "shared"), digits, strict=True)}


def measure_peer(contender: Contender, data: Data) -> dict[str, Any]:
    """Score a contender on the test rows of one split, or return why its fit failed.

    Ranks are those of the setting chosen for `match`, neighbours those of the setting chosen for `neighbours`.
    """
    x, y = data.train
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with capped(CAP):
                tried = contender.fit(x.numpy(), y.numpy(), data.seed)
        except (TimeoutError, ValueError, RuntimeError, np.linalg.LinAlgError) as error:
            return {"failed": f"{error}".splitlines()[0], "seconds": time.perf_counter() - began}
        seconds = time.perf_counter() - began
        best = dict.fromkeys(OBJECTIVES, tried[0])
        if len(tried) > 1:
            held = [score(use, *data.select, extra=y) for _, use in tried]
            worth = {
                "match": [float((1 / h["rank"]).mean()) for h in held],
                "neighbours": [float(h["overlap"].mean()) for h in held],
            }
            best = {key: tried[int(np.argmax(worth[key]))] for key in OBJECTIVES}
        match, neighbours = (score(best[key][1], *data.test) for key in OBJECTIVES)
    return packed({"rank": match["rank"], "overlap": neighbours["overlap"]}) | {
        "seconds": seconds,
        "settings": {key: best[key][0] for key in OBJECTIVES},
        "warnings": sorted({f"{w.message}".split(". ")[0].split("\n")[0] for w in caught}),
    }


def problem_of(data: Data, objective: str) -> Problem:
    validation = ValidationObjective(objective, *data.select, data.train[1])
    return Problem(*data.train, validation, Recipe(seed=data.seed))


def measure_auto(objective: str, data: Data) -> dict[str, Any]:
    """Score the map that `auto` chose for this objective, and all its candidates, on the test rows."""

    def use(map) -> Use:
        def translate(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            with torch.inference_mode():
                return map(x), y

        return translate

    began = time.perf_counter()
    chosen, tried = select(problem_of(data, objective), "auto")
    seconds = time.perf_counter() - began
    rows = {c.method: packed(score(use(c.map), *data.test)) for c in tried}
    return packed(score(use(chosen.map), *data.test)) | {
        "seconds": seconds,
        "settings": {"method": chosen.method},
        "candidates": rows,
    }


def measure_cost(name: str) -> None:
    """Print the seconds and the memory growth of one fit. Run in a separate process."""
    data = prepare(load(PAIRS[COST_PAIR]), 0)
    for module in IMPORTS.get(name.split(" ")[0], ()):
        import_module(module)
    grown = growth_mb()
    began = time.perf_counter()
    if name in OURS:
        select(problem_of(data, OURS[name]), "auto")
    else:
        try:
            with warnings.catch_warnings(), capped(CAP):
                warnings.simplefilter("ignore")
                CONTENDERS[name].fit(data.train[0].numpy(), data.train[1].numpy(), 0)
        except (TimeoutError, ValueError) as error:
            return print(json.dumps({"failed": f"{error}".splitlines()[0]}))
    print(json.dumps({"seconds": time.perf_counter() - began, "mb": grown()}))


def values(run: dict, what: str) -> np.ndarray:
    """Return the value of each row of one run: "R@1", "R@10" or "overlap@10"."""
    digits = np.array([DIGITS.index(d) for d in run["shared" if what == "overlap@10" else "rank"]])
    return digits / 10 if what == "overlap@10" else (digits <= int(what[2:])).astype(float)


@dataclass(frozen=True)
class Difference:
    """A mean paired difference and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        low, high = self.mean - 1.96 * self.error, self.mean + 1.96 * self.error
        return f"{self.mean:+.3f} [{low:+.3f}, {high:+.3f}]"


class Runs:
    """All measurements. `kept` maps "pair/seed/contender" to a run, and "pair/seed" to the indices of the test rows."""

    def __init__(self, kept: dict[str, dict], pairs: list[str], seeds: int):
        self.kept, self.pairs, self.seeds = kept, pairs, seeds

    def of(self, pair: str, name: str) -> dict[int, dict]:
        """Return the runs of a contender, or of a candidate of `auto` ("auto match: ridge"), by seed."""
        whole, _, candidate = name.partition(": ")
        runs = {seed: self.kept.get(f"{pair}/{seed}/{whole}") for seed in range(self.seeds)}
        if candidate:
            runs = {seed: run["candidates"].get(candidate) for seed, run in runs.items() if run}
        return {seed: run for seed, run in runs.items() if run and "rank" in run}

    def mean(self, pair: str, name: str, what: str) -> float | None:
        runs = self.of(pair, name)
        return float(np.mean([values(run, what).mean() for run in runs.values()])) if runs else None

    def overall(self, name: str, what: str) -> float | None:
        means = [self.mean(pair, name, what) for pair in self.pairs]
        return None if None in means else float(np.mean([m for m in means if m is not None]))

    def difference(self, pair: str, ours: str, theirs: str, what: str) -> Difference | None:
        """Return the mean difference of two contenders on one pair, with its standard error.

        A row's difference is averaged over the seeds that test it, then the mean is taken over distinct rows. Rows of
        one cluster (the captions of a photo) count as one observation in the standard error.
        """
        a, b = self.of(pair, ours), self.of(pair, theirs)
        total: dict[int, list[float]] = {}
        cluster: dict[int, int] = {}
        for seed in a.keys() & b.keys():
            identity = self.kept[f"{pair}/{seed}"]
            gaps = values(a[seed], what) - values(b[seed], what)
            for row, group, gap in zip(identity["rows"], identity["clusters"], gaps, strict=True):
                total.setdefault(row, []).append(float(gap))
                cluster[row] = group
        if not total:
            return None
        means = np.array([np.mean(gaps) for gaps in total.values()])
        groups = np.unique(np.array([cluster[row] for row in total]), return_inverse=True)[1]
        sums = np.bincount(groups, weights=means - means.mean())
        error = (np.square(sums).sum() * len(sums) / (len(sums) - 1)) ** 0.5 / len(means)
        return Difference(float(means.mean()), float(error))


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def table(runs: Runs, names: list[str], what: str) -> str:
    best = {pair: max((runs.mean(pair, n, what) or 0.0) for n in names) for pair in runs.pairs}
    rows = []
    for name in names:
        means = {pair: runs.mean(pair, name, what) for pair in runs.pairs}
        cells = [f"**{shown(m)}**" if m is not None and m >= best[pair] else shown(m) for pair, m in means.items()]
        rows.append([name, *cells, shown(runs.overall(name, what))])
    return markdown([what, *runs.pairs, "mean"], rows)


def bars(runs: Runs, peers: list[str]) -> str:
    """Return the table of the bars: whether each is met, and the case that comes closest to missing it."""
    rows = []
    for ours, what, factor in (("auto match", "R@1", 1.5), ("auto neighbours", "overlap@10", 1.0)):
        gaps = {
            (pair, peer): gap
            for pair in runs.pairs
            for peer in peers
            if (gap := runs.difference(pair, ours, peer, what)) is not None
        }
        below = [case for case, gap in gaps.items() if gap.mean + 1.96 * gap.error < 0]
        if gaps:
            worst = min(gaps, key=lambda case: gaps[case].mean / (gaps[case].error or 1e-9))
            detail = f"{len(gaps)} comparisons, {len(below)} below; worst: {worst[1]} on {worst[0]}, {gaps[worst]}"
            rows.append([f"`{ours}` not significantly below any peer in {what} on any pair", yes(not below), detail])
        means = {peer: mean for peer in peers if (mean := runs.overall(peer, what)) is not None}
        mean = runs.overall(ours, what)
        if means and mean is not None:
            best = max(means, key=lambda peer: means[peer])
            each = [max(runs.mean(pair, peer, what) or 0.0 for peer in peers) for pair in runs.pairs]
            detail = (
                f"{mean:.3f} against {means[best]:.3f} ({best}): {mean / means[best]:.2f}x; the best peer of each pair "
                f"would have {np.mean(each):.3f}"
            )
            met = mean >= factor * means[best] if factor > 1 else mean > means[best]
            wanted = f"at least {factor}x" if factor > 1 else "above"
            rows.append([f"`{ours}` {wanted} the best peer in mean {what}", yes(met), detail])
        own = {}
        for pair in runs.pairs:
            methods = {c for run in runs.of(pair, ours).values() for c in run["candidates"]}
            if methods:
                best = max(sorted(methods), key=lambda m: runs.mean(pair, f"{ours}: {m}", what) or 0.0)
                if (gap := runs.difference(pair, ours, f"{ours}: {best}", what)) is not None:
                    own[pair, best] = gap
        if own:
            below = [case for case, gap in own.items() if gap.mean < -2 * gap.error]
            worst = min(own, key=lambda case: own[case].mean / (own[case].error or 1e-9))
            detail = f"{len(below)} of {len(own)} pairs below; worst: {worst[1]} on {worst[0]}, {own[worst]}"
            rows.append(
                [f"`{ours}` within two standard errors of its best candidate in {what}", yes(not below), detail]
            )
    return markdown(["bar", "met", "how near"], rows)


def yes(met: bool) -> str:
    return "yes" if met else "**no**"


def report(runs: Runs) -> str:
    peers = [name for name in CONTENDERS if any(runs.of(pair, name) for pair in runs.pairs)]
    ours = [name for name in OURS if any(runs.of(pair, name) for pair in runs.pairs)]
    each = [f"{name}: {method}" for name in ours for method in METHODS]
    costs = {name: runs.kept.get(f"cost/{name}", {}) for name in [*CONTENDERS, *OURS]}
    cost = [
        [name, f"{c['seconds']:.1f}", f"{c['mb']:.0f}"] if "mb" in c else [name, c["failed"], "–"]
        for name, c in costs.items()
        if c
    ]
    notes = [f"- {name}: {contender.how}" + failures(runs, name) for name, contender in CONTENDERS.items()]
    return "\n".join(
        [
            f"\nMeans over {runs.seeds} split seeds; the best of each pair is bold. `auto` chose from the methods "
            "below it, each tuned for the same objective. A dash: no map, see the notes.\n",
            *(table(runs, [*peers, *ours, *each], what) for what in ("R@1", "R@10", "overlap@10")),
            "## Bars\n\nDifferences are paired row by row. A row's differences are averaged over the seeds that test "
            "it, and the standard error is taken over distinct rows (over photos, for captions), so that a row counts "
            "once however many seeds test it; brackets are 95 % intervals. How the training rows fell is in them only "
            "as far as five seeds show it.\n",
            bars(runs, peers),
            f"## Cost of one fit, {COST_PAIR}\n\nEach in a process of its own: seconds, and the growth of resident "
            "memory in the fit. For `auto` that is all methods and their validation.\n",
            markdown(["contender", "seconds", "MB"], cost),
            "## Notes\n",
            *notes,
            "",
        ]
    )


def failures(runs: Runs, name: str) -> str:
    """Return the errors and warnings of a contender, with the pairs on which they occurred."""
    messages: dict[str, list[str]] = {}
    for pair in runs.pairs:
        results = [runs.kept.get(f"{pair}/{seed}/{name}", {}) for seed in range(runs.seeds)]
        for message in {m for run in results for m in (*run.get("warnings", ()), run.get("failed")) if m}:
            message = re.sub(r"\d[\d,.]*", "#", message)
            if pair not in messages.setdefault(" ".join(message.split())[:100], []):
                messages[" ".join(message.split())[:100]].append(pair)
    return "".join(f' It said "{message}" on: {", ".join(pairs)}.' for message, pairs in messages.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), choices=list(PAIRS))
    parser.add_argument("--contenders", nargs="*", default=[*CONTENDERS, *OURS], choices=[*CONTENDERS, *OURS])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--raw", type=Path, help="JSON file of all runs; runs that it already contains are not repeated"
    )
    parser.add_argument("--no-cost", action="store_true", help="do not measure seconds and memory")
    parser.add_argument("--report-only", action="store_true", help="measure nothing; report the runs in --raw")
    parser.add_argument("--cost", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.cost:
        return measure_cost(args.cost)
    kept = json.loads(args.raw.read_text()) if args.raw and args.raw.exists() else {}

    def keep(key: str, run: dict) -> None:
        kept[key] = run
        if args.raw:
            args.raw.with_suffix(".partial").write_text(json.dumps(kept))
            args.raw.with_suffix(".partial").replace(args.raw)
        print(key, run.get("failed") or f"{run.get('seconds', 0):.1f} s", file=sys.stderr, flush=True)

    if not args.report_only:
        for pair in args.pairs:
            wanted = [(s, n) for s in range(args.seeds) for n in args.contenders if f"{pair}/{s}/{n}" not in kept]
            pairs = load(PAIRS[pair]) if wanted else None
            data = None
            for seed, name in wanted:
                if data is None or data.seed != seed:
                    assert pairs is not None
                    data = prepare(pairs, seed)
                    kept[f"{pair}/{seed}"] = {"rows": data.rows.tolist(), "clusters": data.clusters.tolist()}
                first = kept.get(f"{pair}/0/{name}", {})
                if seed and "failed" in first:
                    keep(f"{pair}/{seed}/{name}", {"failed": first["failed"]})
                elif name in OURS:
                    keep(f"{pair}/{seed}/{name}", measure_auto(OURS[name], data))
                else:
                    keep(f"{pair}/{seed}/{name}", measure_peer(CONTENDERS[name], data))
        for name in args.contenders:
            if f"cost/{name}" not in kept and not args.no_cost:
                command = [sys.executable, __file__, "--cost", name, "--threads", str(args.threads)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                keep(f"cost/{name}", json.loads(output.splitlines()[-1]))
    title = header("Peers on real pairs", "python benchmarks/peers.py", PEER_PACKAGES)
    text = title + report(Runs(kept, args.pairs, args.seeds))
    if args.pairs == list(PAIRS):
        (RESULTS / "peers.md").write_text(text, encoding="utf-8")
    print(text)


OURS = {f"auto {objective}": objective for objective in OBJECTIVES}

IMPORTS = {
    "isotrieve": ("isotrieve.mapping",),
    "latentis": ("latentis.transform.translate.aligner",),
    "rat-embed": ("rat.sampling",),
    "sklearn": ("sklearn.linear_model", "sklearn.cross_decomposition"),
    "auto": ("lightning",),
}

CONTENDERS = {
    "isotrieve ridge": Contender(isotrieve("RidgeMapping"), "its defaults (penalty by cross-validation)."),
    "isotrieve procrustes": Contender(isotrieve("OrthogonalProcrustesMapping"), "its defaults; square pairs only."),
    "isotrieve procrustes-diag": Contender(isotrieve("ProcrustesDiagMapping"), "its defaults; square pairs only."),
    "isotrieve mlp": Contender(isotrieve("ResidualMLPMapping"), "its defaults (200 epochs from a random start)."),
    "isotrieve contrastive": Contender(
        isotrieve_contrastive,
        "its defaults, but without the Nelder-Mead search, which it skips by itself above 200,000 weights: below that "
        "the search starts with one loss a weight, each of all pairs of rows, which takes hours and up to 100 GB here. "
        "The map is the ridge that it starts from.",
    ),
    "latentis lstsq": Contender(latentis("lstsq"), "least squares between standardised spaces."),
    "latentis sgd": Contender(latentis("sgd"), "its affine map between standardised spaces, 300 steps at 0.001."),
    "latentis procrustes": Contender(latentis("procrustes"), "its Procrustes translator (standardised, zero-padded)."),
    "rat-embed 500": Contender(
        rat(500),
        "its quick start: 500 farthest-point anchors, polynomial kernel; z-scores `auto` or `always` by validation. "
        "Rows are compared in its relative space; native neighbours are those of the target space.",
    ),
    "rat-embed 1000": Contender(rat(1000), "the same with 1,000 anchors, the most its main experiments take."),
    "sklearn ridge": Contender(sklearn_ridge, "RidgeCV over 15 penalties from 1e-5 to 100."),
    "sklearn pls": Contender(
        sklearn_components("PLSRegression", (8, 16, 32, 64, 128)), "8, 16, 32, 64 or 128 components by validation."
    ),
    "sklearn cca": Contender(
        sklearn_components("CCA", (8, 16, 32, 64)),
        f"8, 16, 32 or 64 components by validation, stopped after {CAP} s of processor time a fit.",
    ),
}


if __name__ == "__main__":
    main()
