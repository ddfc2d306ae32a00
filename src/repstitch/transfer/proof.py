"""Proofs: how well a carried probe, a probe from names or a carried dictionary works on rows of the target space."""

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
    "top5": "in the first five",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
}


class LabelEfficiency(Record):
    """Accuracies of native probes trained on few labelled target rows, and how many match the carried probe."""

    sizes = sequence(int)  # numbers of labelled rows, ascending
    accuracy = sequence(list[float])  # the accuracies of several random draws of rows, for each of `sizes`
    carried = optional(number())  # the accuracy of the carried probe, where it was compared
    matches = optional(whole())
    """The number of rows at which native probes reach the carried one; None where they never do."""

    def __str__(self) -> str:
        sizes = self.sizes
        if self.matches is None:
            return f"labels saved: a native probe does not match it with all {sizes[-1]:,} labelled rows of the target"
        about = "at most" if self.matches == sizes[0] else "about"
        return f"labels saved: a native probe needs {about} {self.matches:,} labelled rows of the target to match it"


class ClassCosines(Record):
    """Cosines of two directions per class, and their mean over classes."""

    mean = number()
    by_class = sequence(float)


class ProbeCosines(ClassCosines):
    """Cosines of the carried and the native probe's directions, and the mean through shuffled pairs."""

    shuffled = number()


class ClassDirections(Record):
    """Cosines of the classes' mean directions, carried forward, with the target's own."""

    others = number()  # the mean cosine with the directions of other classes
    cosine = part(ClassCosines)


class ClassifierProof(Record, ABC):
    """Measures of several classifiers on the same test rows, each with a 95 % interval."""

    source = optional(string())  # the name of the source space
    target = optional(string())  # the name of the target space
    classes = sequence(str)
    n_test = whole()
    left_out = mapping(int)  # numbers of rows that were left out, by reason
    _accuracy = mapping(dict[str, Any], "accuracy")

    CONTENDERS: ClassVar[Mapping[str, str]]  # the name of each contender in reports

    @property
    def contenders(self) -> list[str]:
        """The classifiers that were measured, in the order of reports."""
        return [name for name in self.CONTENDERS if name in self._accuracy]

    def accuracy(self, contender: str = "carried") -> Estimate:
        """The share of test rows whose class has the highest score."""
        return self.measure("accuracy", contender)

    def balanced_accuracy(self, contender: str = "carried") -> Estimate:
        """The mean over classes of the accuracy on the class's rows."""
        return self.measure("balanced_accuracy", contender)

    def auroc(self, contender: str = "carried") -> Estimate:
        """The mean over classes of the area under the ROC curve."""
        return self.measure("auroc", contender)

    def measure(self, name: str, contender: str = "carried") -> Estimate:
        """A measure by its name: accuracy, top5, balanced_accuracy or auroc."""
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
        return [[head, *rows], *self._sentences(), *([f"left out: {counts}"] if counts else [])]

    @abstractmethod
    def _heading(self) -> str:
        """The head of the table: what the measures were taken on."""

    @abstractmethod
    def _sentences(self) -> list[str]:
        """What the report says below the table."""


