"""Model selection: tune each method, and choose among them, by one objective on the same validation rows."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, lru_cache
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from repstitch.errors import InputError
from repstitch.fit.closed_form import (
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
from repstitch.metrics.moments import Moments, moments
from repstitch.precision import exact_products
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
OWN_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the total weight, for own pairs beside general ones
KEPT_FORMS = 8  # for each part of the pairs; hill climbing returns to the last few
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

    If `keep_lengths` is true, translations are not normalised, and no gain above 1 is tried. `weights` (n,) weigh the
    pairs in every fit.

    With `folds` (n,) there are no separate validation pairs. Pairs of fold 0, 1, … are the rows of the objective, in
    this order, and each is translated by a map that is fitted without its fold. Pairs of fold −1 are general pairs,
    which are in every fit. The weights of the others, the own pairs, are then multiplied by one factor, so that they
    sum to `own_share` of the total weight: the share is a further setting of closed forms, among `own_shares`.
    """

    X: Tensor
    Y: Tensor
    objective: ValidationObjective
    recipe: Recipe = field(default_factory=Recipe)
    keep_lengths: bool = False
    weights: Tensor | None = None
    folds: Tensor | None = None
    own_shares: tuple[float, ...] = OWN_SHARES

    @property
    def n_folds(self) -> int:
        return 0 if self.folds is None else int(self.folds.max()) + 1

    @cached_property
    def has_general(self) -> bool:
        """Whether there are general pairs beside own ones."""
        return self.folds is not None and bool((self.folds < 0).any())

    def grid(self, axes: dict[str, tuple]) -> dict[str, tuple]:
        """Return the axes of a grid for this problem.

        It has no gains that `keep_lengths` rules out. Beside general pairs, it has the share of the own pairs.
        """
        gains = tuple(g for g in axes["gain"] if not self.keep_lengths or g is None or g <= 1)
        return axes | {"gain": gains} | ({"own_share": self.own_shares} if self.has_general else {})

    def starts(self, settings: Iterable[dict]) -> list[dict]:
        """Return the settings from which a grid is searched, each with a small, a middle and a large share if any."""
        if not self.has_general:
            return list(settings)
        shares = {self.own_shares[0], self.own_shares[len(self.own_shares) // 2], self.own_shares[-1]}
        return [one | {"own_share": share} for one, share in product(settings, sorted(shares))]

    @cached_property
    def decomposition(self) -> Decomposition:
        """The decomposition of all pairs, with own pairs at half of the weight beside general ones."""
        return self.decomposed((), 0.5 if self.has_general else None)

    @cached_property
    def decomposed(self) -> Callable[[tuple[int, ...], float | None], Decomposition]:
        """`decompose_without`, with a cache."""
        return cache(self.decompose_without)

    def decompose_without(self, left_out: tuple[int, ...] = (), own_share: float | None = None) -> Decomposition:
        """Return the decomposition of all pairs but those of some folds, with a share of own pairs if any."""
        own_moments = self._moments_of(None if self.folds is None else self._in_folds(left_out))
        if not self.has_general or own_share == 1:
            return decompose(own_moments)
        assert own_share is not None
        general_moments, total = self._general_moments, own_moments.n + self._general_moments.n
        general_moments = general_moments.weighted((1 - own_share) * total / general_moments.n)
        return decompose(general_moments + own_moments.weighted(own_share * total / own_moments.n))

    def _in_folds(self, left_out: tuple[int, ...]) -> Tensor:
        """Return a mask (n,) of the own pairs that are in none of these folds."""
        assert self.folds is not None
        return (self.folds >= 0) & ~torch.isin(self.folds, self.folds.new_tensor(left_out))

    @cached_property
    def _general_moments(self) -> Moments:
        assert self.folds is not None
        return self._moments_of(self.folds < 0)

    def _moments_of(self, rows: Tensor | None) -> Moments:
        """Return the weighted moments of the pairs of a mask (n,), by default of all."""
        sides = (self.X, self.Y, self.weights)
        return moments(sides if rows is None else tuple(None if side is None else side[rows] for side in sides))

    @exact_products()
    @torch.inference_mode()
    def cross_translate(self, fit: Callable[[Decomposition], Map], own_share: float | None = None) -> Tensor:
        """Return the translations (n, d_target) of the own pairs, each by a map fitted without its fold."""
        assert self.folds is not None
        fold_of = self.folds[self.folds >= 0]
        predicted = torch.empty_like(self.objective.Y)
        for fold in range(self.n_folds):
            rows = fold_of == fold
            predicted[rows] = fit(self.decomposed((fold,), own_share))(self.objective.X[rows])
        return predicted

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

    def closed_candidate(self, method: str, settings: dict[str, Any], fit: "Fit") -> Candidate:
        """Return a closed form that is fitted to all pairs, with the scores of its fits on pairs that they left out."""
        share = settings.get("own_share")
        map = fit(self.decomposed((), share), settings)
        if self.folds is None:
            return self.candidate(method, settings, map)
        predicted = self.cross_translate(lambda decomposition: fit(decomposition, settings), share)
        return Candidate(method, settings, map, self.objective.weigh(self.objective.scores_of(predicted)))

    def candidate(self, method: str, settings: dict[str, Any], map: Map) -> Candidate:
        return Candidate(method, settings, map, self.objective.weigh(self.objective.scores_per_row(map)))

    def kept(self, function: Callable) -> Callable:
        """Return the function with a cache that has room for the forms that hill climbing returns to."""
        return lru_cache(maxsize=KEPT_FORMS * (1 + self.n_folds))(function)


Fit = Callable[[Decomposition, dict[str, Any]], AffineMap]


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
    weight = problem.kept(ridge_weight)

    def fit(d: Decomposition, settings: dict) -> AffineMap:
        return affine(d.moments, weight(d, settings["penalty"]), settings["gain"])

    starts = [{"penalty": p, "gain": g} for p, g in product((1e-3, 1e-1, 10.0), (None, 1.0))]
    return tune(problem, "ridge", RIDGE, starts, fit)


def tune_procrustes(problem: Problem) -> Candidate:
    """Fit procrustes, about the origin or centred with its best gain."""
    rotation = problem.kept(lambda d: fit_procrustes(d.moments, scaled=False).weight.double())

    def fit(d: Decomposition, settings: dict) -> AffineMap:
        if settings["gain"] is None:
            return fit_procrustes(d.moments, settings["centred"])
        return affine(d.moments, rotation(d), settings["gain"])

    starts = [{"centred": True, "gain": None}, {"centred": True, "gain": 1.0}]
    best = tune(problem, "procrustes", PROCRUSTES | {"centred": (True,)}, starts, fit)
    settings = best.settings | {"centred": False, "gain": None}
    plain = problem.closed_candidate("procrustes", settings, fit)
    tried = (*best.tried, (settings, plain.score))
    return replace(max(best, plain, key=lambda c: c.score), tried=tried)


def tune_canonical(problem: Problem) -> Candidate:
    """Fit canonical with its best shrinkages, power and gain, with or without the cut at the null edge."""
    shared = problem.kept(canonical)
    weight = problem.kept(lambda d, x, y, power, cut: shared(d, x, y).weight(power, cut))

    def fit(d: Decomposition, settings: dict) -> AffineMap:
        w = weight(d, *(settings[name] for name in ("shrink_x", "shrink_y", "power", "cut")))
        return affine(d.moments, w, settings["gain"])

    # On a tie the first start wins: if all maps distinguish all rows, the result is least squares.
    starts = [
        {"shrink_x": x, "shrink_y": None, "power": p, "gain": g, "cut": False}
        for x, (p, g) in product((1e-2, 1.0), ((1.0, None), (0.5, 1.0), (0.25, 1.0 if problem.keep_lengths else 1.4)))
    ]
    return tune(problem, "canonical", CANONICAL, starts, fit)


def tune(problem: Problem, method: str, axes: dict[str, tuple], starts: list[dict], fit: Fit) -> Candidate:
    """Fit a closed form with the best settings of a grid, by hill climbing."""
    return climb(
        problem.grid(axes),
        problem.starts(starts),
        lambda settings: problem.closed_candidate(method, settings, fit),
    )


def tune_contrastive(problem: Problem, method: str) -> Candidate:
    """Refine the best closed form by gradient descent, as a linear map or with a residual MLP."""
    from repstitch.fit.contrastive import refine  # Lightning takes seconds to import, and closed forms do not need it

    start = problem.start
    # With width 0 in the recipe, the method has its default width.
    recipe = recipe_for(method, **{k: v for k, v in asdict(problem.recipe).items() if k != "width" or v})
    pairs = (problem.X, problem.Y)
    start_map, decomposition = cast(AffineMap, start.map), problem.decomposition
    refined = refine(*pairs, start_map, decomposition, problem.objective, recipe, weights=problem.weights)
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

    `auto` tries every method; with folds, every closed form. Closed forms are equally simple, so only the best of them
    is compared with `linear` and `mlp`. The choice is the simplest candidate that is within one standard error of the
    best one, by their paired difference.
    """
    if method not in (*METHODS, "auto"):
        raise InputError(f"`method` must be one of {', '.join(METHODS)} or auto; got {method!r}.")
    if problem.folds is not None and method in REFINED:
        closed = ", ".join(name for name in METHODS if name not in REFINED)
        raise InputError(f"With `folds` or `own` the `method` must be {closed} or auto; got {method!r}.")
    methods = {name: fit for name, fit in METHODS.items() if problem.folds is None or name not in REFINED}
    tried = [fit(problem) for name, fit in methods.items() if method in (name, "auto")]
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


def refit(chosen: Candidate, problem: Problem) -> Map:
    """Fit a map to the pairs of a problem with the settings of the chosen candidate; nothing is selected again."""
    method, settings = from_first_rank((chosen.method, chosen.settings))
    d = problem.decomposed((), settings.get("own_share"))
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
    return refine(problem.X, problem.Y, start, d, problem.objective, recipe, weights=problem.weights).map


METHODS: dict[str, Callable[[Problem], Candidate]] = {
    "ridge": tune_ridge,
    "procrustes": lambda problem: problem.procrustes,
    "canonical": lambda problem: problem.canonical,
    "linear": lambda problem: tune_contrastive(problem, "linear"),
    "mlp": lambda problem: tune_contrastive(problem, "mlp"),
}
