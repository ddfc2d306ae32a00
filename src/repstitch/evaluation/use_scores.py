# pyright: strict
"""The scores of one use of a translation, by counterparts and by relevance judgements, as typed views of JSON."""

from collections.abc import Mapping
from dataclasses import fields
from typing import ClassVar, TypeVar

from repstitch.errors import InputError, MissingError
from repstitch.evaluation.thresholds import Thresholds
from repstitch.names import USES
from repstitch.records import (
    JSON,
    Estimate,
    Record,
    as_estimate,
    estimate,
    is_interval,
    is_number,
    mapping,
    number,
    optional,
    otherwise,
    part,
    string,
    whole,
)

Key = TypeVar("Key")
Of = TypeVar("Of")
RECALLS = (1, 5, 10)


class RecallScores(Record):
    """Recall at several ranks: the share of queries whose counterpart is among the first k results."""

    RANKS: ClassVar[tuple[int, ...]] = RECALLS
    _intervals = otherwise(mapping(list[float], "intervals"), {})

    @property
    def recall(self) -> dict[int, Estimate]:
        """The recall at each rank that was scored, ascending."""
        return {k: self._scored(f"recall@{k}") for k in self._ranks("recall")}

    def recall_at(self, k: int) -> Estimate:
        """The recall at rank `k`. Raises InputError where it was not scored."""
        return chosen(self.recall, k, "k", "a rank that recall was scored at")

    def interval(self, name: str) -> tuple[float, float]:
        """The 95 % interval of a score: recall@1, mrr, …. Raises InputError where none was taken."""
        intervals = {scored: bounds for scored, bounds in self._intervals.items() if is_interval(bounds)}
        low, high = chosen(intervals, name, "name", "a score with an interval")
        return float(low), float(high)

    def check(self) -> None:
        super().check()
        for k in self.RANKS:
            if not is_number(self._values.get(f"recall@{k}")):
                raise InputError(f"A {type(self).__name__} must hold 'recall@{k}', a number.")
        names = ["mrr", *(f"{score}@{k}" for score in ("recall", "overlap") for k in self._ranks(score))]
        for name in names:
            if name in self._intervals and not is_interval(self._intervals[name]):
                raise InputError(f"'intervals' of a {type(self).__name__} must hold two numbers for '{name}'.")

    def _ranks(self, score: str) -> list[int]:
        """The k of each number `score@k`, ascending; names of another form, of a newer release, are left out."""
        names = [name for name, value in self._values.items() if name.startswith(f"{score}@") and is_number(value)]
        tails = [name.removeprefix(f"{score}@") for name in names]
        return sorted(int(tail) for tail in tails if tail.isdecimal() and tail == str(int(tail)))

    def _scored(self, name: str) -> Estimate:
        return Estimate(float(self[name]), self.interval(name) if name in self._intervals else None)


class ControlScores(RecallScores):
    """The recall of a control, at rank 10 and where they were scored at other ranks."""

    RANKS = (10,)


class Verdict(Record):
    """Whether a translation is worth using for one use: a word, the sentence that explains it, and its numbers.

    The word is one of `use`, `use as first stage`, `re-embed`, `keep the old model`, `undecided` and `not judged`. A
    verdict equals its word.
    """

    verdict = string()
    why = string()
    measure = optional(string())  # the measure that decided, such as overlap@10; None where nothing could be decided
    numbers = otherwise(mapping(JSON), {})
    """The numbers behind the verdict, by name; empty where nothing could be decided."""

    _thresholds = optional(mapping(float, "thresholds"))

    @property
    def thresholds(self) -> Thresholds:
        names = {field.name for field in fields(Thresholds)}
        return Thresholds(**{name: value for name, value in (self._thresholds or {}).items() if name in names})

    def check(self) -> None:
        super().check()
        try:
            _ = self.thresholds
        except (InputError, TypeError) as error:
            raise InputError(f"'thresholds' of a {type(self).__name__} cannot be used: {error}") from None

    def __str__(self) -> str:
        return self.verdict

    def _summary(self) -> str:
        return f"Verdict({self.verdict!r}: {self.why})"

    def __eq__(self, other: object) -> bool:
        return self._values.get("verdict") == other if isinstance(other, str) else super().__eq__(other)

    def __hash__(self) -> int:
        word = self._values.get("verdict")
        return hash(word) if isinstance(word, str) else super().__hash__()


