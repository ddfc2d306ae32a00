# pyright: strict
"""The scores of one use of a translation, as typed views of JSON: retrieval, references, relevance, verdict."""

import re
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
    flag,
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
OVER_QUERIES_ONLY = "interval over queries only: score again"
PROBABLE = {"use": "probably use", "use as first stage": "probably use as first stage"}


class RecallScores(Record):
    """Recall at several ranks: recall@k is the share of queries whose counterpart is among the first k results."""

    RANKS: ClassVar[tuple[int, ...]] = RECALLS
    _intervals = otherwise(mapping(list[float], "intervals"), {})

    @property
    def recall(self) -> dict[int, Estimate]:
        """Recall by rank, for the ranks that were scored, ascending."""
        return {k: self._scored(f"recall@{k}") for k in self._ranks("recall")}

    def recall_at(self, k: int) -> Estimate:
        """Return recall@k. Raises InputError if rank `k` was not scored."""
        return chosen(self.recall, k, "k", "a rank that recall was scored at")

    def interval(self, name: str) -> tuple[float, float]:
        """Return the 95 % interval of a score such as recall@1 or mrr. Raises InputError if it has none."""
        intervals = {scored: bounds for scored, bounds in self._intervals.items() if is_interval(bounds)}
        low, high = chosen(intervals, name, "name", "a score with an interval")
        return float(low), float(high)

    def check(self) -> None:
        super().check()
        for k in self.RANKS:
            if not is_number(self._values.get(f"recall@{k}")):
                raise InputError(f"A {type(self).__name__} must have 'recall@{k}', a number.")
        names = ["mrr", *(f"{score}@{k}" for score in ("recall", "overlap") for k in self._ranks(score))]
        for name in names:
            if name in self._intervals and not is_interval(self._intervals[name]):
                raise InputError(f"'intervals' of a {type(self).__name__} must have two numbers for '{name}'.")

    def _ranks(self, score: str) -> list[int]:
        """Return the k of each number called `score@k`, ascending. Other names, of a newer release, are ignored."""
        names = [name for name, value in self._values.items() if name.startswith(f"{score}@") and is_number(value)]
        tails = [name.removeprefix(f"{score}@") for name in names]
        return sorted(int(tail) for tail in tails if tail.isdecimal() and tail == str(int(tail)))

    def _scored(self, name: str) -> Estimate:
        return Estimate(float(self[name]), self.interval(name) if name in self._intervals else None)


class ControlScores(RecallScores):
    """Recall of a control: at rank 10, and at other ranks if they were scored."""

    RANKS = (10,)


class Verdict(Record):
    """The verdict on one use of a translation, a sentence that explains it, and the numbers behind it.

    The verdict is one of `names.VERDICTS`. A Verdict compares equal to that text. A card that was scored before 0.2 has
    narrower intervals, which vary only the queries; its `use` is read as `probably use`.
    """

    _word = string("verdict")
    _reason = string("why")
    _sure = optional(flag("sure"))  # None in cards whose intervals vary only the queries
    measure = optional(string())  # the measure that decided, such as overlap@10; None if nothing could be decided
    numbers = otherwise(mapping(JSON), {})
    """The numbers behind the verdict, by name; empty if nothing could be decided."""

    _thresholds = optional(mapping(JSON, "thresholds"))

    @property
    def verdict(self) -> str:
        return PROBABLE.get(self._word, self._word) if self.over_queries_only else self._word

    @property
    def why(self) -> str:
        note = f" ({OVER_QUERIES_ONLY})" if self.over_queries_only and self._word != "not judged" else ""
        return self._reason + note

    @property
    def sure(self) -> bool:
        """False for `probably …`, and for `re-embed` while the interval of a share still reaches its threshold."""
        return bool(self._sure)

    @property
    def over_queries_only(self) -> bool:
        """Whether the intervals behind the verdict vary only the queries, as those of releases before 0.2 did."""
        return self._sure is None

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
        if isinstance(other, str):
            return "verdict" in self and self.verdict == other
        return super().__eq__(other)

    def __hash__(self) -> int:
        return hash(self.verdict) if isinstance(self._values.get("verdict"), str) else super().__hash__()


class ReferenceScores(Record):
    """One measure of a translation and of its references. All intervals use the same queries.

    `keep_old` searches with the old model, `ceiling` after full re-embedding with the new one. `reranked` is the rival
    without a map: the first 100 results of the old model in the order of the new model's similarities. `naive` searches
    without translating. `constant` translates every row to the mean. `shuffled` replaces each translation by that of
    another row.
    """

    translated = estimate()
    keep_old = estimate()
    ceiling = estimate()
    over_keep_old = estimate()  # `translated` minus `keep_old`
    reranked = optional(estimate())  # None if the old model is gone, and in scorecards of earlier releases
    naive = optional(estimate())
    constant = optional(estimate())
    shuffled = optional(estimate())
    retention = optional(estimate())  # `translated` divided by `ceiling`; None if the ceiling is 0

    def get(self, name: str) -> Estimate | None:
        """Return the score of the reference called `name`; None if it was not scored."""
        return as_estimate(self[name]) if name in self else None


