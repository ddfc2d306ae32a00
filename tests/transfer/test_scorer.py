"""`train` and `score` with labels: the scorecard states how well a probe of the target works on source rows."""

import json
from typing import Any

import numpy as np
import pytest
from helpers.contexts import two_views

from repstitch.cli.main import main
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.stitchers.model_card import model_card
from repstitch.stitchers.stitcher import load
from repstitch.transfer import Proof
from repstitch.workflows.scoring import score
from repstitch.workflows.training import train

OLD, NEW, LABELS, _ = two_views(400)
WITH_LABELS: dict[str, Any] = {"method": "ridge", "objective": "reconstruction", "labels": LABELS}
TRAINED = train(OLD, NEW, **WITH_LABELS)


def test_training_with_labels_evaluates_a_probe_of_the_target_on_source_rows():
    proof: Any = Proof.from_dict(TRAINED.scorecard.to_dict()["probe_transfer"])
    assert (proof.source, proof.target) == ("new", "old")
    assert proof.accuracy("carried").score > 0.9
    assert proof.above_shuffled.interval[0] > 0.3
    assert proof.retention.score == pytest.approx(1, abs=0.05)
    assert proof.n_test == TRAINED.provenance["pairs"]["test"]
    assert json.loads(json.dumps(TRAINED.scorecard.to_dict())) == TRAINED.scorecard.to_dict()


def test_scoring_with_labels_gives_the_same_result_on_the_unseen_rows():
    scorecard = score(TRAINED, OLD, NEW, labels=LABELS)
    assert scorecard.probe_transfer == TRAINED.scorecard.probe_transfer


def test_the_scorecard_shows_and_saves_the_probe_transfer(tmp_path):
    line = next(one for one in TRAINED.scorecard.table().splitlines() if "a probe of 3 classes" in one)
    assert TRAINED.scorecard.probe_transfer is not None
    carried = TRAINED.scorecard.probe_transfer.accuracy.carried.score
    assert (
        f"transferred from new to old ({TRAINED.provenance['pairs']['test']} unseen rows): accuracy {carried:.3f}"
        in line
    )
    assert "through shuffled pairs" in line
    TRAINED.save(tmp_path / "kept")
    kept = load(tmp_path / "kept")
    assert kept.scorecard.probe_transfer == TRAINED.scorecard.probe_transfer
    assert line in model_card(kept._config(), kept.scorecard)


def test_refitting_keeps_the_probe_transfer_of_the_first_fit():
    again = train(OLD, NEW, refit_on_all=True, **WITH_LABELS)
    assert again.scorecard.probe_transfer == TRAINED.scorecard.probe_transfer
    assert not np.array_equal(again.map.weight.numpy(), TRAINED.map.weight.numpy())


def test_without_labels_the_scorecard_has_no_probe_transfer():
    plain = train(OLD, NEW, method="ridge", objective="reconstruction")
    assert "probe_transfer" not in plain.scorecard
    assert "a probe of" not in plain.scorecard.table()


def test_labels_that_cannot_be_used_are_refused_before_anything_is_fitted(monkeypatch):
    monkeypatch.setattr("repstitch.workflows.training.select", lambda *args: pytest.fail("it was fitted"))
    with pytest.raises(InputError, match="must be classes that repeat"):
        train(OLD, NEW, method="ridge", labels=np.arange(400))
    with pytest.raises(InputError, match="the split has none"):
        train(OLD, NEW, split_shares=(0.8, 0.2, 0), **WITH_LABELS)


def test_labels_with_a_stitcher_trained_with_groups_warn(caplog):
    groups = np.array([f"g{i // 2}" for i in range(400)], dtype=object)
    made = train(OLD, NEW, group=groups, method="ridge", objective="reconstruction")
    score(made, OLD, NEW, labels=LABELS)
    assert "trained with groups, which the split for `labels` ignores" in caplog.text


def test_train_and_score_take_labels_on_the_command_line(tmp_path, capsys):
    for rows in (OLD, NEW):
        write(tmp_path / f"{rows.space.name}.parquet", rows)
    lines = ["id,kind", *(f"item{i},{one}" for i, one in enumerate(LABELS))]
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    files = f"--source {tmp_path}/old.parquet --target {tmp_path}/new.parquet --labels {tmp_path}/labels.csv:kind"
    assert main(f"train {files} --out {tmp_path}/made --method ridge --objective reconstruction --full".split()) == 0
    assert "a probe of 3 classes, transferred from new to old" in capsys.readouterr().out
    assert main(f"score {tmp_path}/made {files} --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["probe_transfer"]["accuracy"]["carried"]["score"] > 0.9