class Proof(ClassifierProof):
    """How well a probe of the source, carried to the target, tells classes there; see `evaluate_probe`."""

    through = string()  # in words, what the probe was carried through
    n_train = whole()
    retention = optional(estimate())  # carried over native accuracy; None where the native probe is never right
    cosine = part(ProbeCosines)
    below_native = estimate()  # the native probe's accuracy less the carried one's
    above_shuffled = estimate()  # the carried probe's accuracy less that of one carried through shuffled pairs
    score_correlation = number()
    """The correlation of the carried with the native probe's scores of the test rows, the mean over classes."""
    label_efficiency = optional(part(LabelEfficiency))
    """How many labelled rows a native probe needs; None where that was not measured."""
    class_directions = optional(part(ClassDirections))
    """Cosines of the classes' mean directions; None where they were not measured."""

    CONTENDERS: ClassVar[Mapping[str, str]] = {
        "carried": "carried probe",
        "whole": "  the probe after the whole stitcher",
        "native": "probe trained on the target",
        "home": "the probe on its own space",
        "shuffled": "carried through shuffled pairs",
        "random": "random directions",
        "majority": "majority class",
    }

    def _heading(self) -> str:
        return f"{self.n_test} unseen rows of {self.target}, {len(self.classes)} classes"

    def _sentences(self) -> list[str]:
        sentences = []
        if self.retention is not None:
            sentences.append(f"share of the native probe's accuracy: {self.retention}")
        sentences.append(f"above shuffled pairs: {self.above_shuffled}")
        sentences.append(
            f"cosine of carried and native directions {num(self.cosine.mean)} (through shuffled pairs "
            f"{num(self.cosine.shuffled)}); what they say of the test rows correlates by {num(self.score_correlation)}"
        )
        directions = self.class_directions
        if directions is not None:
            sentences.append(
                f"the classes' mean directions, carried forward: cosine {num(directions.cosine.mean)} to the target's "
                f"own, {num(directions.others)} to those of other classes"
            )
        if self.label_efficiency is not None:
            sentences.append(str(self.label_efficiency))
        return sentences


class ZeroShotProof(ClassifierProof):
    """How well a probe made from the classes' names tells classes of the target; see `evaluate_names`."""

    CONTENDERS: ClassVar[Mapping[str, str]] = {
        "carried": "from names alone",
        "shuffled": "the same, names shuffled",
        "majority": "majority class",
    }

    _chance = mapping(float, "chance")

    def chance(self, measure: str = "accuracy") -> float:
        """The accuracy or balanced_accuracy of a guess among all names."""
        return self._chance[measure]

    def _heading(self) -> str:
        return f"{self.n_test} labelled rows, {len(self.classes)} names"

    def _sentences(self) -> list[str]:
        return [f"chance: balanced accuracy {num(self.chance('balanced_accuracy'))}"]


class FeatureCorrelation(Record):
    """Pearson correlation of features with the original's, over features."""

    mean = number()
    median = number()


class SameActive(Record):
    """The share of an item's active features that stay active, and that share for independent features."""

    share = number()
    chance = number()


class Explained(Record):
    """Shares of variance that decoding gives back: of target rows, of source rows, and by both maps alone."""

    target = number()
    source = number()
    maps_alone = number()


class DictionaryProof(Record):
    """How far a carried dictionary gives target rows the features of the same items' source rows.

    See `compare_features`.
    """

    n_test = whole()
    features = whole()  # the number of features of the dictionary
    correlation = optional(part(FeatureCorrelation))  # None where no feature was compared
    same_active = part(SameActive)
    explained = part(Explained)
    compared = whole()  # the number of features that are active in enough rows to be compared
    shuffled = optional(number())
    """The mean correlation of the dictionary carried through maps that were fitted to shuffled pairs."""

    def __str__(self) -> str:
        return as_text(self._sentences())

    def _summary(self) -> str:
        correlation = "" if self.correlation is None else f", correlation {num(self.correlation.mean)}"
        return f"DictionaryProof({self.compared} of {self.features} features{correlation})"

    def _repr_markdown_(self) -> str:
        return as_markdown(self._sentences())

    def _sentences(self) -> list[str]:
        active, explained = self.same_active, self.explained
        sentences = [f"{self.n_test} unseen rows, {self.compared} of {self.features} features active often enough"]
        if self.correlation is not None and self.shuffled is not None:
            sentences.append(
                f"features correlate with the original's by {num(self.correlation.mean)} on the mean, "
                f"{num(self.correlation.median)} in the middle; through shuffled pairs {num(self.shuffled)}"
            )
        sentences.append(
            f"of the features active for a row {active.share:.1%} are active for its counterpart "
            f"(of all, {active.chance:.1%} are)"
        )
        sentences.append(
            f"variance explained: {num(explained.target)} of the target's rows by the carried dictionary, "
            f"{num(explained.source)} of the source's by the original; the maps alone, there and back, "
            f"{num(explained.maps_alone)}"
        )
        return sentences


AnyProof = Proof | ZeroShotProof | DictionaryProof
