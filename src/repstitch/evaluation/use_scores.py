# pyright: strict
"""The scores of one use of a translation, by counterparts and by relevance judgements, as typed views of JSON."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from repstitch.errors import InputError
from repstitch.evaluation.thresholds import Thresholds
from repstitch.names import USES
from repstitch.records import NUMBER, Estimate, Record, is_interval, is_number

Key = TypeVar("Key")
Of = TypeVar("Of")
RECALLS = (1, 5, 10)


class RecallScores(Record):
    """Recall at several ranks: the share of queries whose counterpart is among the first k results."""

    REQUIRED: ClassVar = {f"recall@{k}": NUMBER for k in RECALLS}

    @property
    def recall(self) -> dict[int, Estimate]:
        """The recall at each rank that was scored, ascending."""
        prefix = "recall@"
        ranks = sorted(int(name.removeprefix(prefix)) for name in self._values if name.startswith(prefix))
        return {k: self._scored(f"{prefix}{k}") for k in ranks}

    def recall_at(self, k: int) -> Estimate:
        """The recall at rank `k`. Raises InputError where it was not scored."""
        return chosen(self.recall, k, "k", "a rank that recall was scored at")

    def interval(self, name: str) -> tuple[float, float]:
        """The 95 % interval of a score: recall@1, mrr, …. Raises InputError where none was taken."""
        low, high = chosen(self._intervals, name, "name", "a score with an interval")
        return float(low), float(high)

    def check(self) -> None:
        super().check()
        for name, low_high in self._intervals.items():
            if not is_interval(low_high):
                raise InputError(f"`intervals` of a {type(self).__name__} must hold two numbers for `{name}`.")

    @property
    def _intervals(self) -> Mapping[str, Any]:
        return self._values.get("intervals") or {}

    def _scored(self, name: str) -> Estimate:
        return Estimate(float(self._values[name]), self.interval(name) if name in self._intervals else None)


class Verdict(Record):
    """Whether a translation is worth using for one use: a word, the sentence that explains it, and its numbers.

    The word is one of `use`, `use as first stage`, `re-embed`, `keep the old model`, `undecided` and `not judged`. A
    verdict equals its word.
    """

    REQUIRED: ClassVar = {"verdict": str, "why": str}
    OPTIONAL: ClassVar = {"measure": str, "numbers": dict, "thresholds": dict}

    @property
    def verdict(self) -> str:
        return self._values["verdict"]

    @property
    def why(self) -> str:
        return self._values["why"]

    @property
    def measure(self) -> str | None:
        """The measure that decided, such as overlap@10; None where nothing could be decided."""
        return self._values.get("measure")

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers behind the verdict by name; empty where nothing could be decided."""
        return dict(self._values.get("numbers") or {})

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(**self._values["thresholds"])

    def __str__(self) -> str:
        return self.verdict

    def __repr__(self) -> str:
        return f"Verdict({self.verdict!r}: {self.why})"

    def __eq__(self, other: object) -> bool:
        return self.verdict == other if isinstance(other, str) else super().__eq__(other)

    def __hash__(self) -> int:
        return hash(self.verdict)


class ReferenceScores(Record):
    """One measure of a translation beside the same measure of its references, with intervals over the same queries.

    `keep_old` is the old model as it is, `ceiling` full re-embedding with the new one. `naive` searches without
    translating, `constant` translates every row to the mean, `shuffled` to another row's translation.
    """

    REQUIRED: ClassVar = dict.fromkeys(("translated", "keep_old", "ceiling", "over_keep_old"), Estimate)
    OPTIONAL: ClassVar = dict.fromkeys(("naive", "constant", "shuffled", "retention"), Estimate)

    @property
    def translated(self) -> Estimate:
        return self._estimate("translated")

    @property
    def keep_old(self) -> Estimate:
        return self._estimate("keep_old")

    @property
    def ceiling(self) -> Estimate:
        return self._estimate("ceiling")

    @property
    def over_keep_old(self) -> Estimate:
        """`translated` less `keep_old`."""
        return self._estimate("over_keep_old")

    @property
    def retention(self) -> Estimate | None:
        """`translated` over `ceiling`; None where the ceiling is 0."""
        return self._optional_estimate("retention")

    def get(self, name: str) -> Estimate | None:
        """The score of a reference by name; None where it was not scored."""
        return self._optional_estimate(name)


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

    REQUIRED: ClassVar = {"truth": str, "chance": dict}

    @property
    def truth(self) -> str:
        return self._values["truth"]

    @property
    def chance(self) -> dict[str, float]:
        """What a random search scores, by measure."""
        return dict(self._values["chance"])


