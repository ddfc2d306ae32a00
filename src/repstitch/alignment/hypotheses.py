"""What is asked of an atlas: does alignment rise with a column, does lineage explain it, who predicts whom."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from repstitch.alignment.asymmetry import asymmetry
from repstitch.alignment.layers import by_encoder
from repstitch.alignment.layout import best_pairs
from repstitch.alignment.lineage import Table, encoders, labels, numbers
from repstitch.alignment.lineage_control import control
from repstitch.alignment.scores import unit_rows
from repstitch.alignment.trend import trend
from repstitch.embeddings.matching import MatchedSpaces
from repstitch.errors import InputError
from repstitch.spaces import Space


@dataclass(frozen=True)
class HypothesisTests:
    """`trend` is a column of numbers, with the models `against` which alignment is taken (all where None); `control`
    columns of labels; `asymmetry` whether the best pairs predict one another. Columns are looked for as `lineage` says.
    """

    trend: str | None = None
    against: Sequence[str] | None = None
    control: Sequence[str] = ()
    asymmetry: bool = False
    table: Table | None = None
    seed: int = 0


def check(spaces: Sequence[Space], questions: HypothesisTests) -> None:
    """Refuse labels that allow no answer, before anything is computed: the questions are put to made-up scores."""
    models = encoders(spaces)
    made_up = np.random.default_rng(0).random((len(models), len(models)))
    for ask in _asked(models, questions, {"score": made_up}).values():
        ask(metric="", permutations=1)


def run_tests(
    found: Mapping, questions: HypothesisTests, rows: MatchedSpaces | None = None, *, skip: bool = False
) -> dict:
    """The answers by question, judged by the atlas's first metric: to be put into it.

    `rows` are what the atlas was made of; asymmetry needs them. With `skip`, a question that these models cannot answer
    stands in `unanswered` with the reason, where it else raises InputError.
    """
    metric = next(iter(found["metrics"]))
    models = encoders([Space.from_dict(card) for card in found["spaces"]])
    said, unanswered = {}, {}
    for question, ask in _asked(models, questions, by_encoder(found, metric)).items():
        try:
            said[question] = ask(metric=metric)
        except InputError as error:
            if not skip:
                raise
            unanswered[question] = str(error)
    if questions.asymmetry and rows is not None:
        X = dict(zip(rows.names, unit_rows(rows), strict=True))
        said["asymmetry"] = [
            {"source": a, "target": b} | asymmetry(X[a], X[b], source=a, target=b, seed=questions.seed)
            for a, b in tqdm(best_pairs(found), desc="asymmetry", unit="pair", delay=1, leave=False)
        ]
    return said | ({"unanswered": unanswered} if skip else {})


def _asked(models: list[Space], questions: HypothesisTests, measures: Mapping[str, np.ndarray]) -> dict[str, Callable]:
    """The questions of these models with all but the metric filled in."""
    names, table = [space.name for space in models], questions.table
    asked: dict[str, Callable] = {}
    if questions.trend is not None:
        asked["trend"] = partial(
            trend,
            measures["score"],
            numbers(models, questions.trend, table),
            names,
            column=questions.trend,
            families=labels(models, "family", table),
            against=questions.against,
            seed=questions.seed,
        )
    if questions.control:
        asked["control"] = partial(
            control,
            measures["score"],
            {column: labels(models, column, table) for column in questions.control},
            names,
            null=measures.get("null"),
            q=measures.get("q"),
            seed=questions.seed,
        )
    return asked
