"""Proofs: how well a carried probe, a probe from names or a carried dictionary works on rows of the target space."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from repstitch.evaluation.report import Block, as_markdown, as_text
from repstitch.records import NUMBER, Estimate, Record, as_estimate
from repstitch.text import num

MEASURES = {
    "accuracy": "accuracy",
    "top5": "in the first five",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
}


class LabelEfficiency(Record):
    """Accuracies of native probes trained on few labelled target rows, and how many match the carried probe."""

    REQUIRED: ClassVar = {"sizes": list, "accuracy": list}
    OPTIONAL: ClassVar = {"carried": NUMBER, "matches": int}

    @property
    def sizes(self) -> list[int]:
        """Numbers of labelled rows, ascending."""
        return list(self._values["sizes"])

    @property
    def accuracy(self) -> list[list[float]]:
        """The accuracies of several random draws of rows, for each of `sizes`."""
        return [list(draws) for draws in self._values["accuracy"]]

    @property
    def carried(self) -> float | None:
        """The accuracy of the carried probe, where it was compared."""
        return self._values.get("carried")

    @property
    def matches(self) -> int | None:
        """The number of rows at which native probes reach the carried one; None where they never do."""
        return self._values.get("matches")

    def __str__(self) -> str:
        sizes = self.sizes
        if self.matches is None:
            return f"labels saved: a native probe does not match it with all {sizes[-1]:,} labelled rows of the target"
        about = "at most" if self.matches == sizes[0] else "about"
        return f"labels saved: a native probe needs {about} {self.matches:,} labelled rows of the target to match it"


class ClassDirections(Record):
    """Cosines of the classes' mean directions, carried forward, with the target's own."""

    REQUIRED: ClassVar = {"cosine": dict, "others": NUMBER}

    @property
    def cosine(self) -> float:
        """The mean over classes."""
        return self._values["cosine"]["mean"]

    @property
    def by_class(self) -> list[float]:
        return list(self._values["cosine"]["by_class"])

    @property
    def others(self) -> float:
        """The mean cosine with the directions of other classes."""
        return self._values["others"]


class Cosine(NamedTuple):
    """Cosines of carried and native directions: their mean over classes, each, and the mean through shuffled pairs."""

    mean: float
    by_class: list[float]
    shuffled: float


class ClassifierProof(Record):
    """Measures of several classifiers on the same test rows, each with a 95 % interval."""

    REQUIRED: ClassVar = {"classes": list, "n_test": int, "left_out": dict, "accuracy": dict}
    OPTIONAL: ClassVar = {"source": str, "target": str}
    CONTENDERS: ClassVar[Mapping[str, str]]  # the name of each contender in reports

    @property
    def source(self) -> str | None:
        """The name of the source space."""
        return self._values.get("source")

    @property
    def target(self) -> str | None:
        """The name of the target space."""
        return self._values.get("target")

    @property
    def classes(self) -> list[str]:
        return list(self._values["classes"])

    @property
    def n_test(self) -> int:
        return self._values["n_test"]

    @property
    def left_out(self) -> dict[str, int]:
        """Numbers of rows that were left out, by reason."""
        return dict(self._values["left_out"])

    @property
    def contenders(self) -> list[str]:
        """The classifiers that were measured, in the order of reports."""
        return [name for name in self.CONTENDERS if name in self._values["accuracy"]]

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
        return as_estimate(self._values[name][contender])

    def __str__(self) -> str:
        return as_text(self._blocks())

    def __repr__(self) -> str:
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

    def _heading(self) -> str:
        raise NotImplementedError

    def _sentences(self) -> list[str]:
        raise NotImplementedError


class Proof(ClassifierProof):
    """How well a probe of the source, carried to the target, tells classes there; see `evaluate_probe`."""

    REQUIRED: ClassVar = {
        **ClassifierProof.REQUIRED,
        "source": str,
        "target": str,
        "through": str,
        "n_train": int,
        "below_native": Estimate,
        "above_shuffled": Estimate,
        "cosine": dict,
        "score_correlation": NUMBER,
    }
    OPTIONAL: ClassVar = {
        "retention": Estimate,
        "label_efficiency": LabelEfficiency,
        "class_directions": ClassDirections,
    }
    CONTENDERS: ClassVar[Mapping[str, str]] = {
        "carried": "carried probe",
        "whole": "  the probe after the whole stitcher",
        "native": "probe trained on the target",
        "home": "the probe on its own space",
        "shuffled": "carried through shuffled pairs",
        "random": "random directions",
        "majority": "majority class",
    }

    @property
    def through(self) -> str:
        """In words, what the probe was carried through."""
        return self._values["through"]

    @property
    def n_train(self) -> int:
        return self._values["n_train"]

    @property
    def retention(self) -> Estimate | None:
        """Carried over native accuracy; None where the native probe is never right."""
        return self._optional_estimate("retention")

    @property
    def below_native(self) -> Estimate:
        """The native probe's accuracy less the carried one's."""
        return self._estimate("below_native")

    @property
    def above_shuffled(self) -> Estimate:
        """The carried probe's accuracy less that of one carried through shuffled pairs."""
        return self._estimate("above_shuffled")

    @property
    def cosine(self) -> Cosine:
        """Cosines of the carried and the native probe's directions."""
        values = self._values["cosine"]
        return Cosine(values["mean"], list(values["by_class"]), values["shuffled"])

    @property
    def score_correlation(self) -> float:
        """The correlation of the carried with the native probe's scores of the test rows, the mean over classes."""
        return self._values["score_correlation"]

    @property
    def label_efficiency(self) -> LabelEfficiency | None:
        """How many labelled rows a native probe needs; None where that was not measured."""
        return self._optional_part(LabelEfficiency, "label_efficiency")

    @property
    def class_directions(self) -> ClassDirections | None:
        """Cosines of the classes' mean directions; None where they were not measured."""
        return self._optional_part(ClassDirections, "class_directions")

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
                f"the classes' mean directions, carried forward: cosine {num(directions.cosine)} to the target's own, "
                f"{num(directions.others)} to those of other classes"
            )
        if self.label_efficiency is not None:
            sentences.append(str(self.label_efficiency))
        return sentences


