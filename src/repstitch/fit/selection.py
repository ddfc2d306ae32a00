"""Each method at its best, and the best of the methods, by one objective on the same validation rows."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from itertools import product
from typing import cast

from torch import Tensor

from repstitch.errors import InputError
from repstitch.fit.closed_form import (
    Canonical,
    Decomposition,
    affine,
    canonical,
    decompose,
    fit_closed,
    fit_procrustes,
    ridge_weight,
)
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.ranks import from_first_rank
from repstitch.fit.recipe import Recipe, recipe_for
from repstitch.metrics.moments import moments
from repstitch.stitchers.maps import AffineMap, Map

# None leaves a map's own scale; 1 matches the target's variance.
GAINS = (None, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0)
SHRINKAGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
RIDGE = {"penalty": SHRINKAGES, "gain": GAINS}
PROCRUSTES = {"gain": GAINS}
CANONICAL = {
    "shrink_x": SHRINKAGES,
    "shrink_y": (1.0, 10.0, 100.0, None),
    "power": (0.0, 0.25, 0.5, 0.75, 1.0),
    "gain": GAINS,
    "cut": (False, True),
}
REFINED = ("linear", "mlp")  # in order of simplicity, after all closed forms
NOT_OF_THE_FIT = ("width", "stop_after", "seed", "accelerator", "devices", "strategy", "checkpoints")


@dataclass(frozen=True)
class Candidate:
    """A fitted map, how it was made, and its score on every validation row (n,).

    `tried` holds the settings and score of each map of this method that it was the best of.
    """

    method: str
    settings: dict
    map: Map
    rows: Tensor
    tried: tuple[tuple[dict, float], ...] = ()

    @property
    def score(self) -> float:
        return float(self.rows.mean())


@dataclass(frozen=True)
class Problem:
    """Normalised training pairs X (n, d_source) and Y (n, d_target), and the judge of what is fitted to them.

    `lengths` says that translations keep their own lengths; then no gain carries them beyond the target's.
    """

    X: Tensor
    Y: Tensor
    judge: ValidationObjective
    recipe: Recipe = field(default_factory=Recipe)
    lengths: bool = False

    def allowed(self, axes: dict[str, tuple]) -> dict[str, tuple]:
        """The axes of a grid without the gains that `lengths` rules out."""
        gains = tuple(g for g in axes["gain"] if not self.lengths or g is None or g <= 1)
        return axes | {"gain": gains}

    @cached_property
    def decomposition(self) -> Decomposition:
        return decompose(moments((self.X, self.Y)))

    @cached_property
    def procrustes(self) -> Candidate:
        return tune_procrustes(self)

    @cached_property
    def canonical(self) -> Candidate:
        return tune_canonical(self)

    @cached_property
    def start(self) -> Candidate:
        """The closed form that refinement starts from: the better one (ridge is canonical at power 1)."""
        return max(self.canonical, self.procrustes, key=lambda c: c.score)

    def candidate(self, method: str, settings: dict, map: Map) -> Candidate:
        return Candidate(method, settings, map, self.judge.rows(map))


def climb(axes: dict[str, tuple], starts: Iterable[dict], fit: Callable[[dict], Candidate]) -> Candidate:
    """The best of a grid without trying all of it: from the best of the starts, a step along one axis at a time.

    Each move goes to the best neighbour; it ends where no neighbour is better. Nothing is fitted twice. Settings that
    give no map are passed by; where no start gives one, InputError says why.
    """
    known: dict[tuple, Candidate | InputError] = {}

    def at(places: Iterable[dict]) -> list[Candidate]:
        found = []
        for settings in places:
            key = tuple(settings[name] for name in axes)
            if key not in known:
                try:
                    known[key] = fit(settings)
                except InputError as error:
                    known[key] = error
            found.append(known[key])
        return [c for c in found if isinstance(c, Candidate)]

    best = max(at(starts), key=lambda c: c.score, default=None)
    if best is None:
        raise next(error for error in known.values() if isinstance(error, InputError))
    while True:
        around = []
        for name, values in axes.items():
            here = values.index(best.settings[name])
            around += [best.settings | {name: v} for v in values[max(0, here - 1) : here + 2] if v != values[here]]
        step = max([best, *at(around)], key=lambda c: c.score)  # of equals the first, so it stays
        if step is best:
            break
        best = step
    return replace(best, tried=tuple((c.settings, c.score) for c in known.values() if isinstance(c, Candidate)))


def tune_ridge(problem: Problem) -> Candidate:
    """Ridge at its best penalty and gain."""
    weight = cache(lambda penalty: ridge_weight(problem.decomposition, penalty))

    def fit(s: dict) -> Candidate:
        map = affine(problem.decomposition.moments, weight(s["penalty"]), s["gain"])
        return problem.candidate("ridge", s, map)

    starts = [{"penalty": p, "gain": g} for p, g in product((1e-3, 1e-1, 10.0), (None, 1.0))]
    return climb(problem.allowed(RIDGE), starts, fit)


def tune_procrustes(problem: Problem) -> Candidate:
    """Procrustes about the origin, or centred at its best gain."""
    whole = problem.decomposition.moments
    rotation = fit_procrustes(whole, scaled=False).weight.double()

    def fit(s: dict) -> Candidate:
        map = fit_procrustes(whole) if s["gain"] is None else affine(whole, rotation, s["gain"])
        return problem.candidate("procrustes", {"centred": True} | s, map)

    best = climb(problem.allowed(PROCRUSTES), [{"gain": None}, {"gain": 1.0}], fit)
    settings = {"centred": False, "gain": None}
    plain = problem.candidate("procrustes", settings, fit_procrustes(whole, centred=False))
    tried = (*best.tried, (settings, plain.score))
    return replace(max(best, plain, key=lambda c: c.score), tried=tried)


def tune_canonical(problem: Problem) -> Candidate:
    """Canonical over shrinkage on either side, power, gain, and the cut at the null's rank."""
    shared: Callable[[float, float | None], Canonical] = cache(lambda x, y: canonical(problem.decomposition, x, y))
    weight = cache(lambda x, y, power, cut: shared(x, y).weight(power, cut))

    def fit(s: dict) -> Candidate:
        w = weight(s["shrink_x"], s["shrink_y"], s["power"], s["cut"])
        return problem.candidate("canonical", s, affine(problem.decomposition.moments, w, s["gain"]))

    # The first of equals wins: where any map tells all rows apart, that is least squares.
    starts = [
        {"shrink_x": x, "shrink_y": None, "power": p, "gain": g, "cut": False}
        for x, (p, g) in product((1e-2, 1.0), ((1.0, None), (0.5, 1.0), (0.25, 1.0 if problem.lengths else 1.4)))
    ]
    return climb(problem.allowed(CANONICAL), starts, fit)


