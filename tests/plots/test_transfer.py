from typing import Any

import numpy as np
import pytest
from helpers.contexts import rotating, two_views

from repstitch.errors import InputError
from repstitch.plots.transfer import plot_transfer
from repstitch.transfer import run
from repstitch.transfer.context import build
from repstitch.transfer.report import OF_PROBES

OLD, NEW, LABELS, R = two_views(400)
PROOF = run.prove_probe(build(rotating(R), rotating(R.T.copy(), "new", "old"), OLD, NEW, LABELS))[1]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_first_panel_shows_each_contenders_accuracy():
    first, second = plot_transfer(PROOF).axes
    shown = [tick.get_text() for tick in first.get_yticklabels()]
    assert shown[0] == "carried probe"
    assert "majority class" in shown
    assert texts(first) == [f"{PROOF['accuracy'][name]['score']:.3f}" for name in OF_PROBES]
    assert second.get_xlabel() == "labelled rows of the target"


def test_the_second_panel_shows_the_curve_and_what_it_saves():
    curve = PROOF["label_efficiency"]
    axes = plot_transfer(PROOF).axes[1]
    assert "labels saved" in axes.get_title().replace("\n", " ")
    lines: Any = {line.get_label(): line for line in axes.lines}
    assert list(lines["probe trained on the target"].get_xdata()) == curve["sizes"]
    assert lines["carried probe: no labels of the target"].get_ydata()[0] == PROOF["accuracy"]["carried"]["score"]


def test_a_proof_without_a_curve_has_one_panel():
    without = {name: value for name, value in PROOF.items() if name != "label_efficiency"}
    assert len(plot_transfer(without).axes) == 1


def test_what_has_no_accuracy_cannot_be_drawn():
    with pytest.raises(InputError, match="`plot` draws the proof of a probe or of names"):
        plot_transfer({"correlation": {}})


def test_names_are_called_what_they_are():
    from repstitch.transfer.zero_shot import name_classes, prove_names

    prompts = [OLD.vectors[f"class {k}" == LABELS].mean(0) for k in range(3)]
    named: Any = name_classes(
        rotating(R, target_mean=NEW.vectors.mean(0)), np.stack(prompts), ["class 0", "class 1", "class 2"]
    )
    (axes,) = plot_transfer(prove_names(named, NEW.vectors, LABELS)).axes
    shown = [tick.get_text() for tick in axes.get_yticklabels()]
    assert shown == ["from names alone", "the same, names shuffled", "majority class"]