class ZeroShotProof(ClassifierProof):
    """How well a probe made from the classes' names tells classes of the target; see `evaluate_names`."""

    REQUIRED: ClassVar = {**ClassifierProof.REQUIRED, "chance": dict}
    CONTENDERS: ClassVar[Mapping[str, str]] = {
        "carried": "from names alone",
        "shuffled": "the same, names shuffled",
        "majority": "majority class",
    }

    def chance(self, measure: str = "accuracy") -> float:
        """The accuracy or balanced_accuracy of a guess among all names."""
        return self._values["chance"][measure]

    def _heading(self) -> str:
        return f"{self.n_test} labelled rows, {len(self.classes)} names"

    def _sentences(self) -> list[str]:
        return [f"chance: balanced accuracy {num(self.chance('balanced_accuracy'))}"]


class FeatureCorrelation(NamedTuple):
    """Pearson correlation of features with the original's, over features."""

    mean: float
    median: float


class SameActive(NamedTuple):
    """The share of an item's active features that stay active, and that share for independent features."""

    share: float
    chance: float


class Explained(NamedTuple):
    """Shares of variance that decoding gives back: of target rows, of source rows, and by both maps alone."""

    target: float
    source: float
    maps_alone: float


class DictionaryProof(Record):
    """How far a carried dictionary gives target rows the features of the same items' source rows.

    See `compare_features`.
    """

    REQUIRED: ClassVar = {
        "n_test": int,
        "features": int,
        "compared": int,
        "same_active": dict,
        "explained": dict,
    }
    OPTIONAL: ClassVar = {"correlation": dict, "shuffled": NUMBER}

    @property
    def n_test(self) -> int:
        return self._values["n_test"]

    @property
    def features(self) -> int:
        """The number of features of the dictionary."""
        return self._values["features"]

    @property
    def compared(self) -> int:
        """The number of features that are active in enough rows to be compared."""
        return self._values["compared"]

    @property
    def correlation(self) -> FeatureCorrelation | None:
        """None where no feature was compared."""
        values = self._values.get("correlation")
        return None if values is None else FeatureCorrelation(values["mean"], values["median"])

    @property
    def shuffled(self) -> float | None:
        """The mean correlation of the dictionary carried through maps that were fitted to shuffled pairs."""
        return self._values.get("shuffled")

    @property
    def same_active(self) -> SameActive:
        values = self._values["same_active"]
        return SameActive(values["share"], values["chance"])

    @property
    def explained(self) -> Explained:
        values = self._values["explained"]
        return Explained(values["target"], values["source"], values["maps_alone"])

    def __str__(self) -> str:
        return as_text(self._sentences())

    def __repr__(self) -> str:
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