def tune_contrastive(problem: Problem, method: str) -> Candidate:
    """The best closed form refined by gradient, as a linear map or with a residual MLP."""
    from repstitch.fit.contrastive import refine  # Lightning takes seconds to import, and closed forms need none of it

    start = problem.start
    # A recipe without a width leaves it to the method.
    recipe = recipe_for(method, **{k: v for k, v in asdict(problem.recipe).items() if k != "width" or v})
    refined = refine(problem.X, problem.Y, cast(AffineMap, start.map), problem.decomposition, problem.judge, recipe)
    settings = {
        "start": {"method": start.method} | start.settings,
        "width": recipe.width,
        "epoch": refined.epoch,
        "temperature": refined.temperature,
        "recipe": {name: value for name, value in asdict(recipe).items() if name not in NOT_OF_THE_FIT},
    }
    found = problem.candidate(method, settings, refined.map)
    return replace(found, tried=((settings, found.score),))


def select(problem: Problem, method: str = "auto") -> tuple[Candidate, list[Candidate]]:
    """The candidate to use and the best of every method that was tried.

    `auto` tries every method. Closed forms are as simple as one another, so the best of them stands for all; it is used
    unless `linear` is better by more than one standard error of their paired difference, and that unless `mlp` is.
    """
    if method not in (*METHODS, "auto"):
        raise InputError(f"`method` must be one of {', '.join(METHODS)} or auto; got {method!r}.")
    tried = [fit(problem) for name, fit in METHODS.items() if method in (name, "auto")]
    closed = [c for c in tried if c.method not in REFINED]
    ladder = [max(closed, key=lambda c: c.score)] if closed else []
    ladder += [c for c in tried if c.method in REFINED]
    best = max(ladder, key=lambda c: c.score)
    if not best.score > -math.inf:
        raise InputError("No method gives a map that can translate the validation rows; the pairs hold no relation.")
    for candidate in ladder:
        lead = best.rows - candidate.rows
        if float(lead.mean()) <= float(lead.std()) / len(lead) ** 0.5:
            return candidate, tried
    return best, tried


def refit(chosen: Candidate, X: Tensor, Y: Tensor, problem: Problem) -> Map:
    """The chosen candidate's settings once more, on these pairs instead; nothing is selected anew."""
    whole = replace(problem, X=X, Y=Y)
    d, (method, s) = whole.decomposition, from_first_rank((chosen.method, chosen.settings))
    if "start" not in s:
        return fit_closed(d, method, s)
    start = fit_closed(d, s["start"]["method"], s["start"])
    if not s["epoch"]:
        return start
    from repstitch.fit.contrastive import refine

    recipe = replace(
        problem.recipe,
        width=s["width"],
        stop_after=s["epoch"],
        temperatures=(s["temperature"] / problem.judge.temperature(start),),
        checkpoints=None,
    )
    return refine(X, Y, start, d, problem.judge, recipe).map


METHODS: dict[str, Callable[[Problem], Candidate]] = {
    "ridge": tune_ridge,
    "procrustes": lambda problem: problem.procrustes,
    "canonical": lambda problem: problem.canonical,
    "linear": lambda problem: tune_contrastive(problem, "linear"),
    "mlp": lambda problem: tune_contrastive(problem, "mlp"),
}
