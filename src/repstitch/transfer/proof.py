"""Proofs: the results of evaluating transferred probes, probes from class names and transferred dictionaries."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from repstitch.evaluation.report import Block, as_markdown, as_text
from repstitch.records import (
    Estimate,
    Record,
    as_estimate,
    estimate,
    mapping,
    number,
    optional,
    part,
    sequence,
    string,
    whole,
)
from repstitch.text import num

MEASURES = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
}


class LabelEfficiency(Record):
    """Accuracies of native probes by number of labelled target rows, compared with a transferred probe."""

    sizes = sequence(int)  # numbers of labelled rows, ascending
    accuracy = sequence(list[float])  # for each of `sizes`, the accuracies of one or more random draws of rows
    carried = optional(number())  # the accuracy of the transferred probe, if it was compared
    matches = optional(whole())
    """The number of rows at which native probes are as accurate as the transferred probe; None if they never are."""

    def __str__(self) -> str:
        sizes = self.sizes
        if self.matches is None:
            return f"labels saved: a native probe is less accurate even with all {sizes[-1]:,} labelled target rows"
        about = "at most" if self.matches == sizes[0] else "about"
        return f"labels saved: a native probe needs {about} {self.matches:,} labelled target rows to be as accurate"


class ClassCosines(Record):
    """The cosine of two directions for each class, and the mean over classes."""

    mean = number()
    by_class = sequence(float)


class ProbeCosines(ClassCosines):
    """Cosines of transferred and native probe directions, and their mean for a map fitted to shuffled pairs."""

    shuffled = number()


class ClassDirections(Record):
    """Cosines of the source's class directions, transferred to the target, with the target's own class directions."""

    others = number()  # the mean cosine with the target's directions of other classes
    cosine = part(ClassCosines)


class ClassifierProof(Record, ABC):
    """Measures of several classifiers on the same test rows, each with a 95 % interval."""

    source = optional(string())  # the name of the source space
    target = optional(string())  # the name of the target space
    classes = sequence(str)
    n_test = whole()
    left_out = mapping(int)  # numbers of rows that were not used, by reason
    _accuracy = mapping(dict[str, Any], "accuracy")

    CONTENDERS: ClassVar[Mapping[str, str]]  # the name of each contender in reports

    @property
    def contenders(self) -> list[str]:
        """The names of the classifiers that were measured, in the order of reports."""
        return [name for name in self.CONTENDERS if name in self._accuracy]

    def accuracy(self, contender: str = "carried") -> Estimate:
        """Return the share of test rows whose class has the highest score."""
        return self.measure("accuracy", contender)

    def balanced_accuracy(self, contender: str = "carried") -> Estimate:
        """Return the mean over classes of the accuracy on the class's rows."""
        return self.measure("balanced_accuracy", contender)

    def auroc(self, contender: str = "carried") -> Estimate:
        """Return the mean over classes of the area under the ROC curve."""
        return self.measure("auroc", contender)

    def measure(self, name: str, contender: str = "carried") -> Estimate:
        """Return a measure by its name: accuracy, top5, balanced_accuracy or auroc."""
        return as_estimate(self[name][contender])

    def __str__(self) -> str:
        return as_text(self._blocks())

    def _summary(self) -> str:
        ends = f"{self.source} -> {self.target}, " if self.source else ""
        return f"{type(self).__name__}({ends}{len(self.classes)} classes, accuracy {self.accuracy()})"

    def _repr_markdown_(self) -> str:
        return as_markdown(self._blocks())

    def _blocks(self) -> list[Block]:
        measures = [name for name in MEASURES if name in self]
        head = (self._heading(), *(MEASURES[name] for name in measures))
        rows = [
            (self.CONTENDERS[name], *(str(self.measure(measure, name)) for measure in measures))
            for name in self.contenders
        ]
        counts = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return [[head, *rows], *self._sentences(), *([f"rows left out: {counts}"] if counts else [])]

    @abstractmethod
    def _heading(self) -> str:
        """Return the heading of the first column: the test rows and classes."""

    @abstractmethod
    def _sentences(self) -> list[str]:
        """Return the sentences of the report below the table."""