class ReferenceScores(Record):
    """One measure of a translation beside the same measure of its references, with intervals over the same queries.

    `keep_old` is the old model as it is, `ceiling` full re-embedding with the new one. `naive` searches without
    translating, `constant` translates every row to the mean, `shuffled` to another row's translation.
    """

    translated = estimate()
    keep_old = estimate()
    ceiling = estimate()
    over_keep_old = estimate()  # `translated` less `keep_old`
    naive = optional(estimate())
    constant = optional(estimate())
    shuffled = optional(estimate())
    retention = optional(estimate())  # `translated` over `ceiling`; None where the ceiling is 0

    def get(self, name: str) -> Estimate | None:
        """The score of a reference by name; None where it was not scored."""
        return as_estimate(self[name]) if name in self else None


class Comparison(Record):
    """Several measures of a translation, each beside its references."""

    @property
    def measures(self) -> dict[str, ReferenceScores]:
        return {name: ReferenceScores(scores) for name, scores in self._values.items() if _compares(scores)}

    def check(self) -> None:
        super().check()
        for scores in self.measures.values():
            scores.check()


class References(Comparison):
    """Overlap with the true neighbours: overlap@k among the first k results, topk_in_m among the first m.

    `truth` names the space whose neighbours are the true ones: source or target.
    """

    truth = string()
    chance = otherwise(mapping(float), {})  # what a random search scores, by measure


class UseScores(RecallScores):
    """The scores of one use: of translated queries in a native index, or of native queries in a translated corpus."""

    _mrr = number("mrr")
    _verdict = optional(part(Verdict, "verdict"))
    median_rank = number()
    hubness_skew = number()
    """The skewness of how often each row of the gallery is found: large where a few rows are hubs."""
    shuffled = part(ControlScores)  # recall with another row's translation in place of each row's own
    constant = optional(part(ControlScores))  # recall of a translation that is the training targets' mean for every row
    naive = optional(part(ControlScores))  # recall of untranslated rows, where both spaces have one dimension
    references = optional(part(References))
    """Scores beside those of the references; None where neighbours in either space are arbitrary."""

    @property
    def mrr(self) -> Estimate:
        """Mean reciprocal rank of the counterpart."""
        return self._scored("mrr")

    @property
    def overlap(self) -> Estimate:
        """The share of the target's own k nearest neighbours among the first k results."""
        return self._scored(self._overlap_name)

    @property
    def verdict(self) -> Verdict:
        """Whether to use the translation for this. Raises InputError on scores of a release without verdicts."""
        if self._verdict is None:
            raise MissingError("These scores have no verdict: an earlier release wrote them. Score the stitcher again.")
        return self._verdict

    def check(self) -> None:
        super().check()
        if not self._ranks("overlap"):
            raise InputError(f"A {type(self).__name__} must hold 'overlap@k', a number, for some k.")

    @property
    def _overlap_name(self) -> str:
        return next((f"overlap@{k}" for k in self._ranks("overlap")), "overlap@k")


class RelevanceScores(Comparison):
    """nDCG@10 and recall@100 by relevance judgements, beside the references, and the verdict on one use."""

    queries = whole()  # the number of judged queries, over which scores are means
    depth = optional(whole())  # the length of the shortlist of recall@100: 100, or all documents where they are fewer
    verdict = part(Verdict)


class Relevance(Record):
    """Scores by relevance judgements, for each use, and what the judgements name that the files do not hold."""

    documents = whole()
    _query = optional(part(RelevanceScores, "query"))
    _corpus = optional(part(RelevanceScores, "corpus"))
    documents_seen_in_training = whole()
    queries_seen_in_training = whole()
    queries_without_relevant = whole()
    unknown_queries = whole()
    unknown_documents = whole()

    @property
    def uses(self) -> dict[str, RelevanceScores]:
        """The scores of each use that was judged."""
        return {use: RelevanceScores(self[use]) for use in USES if use in self}

    @property
    def query(self) -> RelevanceScores:
        return chosen(self.uses, "query", "use", "a use that was judged")

    @property
    def corpus(self) -> RelevanceScores:
        return chosen(self.uses, "corpus", "use", "a use that was judged")


def chosen(values: Mapping[Key, Of], key: Key, argument: str, kind: str) -> Of:
    """The value of a key. Raises MissingError, with the keys there are, where there is none."""
    if key not in values:
        listed = ", ".join(map(str, values)) or "none"
        raise MissingError(f"`{argument}` must be {kind} ({listed}); got {key!r}.")
    return values[key]


def _compares(scores: object) -> bool:
    return isinstance(scores, Mapping) and "translated" in scores
