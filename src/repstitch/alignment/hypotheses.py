"""Tests of hypotheses about an atlas: trends of alignment, the control for lineage, and asymmetry between spaces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from repstitch.alignment.asymmetry import asymmetry
from repstitch.alignment.hypothesis_results import Control, Trend
from repstitch.alignment.inputs import unit_rows
from repstitch.alignment.layers import by_encoder
from repstitch.alignment.layout import best_pairs
from repstitch.alignment.lineage import Table, column, encoder_spaces, numeric_column
from repstitch.alignment.lineage_control import control
from repstitch.alignment.model_scores import Resampling
from repstitch.alignment.result import Atlas
from repstitch.alignment.trend import trend
from repstitch.embeddings.matching import MatchedSpaces
from repstitch.errors import InputError
from repstitch.spaces import Space


@dataclass(frozen=True)
class HypothesisTests:
    """Which tests to run.

    `trend` names a column of numbers; the test is whether alignment rises with it. `against` names the models that
    alignment is measured with (None: all other models). `control` names columns of labels. With `asymmetry`, the most
    similar pairs are tested. Columns are looked up as in `lineage.column`, first in `table`.
    """

    trend: str | None = None
    against: Sequence[str] | None = None
    control: Sequence[str] = ()
    asymmetry: bool = False
    table: Table | None = None
    seed: int = 0


def check(spaces: Sequence[Space], tests: HypothesisTests) -> None:
    """Check that the spaces' columns allow all tests, by running the tests on random scores.

    So a test that is not possible raises InputError before the spaces are scored.
    """
    models = encoder_spaces(spaces)
    made_up = np.random.default_rng(0).random((len(models), len(models)))
    for test in _prepare_tests(models, tests, {"score": made_up}).values():
        test(metric="", resampling=Resampling(permutations=1))


def run_tests(
    atlas: Atlas, tests: HypothesisTests, matched: MatchedSpaces | None = None, *, skip: bool = False
) -> Atlas:
    """Run the tests on the scores of the atlas's first metric, and return the atlas with the results added.

    `matched` are the spaces that the atlas was computed from; asymmetry needs them. A test that is not possible with
    these models raises InputError; with `skip` it is listed in `unanswered` with the reason instead.
    """
    metric = atlas.metrics[0]
    prepared = _prepare_tests(encoder_spaces(atlas.spaces), tests, by_encoder(atlas, metric))
    results: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name, test in prepared.items():
        try:
            results[name] = test(metric=metric, resampling=Resampling(seed=tests.seed)).to_dict()
        except InputError as error:
            if not skip:
                raise
            skipped[name] = str(error)
    if tests.asymmetry and matched is not None:
        rows = dict(zip(matched.names, unit_rows(matched), strict=True))
        results["asymmetry"] = [
            asymmetry(rows[source], rows[target], source=source, target=target, seed=tests.seed).to_dict()
            for source, target in tqdm(best_pairs(atlas), desc="asymmetry", unit="pair", delay=1, leave=False)
        ]
    return atlas.with_results(results | ({"unanswered": skipped} if skip else {}))


def _prepare_tests(
    models: list[Space], tests: HypothesisTests, measures: Mapping[str, np.ndarray]
) -> dict[str, Callable[..., Trend | Control]]:
    """Return the tests that need only scores and labels, by name. They are called with `metric` and `resampling`."""
    names, table = [space.name for space in models], tests.table
    prepared: dict[str, Callable[..., Trend | Control]] = {}
    if tests.trend is not None:
        prepared["trend"] = partial(
            trend,
            measures["score"],
            numeric_column(models, tests.trend, table),
            names,
            column=tests.trend,
            families=column(models, "family", table),
            against=tests.against,
        )
    if tests.control:
        prepared["control"] = partial(
            control,
            measures["score"],
            {name: column(models, name, table) for name in tests.control},
            names,
            null=measures.get("null"),
            q=measures.get("q"),
        )
    return prepared