class Proof(ClassifierProof):
    """How well a probe of the source classifies target rows after its transfer; see `evaluate_probe`."""

    through = string()  # description of the map that the probe was transferred through
    n_train = whole()
    retention = optional(estimate())  # transferred / native accuracy; None if the native probe is never right
    cosine = part(ProbeCosines)
    below_native = estimate()  # accuracy of the native probe minus that of the transferred probe
    above_shuffled = estimate()  # accuracy of the transferred probe minus that with a map fitted to shuffled pairs
    score_correlation = number()
    """The correlation of the transferred and the native probe's scores on the test rows, averaged over classes."""
    label_efficiency = optional(part(LabelEfficiency))
    """How many labelled rows a native probe needs; None if that was not measured."""
    class_directions = optional(part(ClassDirections))
    """Cosines of transferred and target class directions; None if they were not measured."""

    CONTENDERS: ClassVar[Mapping[str, str]] = {
        "carried": "transferred probe",
        "whole": "  original probe on translated rows",
        "native": "native probe (trained on the target)",
        "home": "original probe on source rows",
        "shuffled": "transferred, map fitted to shuffled pairs",
        "random": "random directions",
        "majority": "majority class",
    }

    def _heading(self) -> str:
        return f"{self.n_test} unseen rows of {self.target}, {len(self.classes)} classes"

    def _sentences(self) -> list[str]:
        sentences = []
        if self.retention is not None:
            sentences.append(f"accuracy as a share of the native probe's: {self.retention}")
        sentences.append(
            f"accuracy minus that with a map fitted to shuffled pairs: {self.above_shuffled} (brackets: 95 % intervals)"
        )
        sentences.append(
            f"transferred and native probe: mean cosine of their class directions {num(self.cosine.mean)} "
            f"(shuffled pairs: {num(self.cosine.shuffled)}), correlation of their scores on the test rows "
            f"{num(self.score_correlation)}"
        )
        directions = self.class_directions
        if directions is not None:
            sentences.append(
                f"class directions (class mean minus overall mean), transferred to the target: mean cosine "
                f"{num(directions.cosine.mean)} with the target's own, {num(directions.others)} with those of other "
                "classes"
            )
        if self.label_efficiency is not None:
            sentences.append(str(self.label_efficiency))
        return sentences


class ZeroShotProof(ClassifierProof):
    """How well a probe made from class names classifies rows of the target; see `evaluate_names`."""

    CONTENDERS: ClassVar[Mapping[str, str]] = {
        "carried": "probe from class names",
        "shuffled": "probe from shuffled names",
        "majority": "majority class",
    }

    _chance = mapping(float, "chance")

    def chance(self, measure: str = "accuracy") -> float:
        """Return the accuracy or balanced_accuracy of guessing among all names."""
        return self._chance[measure]

    def _heading(self) -> str:
        return f"{self.n_test} labelled rows, {len(self.classes)} class names"

    def _sentences(self) -> list[str]:
        return [f"balanced accuracy of guessing: {num(self.chance('balanced_accuracy'))} (brackets: 95 % intervals)"]


class FeatureCorrelation(Record):
    """Pearson correlation of transferred with original features: mean and median over features."""

    mean = number()
    median = number()


class SameActive(Record):
    """The share of active source features that are active on the target, and the share expected by chance."""

    share = number()
    chance = number()


class Explained(Record):
    """Shares of variance explained by reconstructions of target rows and source rows, and by both maps alone."""

    target = number()
    source = number()
    maps_alone = number()


class DictionaryProof(Record):
    """How well a transferred dictionary's features of target rows match the original's features of source rows.

    The rows are of the same items. See `compare_features`.
    """

    n_test = whole()
    features = whole()  # the number of features of the dictionary
    correlation = optional(part(FeatureCorrelation))  # None if no feature was compared
    same_active = part(SameActive)
    explained = part(Explained)
    compared = whole()  # the number of features that are active in enough rows to be compared
    shuffled = optional(number())
    """The mean correlation for the dictionary transferred through maps that were fitted to shuffled pairs."""

    def __str__(self) -> str:
        return as_text(self._sentences())

    def _summary(self) -> str:
        correlation = "" if self.correlation is None else f", correlation {num(self.correlation.mean)}"
        return f"DictionaryProof({self.compared} of {self.features} features{correlation})"

    def _repr_markdown_(self) -> str:
        return as_markdown(self._sentences())

    def _sentences(self) -> list[str]:
        active, explained = self.same_active, self.explained
        sentences = [
            f"{self.n_test} unseen rows, {self.compared} of {self.features} features active in enough rows to compare"
        ]
        if self.correlation is not None and self.shuffled is not None:
            sentences.append(
                f"correlation of transferred with original features: mean {num(self.correlation.mean)}, median "
                f"{num(self.correlation.median)} (shuffled pairs: mean {num(self.shuffled)})"
            )
        sentences.append(
            f"of the features active on a source row, {active.share:.1%} are active on the same item's target row "
            f"({active.chance:.1%} expected by chance)"
        )
        sentences.append(
            f"variance explained: {num(explained.target)} of the target's rows by the transferred dictionary, "
            f"{num(explained.source)} of the source's rows by the original, {num(explained.maps_alone)} of the "
            "target's rows by mapping them to the source and back"
        )
        return sentences


AnyProof = Proof | ZeroShotProof | DictionaryProof
