"""What a transfer found, as lines for people."""

from repstitch.evaluation.report import with_interval
from repstitch.text import columns, num

MEASURES = {
    "accuracy": "accuracy",
    "top5": "in the first five",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
}
OF_PROBES = {
    "carried": "carried probe",
    "whole": "  the probe after the whole stitcher",
    "native": "probe trained on the target",
    "home": "the probe on its own space",
    "shuffled": "carried through shuffled pairs",
    "random": "random directions",
    "majority": "majority class",
}
OF_NAMES = {"carried": "from names alone", "shuffled": "the same, names shuffled", "majority": "majority class"}


def contenders(found: dict) -> dict[str, str]:
    """What to call each contender of a proof, of a probe or of names."""
    return OF_PROBES if "retention" in found else OF_NAMES


def report(found: dict) -> str:
    """A proof: of a probe, of names, or of a dictionary."""
    if "correlation" in found:
        return report_dictionary(found)
    return report_probe(found) if "retention" in found else report_names(found)


def report_probe(found: dict) -> str:
    """The proof of a probe: each contender's scores, what they add up to, and the number of labels it saves."""
    head = f"{found['n_test']} unseen rows of {found['target']}, {len(found['classes'])} classes"
    lines = [_scores(found, head)]
    if found["retention"] is not None:
        lines.append(f"share of the native probe's accuracy: {with_interval(found['retention'])}")
    lines.append(f"above shuffled pairs: {with_interval(found['above_shuffled'])}")
    cosine = found["cosine"]
    lines.append(
        f"cosine of carried and native directions {num(cosine['mean'])} (through shuffled pairs "
        f"{num(cosine['shuffled'])}); what they say of the test rows correlates by {num(found['score_correlation'])}"
    )
    if "class_directions" in found:
        own = found["class_directions"]
        lines.append(
            f"the classes' mean directions, carried forward: cosine {num(own['cosine']['mean'])} to the target's own, "
            f"{num(own['others'])} to those of other classes"
        )
    if "label_efficiency" in found:
        lines.append(label_sentence(found["label_efficiency"]))
    return "\n".join(lines + _left_out(found))


def label_sentence(curve: dict) -> str:
    """How many labels the carried probe is worth."""
    most = curve["sizes"][-1]
    if curve["matches"] is None:
        return f"labels saved: a native probe does not match it with all {most:,} labelled rows of the target"
    at_most = "at most " if curve["matches"] == curve["sizes"][0] else "about "
    return f"labels saved: a native probe needs {at_most}{curve['matches']:,} labelled rows of the target to match it"


def report_names(found: dict) -> str:
    """The proof of a classifier from names alone."""
    head = f"{found['n_test']} labelled rows, {len(found['classes'])} names"
    text = _scores(found, head)
    chance = f"chance: balanced accuracy {num(found['chance']['balanced_accuracy'])}"
    return "\n".join([text, chance, *_left_out(found)])


def report_dictionary(found: dict) -> str:
    """What became of a dictionary's features."""
    explained, active = found["explained"], found["same_active"]
    lines = [f"{found['n_test']} unseen rows, {found['compared']} of {found['features']} features active often enough"]
    if found["correlation"] is not None:
        lines.append(
            f"features correlate with the original's by {num(found['correlation']['mean'])} on the mean, "
            f"{num(found['correlation']['median'])} in the middle; through shuffled pairs {num(found['shuffled'])}"
        )
    lines.append(
        f"of the features active for a row {active['share']:.1%} are active for its counterpart "
        f"(of all, {active['chance']:.1%} are)"
    )
    lines.append(
        f"variance explained: {num(explained['target'])} of the target's rows by the carried dictionary, "
        f"{num(explained['source'])} of the source's by the original; the maps alone, there and back, "
        f"{num(explained['maps_alone'])}"
    )
    return "\n".join(lines)


def _scores(found: dict, head: str) -> str:
    measures = [name for name in MEASURES if name in found]
    rows: list[tuple] = [(head, *(MEASURES[name] for name in measures))]
    for name, words in contenders(found).items():
        if name in found[measures[0]]:
            rows.append((words, *(with_interval(found[measure][name]) for measure in measures)))
    return columns(rows)


def _left_out(found: dict) -> list[str]:
    said = ", ".join(f"{count} {reason}" for reason, count in found["left_out"].items())
    return [f"left out: {said}"] if said else []
