"""Fit maps to pairs: in closed form from moments, or refined by gradient descent, and select one by an objective."""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.fit.closed_form import Moments, fit_canonical, fit_procrustes, fit_ridge, moments
    from repstitch.fit.objective import ValidationObjective
    from repstitch.fit.recipe import Recipe
    from repstitch.fit.selection import Candidate, Problem, select

__all__ = [
    "Candidate",
    "Moments",
    "Problem",
    "Recipe",
    "ValidationObjective",
    "fit_canonical",
    "fit_procrustes",
    "fit_ridge",
    "moments",
    "select",
]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "closed_form": ("Moments", "fit_canonical", "fit_procrustes", "fit_ridge", "moments"),
        "objective": ("ValidationObjective",),
        "recipe": ("Recipe",),
        "selection": ("Candidate", "Problem", "select"),
    },
)
