"""Each method at its best, and the best of the methods, by one objective on the same validation rows."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import cast

from torch import Tensor

from repstitch.errors import InputError
from repstitch.fit.closed_form import (
    Canonical,
    Decomposition,
    canonical,
    canonical_map,
    decompose,
    fit_procrustes,
    ridge_path,
)
from repstitch.fit.contrastive import Recipe, from_first_rank, recipe_for, refine
from repstitch.fit.judge import Judge
from repstitch.maps import AffineMap, Map
from repstitch.moments import moments

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
SHRINK_X = (1e-3, 1e-2, 1e-1, 1.0)
SHRINK_Y = (1e-1, 1.0, 10.0)
NOT_OF_THE_FIT = ("width", "stop_after", "seed", "accelerator", "devices", "strategy", "checkpoints")
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Candidate:
    """A fitted map, how it was made, and its score on every validation row (n,)."""

    method: str
    settings: dict
    map: Map
    rows: Tensor

    @property
    def score(self) -> float:
        return float(self.rows.mean())


@dataclass(frozen=True)
class Problem:
    """Normalised training pairs X (n, d_source) and Y (n, d_target), and the judge of what is fitted to them."""

    X: Tensor
    Y: Tensor
    judge: Judge
    recipe: Recipe = field(default_factory=Recipe)

    @cached_property
    def decomposition(self) -> Decomposition:
        return decompose(moments((self.X, self.Y)))

    @cached_property
    def start(self) -> Candidate:
        """The canonical map that refinement starts from."""
        return tune_canonical(self)

    def candidate(self, method: str, settings: dict, map: Map) -> Candidate:
        return Candidate(method, settings, map, self.judge.rows(map))


def tune_ridge(problem: Problem) -> Candidate:
    """Ridge at its best penalty, with or without variance match."""
    tried = []
    for match_variance in (False, True):
        for penalty, map in zip(PENALTIES, ridge_path(problem.decomposition, PENALTIES, match_variance), strict=True):
            settings = {"penalty": penalty, "match_variance": match_variance}
            tried.append(problem.candidate("ridge", settings, map))
    return max(tried, key=lambda c: c.score)


def tune_procrustes(problem: Problem) -> Candidate:
    """Procrustes, centred or about the origin."""
    tried = []
    for centred in (True, False):
        settings = {"centred": centred, "scaled": True}
        map = fit_procrustes(problem.decomposition.moments, **settings)
        tried.append(problem.candidate("procrustes", settings, map))
    return max(tried, key=lambda c: c.score)


def tune_canonical(problem: Problem) -> Candidate:
    """Canonical over shrinkage on either side and power, then with and without the cut at the null's rank."""
    best: tuple[Candidate, Canonical] | None = None
    for shrink_x, shrink_y in product(SHRINK_X, SHRINK_Y):
        found = canonical(problem.decomposition, shrink_x, shrink_y)
        for power in POWERS:
            settings = {"shrink_x": shrink_x, "shrink_y": shrink_y, "power": power, "cut": False}
            tried = problem.candidate("canonical", settings, canonical_map(found, power, cut=False))
            if best is None or tried.score > best[0].score:
                best = tried, found
    if best is None:
        raise InputError("The grid of shrinkages and powers is empty.")
    whole, shared = best
    settings = whole.settings | {"cut": True}
    cut = problem.candidate("canonical", settings, canonical_map(shared, settings["power"], cut=True))
    return cut if cut.score >= whole.score else whole


def tune_contrastive(problem: Problem, method: str) -> Candidate:
    """The canonical map refined by gradient, as a linear map or with a residual MLP."""
    start = problem.start
    # A recipe without a width leaves it to the method.
    recipe = recipe_for(method, **{k: v for k, v in asdict(problem.recipe).items() if k != "width" or v})
    refined = refine(problem.X, problem.Y, cast(AffineMap, start.map), problem.decomposition, problem.judge, recipe)
    settings = {
        "start": start.settings,
        "width": recipe.width,
        "epoch": refined.epoch,
        "temperature": refined.temperature,
        "recipe": {name: value for name, value in asdict(recipe).items() if name not in NOT_OF_THE_FIT},
    }
    return problem.candidate(method, settings, refined.map)


def select(problem: Problem, method: str = "auto") -> tuple[Candidate, list[Candidate]]:
    """The candidate to use and all that were tried, in order of simplicity.

    `auto` tries every method; a simpler one wins unless a later one beats it by more than one standard error of their
    paired difference.
    """
    if method not in (*METHODS, "auto"):
        raise InputError(f"`method` must be one of {', '.join(METHODS)} or auto; got {method!r}.")
    tried = [fit(problem) for name, fit in METHODS.items() if method in (name, "auto")]
    best = max(tried, key=lambda c: c.score)
    for candidate in tried:
        lead = best.rows - candidate.rows
        if float(lead.mean()) <= float(lead.std()) / len(lead) ** 0.5:
            return candidate, tried
    return best, tried


def refit(chosen: Candidate, X: Tensor, Y: Tensor, problem: Problem) -> Map:
    """The chosen candidate's settings once more, on these pairs instead; nothing is selected anew."""
    whole = replace(problem, X=X, Y=Y)
    d, (method, s) = whole.decomposition, from_first_rank((chosen.method, chosen.settings))
    if method == "ridge":
        return ridge_path(d, [s["penalty"]], s["match_variance"])[0]
    if method == "procrustes":
        return fit_procrustes(d.moments, **s)
    closed = s.get("start", s)
    start = canonical_map(canonical(d, closed["shrink_x"], closed["shrink_y"]), closed["power"], closed["cut"])
    if method == "canonical" or not s["epoch"]:
        return start
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
    "procrustes": tune_procrustes,
    "canonical": tune_canonical,
    "linear": lambda problem: tune_contrastive(problem, "linear"),
    "mlp": lambda problem: tune_contrastive(problem, "mlp"),
}
