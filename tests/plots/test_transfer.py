from typing import Any

import numpy as np
import pytest
from helpers.contexts import rotating, two_views

from repstitch.errors import InputError
from repstitch.plots.transfer import plot_transfer
from repstitch.transfer import run
from repstitch.transfer.context import build_context
from repstitch.transfer.proof import DictionaryProof, Proof
from repstitch.transfer.zero_shot import evaluate_names, probe_from_prompts

OLD, NEW, LABELS, R = two_views(400)
PROOF: Any = run.prove_probe(build_context(rotating(R), rotating(R.T.copy(), "new", "old"), OLD, NEW, LABELS))[1]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_first_panel_shows_each_contenders_accuracy():
    first, second = plot_transfer(PROOF).axes
    shown = [tick.get_text() for tick in first.get_yticklabels()]
    assert shown[0] == "transferred probe"
    assert "majority class" in shown
    assert texts(first) == [f"{PROOF.accuracy(name).score:.3f}" for name in Proof.CONTENDERS]
    assert second.get_xlabel() == "labelled target rows"


def test_the_second_panel_shows_the_curve_and_what_it_saves():
    curve = PROOF.label_efficiency
    axes = plot_transfer(PROOF).axes[1]
    assert "labels saved" in axes.get_title().replace("\n", " ")
    lines: Any = {line.get_label(): line for line in axes.lines}
    assert list(lines["probe trained on the target"].get_xdata()) == curve.sizes
    assert lines["transferred probe (no target labels)"].get_ydata()[0] == PROOF.accuracy("carried").score


def test_the_second_panel_has_the_carried_probes_interval_as_a_band_and_the_means_of_draws_as_points():
    values = PROOF.to_dict()
    values["accuracy"]["carried"] = {"score": 0.7, "interval": [0.625, 0.75]}
    axes = plot_transfer(Proof(values)).axes[1]
    bands: Any = axes.patches
    assert [(band.get_y(), band.get_height()) for band in bands] == [(0.625, 0.125)]
    lines: Any = {line.get_label(): line for line in axes.lines}
    drawn = lines["probe trained on the target"].get_ydata()
    np.testing.assert_allclose(drawn, [np.mean(draws) for draws in PROOF.label_efficiency.accuracy])


def test_a_proof_without_a_curve_has_one_panel():
    values = PROOF.to_dict()
    del values["label_efficiency"]
    assert len(plot_transfer(Proof(values)).axes) == 1


def test_what_has_no_accuracy_cannot_be_drawn():
    for proof in (DictionaryProof({"correlation": {}}), None):
        with pytest.raises(InputError, match="`plot` requires the accuracies of a probe; pass `labels`"):
            plot_transfer(proof)


def test_names_are_called_what_they_are():
    prompts = [OLD.vectors[f"class {k}" == LABELS].mean(0) for k in range(3)]
    named: Any = probe_from_prompts(
        rotating(R, target_mean=NEW.vectors.mean(0)), np.stack(prompts), ["class 0", "class 1", "class 2"]
    )
    (axes,) = plot_transfer(evaluate_names(named, NEW.vectors, LABELS)).axes
    shown = [tick.get_text() for tick in axes.get_yticklabels()]
    assert shown == ["probe from class names", "probe from shuffled names", "majority class"]