class Comparison(Record):
    """Several measures of a translation, each with its references."""

    @property
    def measures(self) -> dict[str, ReferenceScores]:
        return {name: ReferenceScores(scores) for name, scores in self._values.items() if _compares(scores)}

    def check(self) -> None:
        super().check()
        for scores in self.measures.values():
            scores.check()


class References(Comparison):
    """Share of the true neighbours that a search finds.

    overlap@k is their share among the first k results, topk_in_m their share among the first m. The k true neighbours
    of a row are those that full re-embedding would find. `truth` names their space: source or target.
    """

    truth = string()
    chance = otherwise(mapping(float), {})  # score of a random search, by measure


class UseScores(RecallScores):
    """Scores of one use: translated queries that search native rows, or native queries that search translated rows."""

    _mrr = number("mrr")
    _verdict = optional(part(Verdict, "verdict"))
    median_rank = number()
    hubness_skew = number()
    """Skewness of the number of times that each gallery row is a result: large if a few rows are hubs."""
    shuffled = part(ControlScores)  # recall if each translation is replaced by that of another row
    constant = optional(part(ControlScores))  # recall if every translation is the mean of the training targets
    naive = optional(part(ControlScores))  # recall of untranslated rows, if both spaces have the same dimension
    references = optional(part(References))
    """Share of the true neighbours, compared with references; None if neighbours in either space are arbitrary."""

    @property
    def mrr(self) -> Estimate:
        """Mean reciprocal rank of the counterpart."""
        return self._scored("mrr")

    @property
    def overlap(self) -> Estimate:
        """Share of the counterpart's k nearest target rows among the first k results.

        In query use this differs from `references`, whose true neighbours are those in the source space.
        """
        return self._scored(self._overlap_name)

    @property
    def verdict(self) -> Verdict:
        """The verdict on this use. Raises InputError if the scores were written by a release without verdicts."""
        if self._verdict is None:
            raise MissingError(
                "These scores have no verdict, because an earlier release wrote them; score the stitcher again."
            )
        return self._verdict

    def check(self) -> None:
        super().check()
        if not self._ranks("overlap"):
            raise InputError(f"A {type(self).__name__} must have 'overlap@k', a number, for some k.")

    @property
    def _overlap_name(self) -> str:
        return next((f"overlap@{k}" for k in self._ranks("overlap")), "overlap@k")


class RelevanceScores(Comparison):
    """nDCG@10 and recall@100 by relevance judgements, with references, and the verdict on one use."""

    queries = whole()  # number of judged queries; the scores are means over them
    depth = optional(whole())  # length of the shortlist of recall@100: 100, or the number of documents if smaller
    verdict = part(Verdict)


class Relevance(Record):
    """Scores by relevance judgements for each use, and the number of judged ids that the files do not contain."""

    documents = whole()
    _query = optional(part(RelevanceScores, "query"))
    _corpus = optional(part(RelevanceScores, "corpus"))
    documents_seen_in_training = whole()
    queries_seen_in_training = whole()
    queries_without_relevant = whole()
    unknown_queries = whole()
    unknown_documents = whole()

    @property
    def unseen_documents(self) -> "Relevance | None":
        """The scores over the documents that training did not use; None if it used none, or nearly all.

        They hold for an index much larger than the pairs, and the scores over all documents for an index of these.
        """
        return Relevance(self["unseen_documents"]) if "unseen_documents" in self else None

    @property
    def deciding(self) -> "Relevance":
        """The scores that give the verdicts: those over unseen documents, if there are any."""
        return self.unseen_documents or self

    @property
    def uses(self) -> dict[str, RelevanceScores]:
        """The scores of each use, for the uses that were judged."""
        return {use: RelevanceScores(self[use]) for use in USES if use in self}

    @property
    def query(self) -> RelevanceScores:
        return chosen(self.uses, "query", "use", "a use that was judged")

    @property
    def corpus(self) -> RelevanceScores:
        return chosen(self.uses, "corpus", "use", "a use that was judged")


def measure_name(measure: str) -> str:
    """Return the name of a measure in reports: `overlap@10` is "true neighbours in the first 10"."""
    if re.fullmatch(r"overlap@\d+|top\d+_in_\d+", measure):
        return f"true neighbours in the first {re.findall(r'[0-9]+', measure)[-1]}"
    return measure.replace("ndcg@", "nDCG@")


def chosen(values: Mapping[Key, Of], key: Key, argument: str, kind: str) -> Of:
    """Return the value of a key. Raises MissingError, which lists the existing keys, if there is none."""
    if key not in values:
        listed = ", ".join(map(str, values)) or "none"
        raise MissingError(f"`{argument}` must be {kind} ({listed}); got {key!r}.")
    return values[key]


def _compares(scores: object) -> bool:
    return isinstance(scores, Mapping) and "translated" in scores
