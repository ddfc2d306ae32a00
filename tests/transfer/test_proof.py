"""Proofs as records: typed properties for the unchanged JSON object, and its text."""

from typing import Any

import numpy as np
import pytest
from helpers.contexts import dictionary, inverse, linear, rotating, task_of, through, two_views
from helpers.spaces import gaussian

from repstitch.errors import InputError
from repstitch.transfer import DictionaryProof, Proof, ZeroShotProof
from repstitch.transfer.dictionary_evaluation import compare_features
from repstitch.transfer.probe_evaluation import evaluate_probe
from repstitch.transfer.zero_shot import evaluate_names, probe_from_prompts

OLD, NEW, LABELS, R = two_views(300)
CLASSES = sorted(set(LABELS))


def of_probe() -> Proof:
    values = evaluate_probe(rotating(R.T.copy(), "new", "old"), task_of(OLD, NEW, LABELS)).to_dict()
    values["class_directions"] = {"cosine": {"mean": 0.5, "by_class": [0.4, 0.6]}, "others": -0.25}
    values["label_efficiency"] = {"sizes": [10, 20], "accuracy": [[0.5], [1.0]], "carried": 0.9, "matches": 17}
    return Proof(values | {"of a newer release": [1]})


def of_names() -> ZeroShotProof:
    prompts = np.stack([OLD.vectors[name == LABELS].mean(0) for name in CLASSES])
    return evaluate_names(
        probe_from_prompts(rotating(R, target_mean=NEW.vectors.mean(0)), prompts, CLASSES), NEW.vectors, LABELS
    )


def of_dictionary() -> DictionaryProof:
    forward, source = linear(6, 6, 3), gaussian(60, 6).astype(float)
    controls = linear(6, 6, 7), linear(6, 6, 8)
    return compare_features(dictionary(), forward, inverse(forward), through(forward, source), source, controls)


PROOFS: dict[str, Any] = {"probe": of_probe(), "names": of_names(), "dictionary": of_dictionary()}


@pytest.mark.parametrize("name", list(PROOFS))
def test_a_proof_keeps_every_key_in_order(name):
    proof = PROOFS[name]
    values = proof.to_dict()
    again = type(proof).from_dict(values)
    assert again == proof
    assert list(again.to_dict()) == list(values)
    assert hash(again) == hash(proof)


@pytest.mark.parametrize("name", list(PROOFS))
def test_a_proof_without_a_required_key_is_refused(name):
    proof = PROOFS[name]
    for key in [field.key for field in proof.fields() if field.default is None]:
        values = proof.to_dict()
        del values[key]
        with pytest.raises(InputError, match=f"must have the key '{key}'"):
            type(proof).from_dict(values)
        with pytest.raises(InputError, match=f"'{key}' of a {type(proof).__name__} must be"):
            type(proof).from_dict(values | {key: None})


def test_the_properties_of_a_probes_proof_are_its_keys():
    proof, values = PROOFS["probe"], PROOFS["probe"].to_dict()
    for key in ("source", "target", "through", "classes", "n_train", "n_test", "left_out", "score_correlation"):
        assert getattr(proof, key) == values[key]
    for measure in ("accuracy", "balanced_accuracy", "auroc"):
        for contender in values[measure]:
            estimate = getattr(proof, measure)(contender)
            assert estimate.score == values[measure][contender]["score"]
            assert list(estimate.interval) == values[measure][contender]["interval"]
    for key in ("retention", "below_native", "above_shuffled"):
        assert getattr(proof, key).score == values[key]["score"]
    assert proof.cosine.to_dict() == values["cosine"]
    assert proof.class_directions.cosine.by_class == [0.4, 0.6]
    assert proof.label_efficiency.carried == 0.9
    without = Proof(values | {"retention": None, "label_efficiency": None})
    assert without.retention is None
    assert without.label_efficiency is None
    assert "accuracy as a share of the native probe's" not in str(without)


def test_a_proof_prints_as_a_report():
    lines = str(PROOFS["probe"]).splitlines()
    assert lines[0].startswith(f"{PROOFS['probe'].n_test} unseen rows of new, 3 classes")
    assert lines[1].split()[:2] == ["transferred", "probe"]
    assert "labels saved: a native probe needs about 17 labelled target rows to be as accurate" in lines
    assert "transferred to the target: mean cosine 0.500 with the target's own, -0.250 with those of" in lines[-2]
    assert "balanced accuracy of guessing: 0.333" in str(PROOFS["names"])
    assert str(PROOFS["dictionary"]).startswith("60 unseen rows, ")


@pytest.mark.parametrize(
    ("matches", "sentence"),
    [(10, "needs at most 10 labelled target rows"), (None, "less accurate even with all 20 labelled target rows")],
)
def test_the_number_of_labels_saved_is_reported_in_a_sentence(matches, sentence):
    values = PROOFS["probe"].to_dict()
    values["label_efficiency"]["matches"] = matches
    assert sentence in str(Proof(values))


def test_a_proof_is_one_line_in_a_console_and_a_table_in_a_notebook():
    assert repr(PROOFS["probe"]).startswith("Proof(old -> new, 3 classes, accuracy ")
    assert repr(PROOFS["names"]).startswith("ZeroShotProof(3 classes, accuracy ")
    assert repr(PROOFS["dictionary"]).startswith("DictionaryProof(")
    rows = PROOFS["probe"]._repr_markdown_().splitlines()
    assert rows[0].startswith("| ")
    assert set(rows[1]) <= set("|- :")
    assert PROOFS["dictionary"]._repr_markdown_().count("\n\n") == 3 - (PROOFS["dictionary"].correlation is None)