class UseScores(RecallScores):
    """The scores of one use: of translated queries in a native index, or of native queries in a translated corpus."""

    REQUIRED: ClassVar = {
        **RecallScores.REQUIRED,
        "mrr": NUMBER,
        "median_rank": NUMBER,
        "hubness_skew": NUMBER,
        "shuffled": RecallScores,
    }
    OPTIONAL: ClassVar = {
        "intervals": dict,
        "constant": RecallScores,
        "naive": RecallScores,
        "references": References,
        "verdict": Verdict,
    }

    @property
    def mrr(self) -> Estimate:
        """Mean reciprocal rank of the counterpart."""
        return self._scored("mrr")

    @property
    def overlap(self) -> Estimate:
        """The share of the target's own k nearest neighbours among the first k results."""
        return self._scored(self._overlap_name)

    @property
    def median_rank(self) -> float:
        return float(self._values["median_rank"])

    @property
    def hubness_skew(self) -> float:
        """The skewness of how often each row of the gallery is found: large where a few rows are hubs."""
        return float(self._values["hubness_skew"])

    @property
    def shuffled(self) -> RecallScores:
        """Recall with another row's translation in place of each row's own."""
        return self._part(RecallScores, "shuffled")

    @property
    def constant(self) -> RecallScores | None:
        """Recall of a translation that is the training targets' mean for every row."""
        return self._optional_part(RecallScores, "constant")

    @property
    def naive(self) -> RecallScores | None:
        """Recall of untranslated rows, where both spaces have one dimension."""
        return self._optional_part(RecallScores, "naive")

    @property
    def references(self) -> References | None:
        """Scores beside those of the references; None where neighbours in either space are arbitrary."""
        return self._optional_part(References, "references")

    @property
    def verdict(self) -> Verdict:
        """Whether to use the translation for this. Raises InputError on scores of a release without verdicts."""
        if "verdict" not in self:
            raise InputError("These scores have no verdict: an earlier release wrote them. Score the stitcher again.")
        return self._part(Verdict, "verdict")

    def check(self) -> None:
        super().check()
        if not is_number(self._values.get(self._overlap_name)):
            raise InputError(f"A {type(self).__name__} must hold `overlap@k`, a number, for some k.")

    @property
    def _overlap_name(self) -> str:
        return next((name for name in self._values if name.startswith("overlap@")), "overlap@k")


class RelevanceScores(Comparison):
    """nDCG@10 and recall@100 by relevance judgements, beside the references, and the verdict on one use."""

    REQUIRED: ClassVar = {"queries": int, "depth": int, "verdict": Verdict}

    @property
    def queries(self) -> int:
        """The number of judged queries, over which scores are means."""
        return self._values["queries"]

    @property
    def depth(self) -> int:
        """The length of the shortlist of recall@100: 100, or all documents where they are fewer."""
        return self._values["depth"]

    @property
    def verdict(self) -> Verdict:
        return self._part(Verdict, "verdict")


class Relevance(Record):
    """Scores by relevance judgements, for each use, and what the judgements name that the files do not hold."""

    REQUIRED: ClassVar = dict.fromkeys(
        (
            "documents",
            "unknown_queries",
            "unknown_documents",
            "queries_without_relevant",
            "queries_seen_in_training",
            "documents_seen_in_training",
        ),
        int,
    )
    OPTIONAL: ClassVar = dict.fromkeys(USES, RelevanceScores)

    @property
    def documents(self) -> int:
        return self._values["documents"]

    @property
    def documents_seen_in_training(self) -> int:
        return self._values["documents_seen_in_training"]

    @property
    def queries_seen_in_training(self) -> int:
        return self._values["queries_seen_in_training"]

    @property
    def queries_without_relevant(self) -> int:
        return self._values["queries_without_relevant"]

    @property
    def unknown_queries(self) -> int:
        return self._values["unknown_queries"]

    @property
    def unknown_documents(self) -> int:
        return self._values["unknown_documents"]

    @property
    def uses(self) -> dict[str, RelevanceScores]:
        """The scores of each use that was judged."""
        return {use: self._part(RelevanceScores, use) for use in USES if use in self}

    @property
    def query(self) -> RelevanceScores:
        return chosen(self.uses, "query", "use", "a use that was judged")

    @property
    def corpus(self) -> RelevanceScores:
        return chosen(self.uses, "corpus", "use", "a use that was judged")


def chosen(values: Mapping[Key, Of], key: Key, argument: str, kind: str) -> Of:
    """The value of a key. Raises InputError, with the keys there are, where there is none."""
    if key not in values:
        listed = ", ".join(map(str, values)) or "none"
        raise InputError(f"`{argument}` must be {kind} ({listed}); got {key!r}.")
    return values[key]


def _compares(scores: object) -> bool:
    return isinstance(scores, Mapping) and "translated" in scores
