"""Model selection: tune each method, and choose among them, by one objective on the same validation rows."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from itertools import product
from typing import Any, cast

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

# None keeps the map's own scale; 1 matches the target's variance.
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
    """A fitted map with its method, its settings and its score on every validation row (n,).

    `tried` lists the settings and the score of every map that tuning compared, including this one.
    """

    method: str
    settings: dict[str, Any]
    map: Map
    row_scores: Tensor
    tried: tuple[tuple[dict[str, Any], float], ...] = ()

    @property
    def score(self) -> float:
        return float(self.row_scores.mean())


@dataclass(frozen=True)
class Problem:
    """Normalised training pairs X (n, d_source) and Y (n, d_target), and the objective that scores maps fitted to them.

    If `keep_lengths` is true, translations are not normalised, and no gain above 1 is tried.
    """

    X: Tensor
    Y: Tensor
    objective: ValidationObjective
    recipe: Recipe = field(default_factory=Recipe)
    keep_lengths: bool = False

    def allowed(self, axes: dict[str, tuple]) -> dict[str, tuple]:
        """Return the axes of a grid without the gains that `keep_lengths` rules out."""
        gains = tuple(g for g in axes["gain"] if not self.keep_lengths or g is None or g <= 1)
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
        """The closed form that refinement starts from: canonical, which at power 1 includes ridge, or procrustes."""
        return max(self.canonical, self.procrustes, key=lambda c: c.score)

    def candidate(self, method: str, settings: dict[str, Any], map: Map) -> Candidate:
        return Candidate(method, settings, map, self.objective.scores_per_row(map))


def climb(axes: dict[str, tuple], starts: Iterable[dict], fit: Callable[[dict], Candidate]) -> Candidate:
    """Search a grid by hill climbing, from the best of `starts`, and return the best candidate.

    Each step goes to the best neighbour along one axis; the climb ends when no neighbour is better. No settings are
    fitted twice. Settings whose fit raises InputError are skipped; if the fits of all starts raise, the first error is
    raised.
    """
    fitted: dict[tuple, Candidate | InputError] = {}

    def fit_all(places: Iterable[dict]) -> list[Candidate]:
        candidates = []
        for settings in places:
            key = tuple(settings[name] for name in axes)
            if key not in fitted:
                try:
                    fitted[key] = fit(settings)
                except InputError as error:
                    fitted[key] = error
            candidates.append(fitted[key])
        return [c for c in candidates if isinstance(c, Candidate)]

    best = max(fit_all(starts), key=lambda c: c.score, default=None)
    if best is None:
        raise next(error for error in fitted.values() if isinstance(error, InputError))
    while True:
        neighbours = []
        for name, values in axes.items():
            at = values.index(best.settings[name])
            neighbours += [best.settings | {name: v} for v in values[max(0, at - 1) : at + 2] if v != values[at]]
        step = max([best, *fit_all(neighbours)], key=lambda c: c.score)  # on a tie, `max` returns `best`
        if step is best:
            break
        best = step
    return replace(best, tried=tuple((c.settings, c.score) for c in fitted.values() if isinstance(c, Candidate)))


def tune_ridge(problem: Problem) -> Candidate:
    """Fit ridge with its best penalty and gain."""
    weight = cache(lambda penalty: ridge_weight(problem.decomposition, penalty))

    def fit(settings: dict) -> Candidate:
        map = affine(problem.decomposition.moments, weight(settings["penalty"]), settings["gain"])
        return problem.candidate("ridge", settings, map)

    starts = [{"penalty": p, "gain": g} for p, g in product((1e-3, 1e-1, 10.0), (None, 1.0))]
    return climb(problem.allowed(RIDGE), starts, fit)


def tune_procrustes(problem: Problem) -> Candidate:
    """Fit procrustes, about the origin or centred with its best gain."""
    pair_moments = problem.decomposition.moments
    rotation = fit_procrustes(pair_moments, scaled=False).weight.double()

    def fit(settings: dict) -> Candidate:
        gain = settings["gain"]
        map = fit_procrustes(pair_moments) if gain is None else affine(pair_moments, rotation, gain)
        return problem.candidate("procrustes", {"centred": True} | settings, map)

    best = climb(problem.allowed(PROCRUSTES), [{"gain": None}, {"gain": 1.0}], fit)
    settings = {"centred": False, "gain": None}
    plain = problem.candidate("procrustes", settings, fit_procrustes(pair_moments, centred=False))
    tried = (*best.tried, (settings, plain.score))
    return replace(max(best, plain, key=lambda c: c.score), tried=tried)


def tune_canonical(problem: Problem) -> Candidate:
    """Fit canonical with its best shrinkages, power and gain, with or without the cut at the null edge."""
    shared: Callable[[float, float | None], Canonical] = cache(lambda x, y: canonical(problem.decomposition, x, y))
    weight = cache(lambda x, y, power, cut: shared(x, y).weight(power, cut))

    def fit(settings: dict) -> Candidate:
        w = weight(settings["shrink_x"], settings["shrink_y"], settings["power"], settings["cut"])
        return problem.candidate("canonical", settings, affine(problem.decomposition.moments, w, settings["gain"]))

    # On a tie the first start wins: if all maps distinguish all rows, the result is least squares.
    starts = [
        {"shrink_x": x, "shrink_y": None, "power": p, "gain": g, "cut": False}
        for x, (p, g) in product((1e-2, 1.0), ((1.0, None), (0.5, 1.0), (0.25, 1.0 if problem.keep_lengths else 1.4)))
    ]
    return climb(problem.allowed(CANONICAL), starts, fit)


def tune_contrastive(problem: Problem, method: str) -> Candidate:
    """Refine the best closed form by gradient descent, as a linear map or with a residual MLP."""
    from repstitch.fit.contrastive import refine  # Lightning takes seconds to import, and closed forms do not need it

    start = problem.start
    # With width 0 in the recipe, the method has its default width.
    recipe = recipe_for(method, **{k: v for k, v in asdict(problem.recipe).items() if k != "width" or v})
    refined = refine(problem.X, problem.Y, cast(AffineMap, start.map), problem.decomposition, problem.objective, recipe)
    settings = {
        "start": {"method": start.method} | start.settings,
        "width": recipe.width,
        "epoch": refined.epoch,
        "temperature": refined.temperature,
        "recipe": {name: value for name, value in asdict(recipe).items() if name not in NOT_OF_THE_FIT},
    }
    candidate = problem.candidate(method, settings, refined.map)
    return replace(candidate, tried=((settings, candidate.score),))


def select(problem: Problem, method: str = "auto") -> tuple[Candidate, list[Candidate]]:
    """Fit a map by one method or by all, and return the chosen candidate and the best candidate of each method.

    `auto` tries every method. Closed forms are equally simple, so only the best of them is compared with `linear` and
    `mlp`. The choice is the simplest candidate that is within one standard error of the best one, by their paired
    difference.
    """
    if method not in (*METHODS, "auto"):
        raise InputError(f"`method` must be one of {', '.join(METHODS)} or auto; got {method!r}.")
    tried = [fit(problem) for name, fit in METHODS.items() if method in (name, "auto")]
    closed = [c for c in tried if c.method not in REFINED]
    ladder = [max(closed, key=lambda c: c.score)] if closed else []
    ladder += [c for c in tried if c.method in REFINED]
    best = max(ladder, key=lambda c: c.score)
    if not best.score > -math.inf:
        raise InputError(
            "No method gives a map that can translate the validation rows; check that the rows of the two sides match."
        )
    for candidate in ladder:
        lead = best.row_scores - candidate.row_scores
        if float(lead.mean()) <= float(lead.std()) / len(lead) ** 0.5:
            return candidate, tried
    return best, tried


def refit(chosen: Candidate, X: Tensor, Y: Tensor, problem: Problem) -> Map:
    """Fit a map to these pairs with the settings of the chosen candidate; nothing is selected again."""
    d, (method, settings) = replace(problem, X=X, Y=Y).decomposition, from_first_rank((chosen.method, chosen.settings))
    if "start" not in settings:
        return fit_closed(d, method, settings)
    start = fit_closed(d, settings["start"]["method"], settings["start"])
    if not settings["epoch"]:
        return start
    from repstitch.fit.contrastive import refine

    recipe = replace(
        problem.recipe,
        width=settings["width"],
        stop_after=settings["epoch"],
        temperatures=(settings["temperature"] / problem.objective.temperature(start),),
        checkpoints=None,
    )
    return refine(X, Y, start, d, problem.objective, recipe).map


METHODS: dict[str, Callable[[Problem], Candidate]] = {
    "ridge": tune_ridge,
    "procrustes": lambda problem: problem.procrustes,
    "canonical": lambda problem: problem.canonical,
    "linear": lambda problem: tune_contrastive(problem, "linear"),
    "mlp": lambda problem: tune_contrastive(problem, "mlp"),
}
