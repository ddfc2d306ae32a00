"""Training on few pairs in folds, on weighted pairs, and on own pairs beside general ones."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.spaces import gaussian, shared_latent

from repstitch.cli.main import main
from repstitch.embeddings.checks import check
from repstitch.embeddings.pairs import pair
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.splitting import Split, finest_folds, folds_of, split
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.fit.closed_form import decompose, fit_closed, fit_ridge
from repstitch.fit.objective import ValidationObjective
from repstitch.fit.selection import Problem, select
from repstitch.metrics.moments import moments
from repstitch.metrics.neighbours import unit
from repstitch.spaces import Space
from repstitch.stitchers.stitcher import load
from repstitch.workflows.scoring import score
from repstitch.workflows.training import train

QUICK: dict[str, Any] = {"method": "ridge", "device": "cpu", "objective": "neighbours"}


def rows_of(X: np.ndarray, name: str, ids=None, **columns) -> Embeddings:
    payload = pa.table(columns) if columns else None
    return Embeddings(X, Space(name=name, dim=X.shape[1]), ids=ids, payload=payload)


def two_domains(n_general: int = 300, n_own: int = 60, seed: int = 0):
    """Return pairs whose map is W for general rows and another one for own rows, in other source directions."""
    general, own = gaussian(n_general, 12, seed), gaussian(n_own, 12, seed + 1)
    general[:, 6:] *= 0.1
    own[:, :6] *= 0.1
    W, V = gaussian(12, 10, seed + 2), gaussian(12, 10, seed + 3)
    X, Y = np.concatenate([general, own]), np.concatenate([general @ W, own @ V])
    ids = np.array([f"g{i}" for i in range(n_general)] + [f"o{i}" for i in range(n_own)])
    return X, Y + 0.05 * gaussian(len(Y), 10, seed + 4), ids, np.arange(n_general + n_own) >= n_general


def fold_problem(n: int = 60, n_folds: int = 5, **options) -> Problem:
    X, Y = (unit(torch.from_numpy(side)) for side in shared_latent(n, rank=4, d_source=8, d_target=6, noise=0.3))
    objective = ValidationObjective("neighbours", X, Y, Y[:0])
    return Problem(X, Y, objective, folds=torch.arange(n) % n_folds, **options)


# --- folds ------------------------------------------------------------------------------------------------------------


def test_every_row_is_translated_by_a_map_that_is_fitted_without_its_fold():
    problem = fold_problem()
    predicted = problem.cross_translate(lambda d: fit_ridge(d.moments, 0.1))
    assert problem.folds is not None
    for fold in range(5):
        rows = problem.folds == fold
        without = fit_ridge(moments((problem.X[~rows], problem.Y[~rows])), 0.1)
        torch.testing.assert_close(predicted[rows], without(problem.X[rows]))


def test_the_map_of_a_fold_does_not_depend_on_the_targets_of_the_fold():
    problem = fold_problem()
    rows = cast_folds(problem) == 2
    Y = problem.Y.clone()
    Y[rows] = unit(torch.from_numpy(gaussian(int(rows.sum()), 6, 9)))
    changed = replace(problem, Y=Y)
    before, after = (p.cross_translate(lambda d: fit_ridge(d.moments, 0.1)) for p in (problem, changed))
    torch.testing.assert_close(before[rows], after[rows])
    assert not torch.allclose(before[~rows], after[~rows], atol=1e-3)


def cast_folds(problem: Problem) -> torch.Tensor:
    assert problem.folds is not None
    return problem.folds


def test_the_selected_map_is_fitted_to_all_pairs_with_the_selected_settings():
    problem = fold_problem()
    chosen, tried = select(problem)
    assert [c.method for c in tried] == ["ridge", "procrustes", "canonical"]
    whole = fit_closed(decompose(moments((problem.X, problem.Y))), chosen.method, chosen.settings)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(tensor, chosen.map.tensors()[name], rtol=1e-5, atol=1e-6)


def test_folds_hold_equally_many_groups_and_never_divide_one():
    pairs = pair(rows_of(gaussian(90, 4), "a"), rows_of(gaussian(90, 3), "b"))
    groups = np.array([f"g{i // 3}" for i in range(90)])
    pairs = replace(pairs, groups=groups)
    folds = folds_of(pairs, 5)
    assert np.bincount(folds).tolist() == [18] * 5
    assert all(len(set(folds[groups == group])) == 1 for group in set(groups))
    assert (folds_of(pairs, 5, seed=1) != folds).any()
    assert np.bincount(finest_folds(pairs)).max() == 6  # 30 groups of 3 in 20 folds


def test_general_pairs_are_in_no_fold():
    pairs = pair(rows_of(gaussian(50, 4), "a"), rows_of(gaussian(50, 3), "b"))
    is_own = np.arange(50) >= 30
    folds = folds_of(pairs, 4, 0, is_own)
    assert (folds[:30] == -1).all()
    assert np.bincount(folds[30:]).tolist() == [5] * 4


@pytest.mark.parametrize(
    ("n_folds", "message"),
    [(1, "`folds` must be from 2 to 20; got 1"), (21, "from 2 to 20; got 21"), (2.5, "whole number; got 2.5")],
)
def test_numbers_of_folds_that_make_no_sense_are_refused(n_folds, message):
    pairs = pair(rows_of(gaussian(50, 4), "a"), rows_of(gaussian(50, 3), "b"))
    with pytest.raises(InputError, match=message):
        folds_of(pairs, n_folds)


def test_more_folds_than_groups_are_refused():
    pairs = pair(rows_of(gaussian(50, 4), "a"), rows_of(gaussian(50, 3), "b"))
    pairs = replace(pairs, groups=np.array(["x", "y"] * 25))
    with pytest.raises(InputError, match="2 own groups are fewer than the 5 `folds`; pass more pairs"):
        folds_of(pairs, 5)


@pytest.mark.parametrize("of", ["a general pair", "a pair of another fold", "a pair of the same fold"])
def test_own_pairs_that_nearly_repeat_a_pair_that_trains_are_counted(of):
    X, Y, ids, is_own = two_domains(200, 60)
    pairs = pair(rows_of(X, "a", ids), rows_of(Y, "b", ids))
    folds = finest_folds(pairs, 0, is_own)
    original = {"a general pair": 5, "a pair of another fold": int(np.flatnonzero(folds == 1)[0])}.get(of)
    copy = int(np.flatnonzero(folds == 0)[0])
    if original is None:
        original = int(np.flatnonzero(folds == 0)[1])
    X[copy], Y[copy] = X[original] * 1.0001, Y[original] + 1e-6
    pairs = pair(rows_of(X, "a", ids), rows_of(Y, "b", ids))
    in_folds = np.flatnonzero(folds >= 0)
    findings = check(pairs, Split(np.arange(260), in_folds, in_folds, np.arange(0)), "unit", folds)
    expected = {copy} if of == "a general pair" else {copy, original} if of == "a pair of another fold" else set()
    assert set(np.flatnonzero(findings.near_duplicates)) == expected


def test_training_in_folds_uses_every_pair_and_scores_each_without_it():
    X, Y = shared_latent(120, rank=4, d_source=8, d_target=6, noise=0.3)
    stitcher = train(X, Y, folds=5, **QUICK)
    card = stitcher.scorecard
    assert (card.n, card.held_out) == (120, "pairs in folds")
    assert stitcher.provenance["pairs"] == {"train": 120}
    assert stitcher.split == {"seed": 0, "group": None, "folds": 5}
    assert stitcher.calibration is not None


def test_the_scores_in_folds_are_those_of_pairs_that_the_map_has_not_seen():
    X, Y = shared_latent(1320, rank=4, d_source=8, d_target=6, noise=0.3)
    stitcher = train(X[:120], Y[:120], folds=5, **QUICK)
    unseen = [score(stitcher, X[at : at + 120], Y[at : at + 120]) for at in range(120, 1320, 120)]
    for use in ("query", "corpus"):
        in_folds, low_high = (
            stitcher.scorecard.uses[use].overlap.score,
            stitcher.scorecard.uses[use].interval("overlap@10"),
        )
        mean = float(np.mean([card.uses[use].overlap.score for card in unseen]))
        assert low_high[0] < mean < low_high[1]
        assert in_folds == pytest.approx(mean, abs=0.05)


def test_shuffled_pairs_score_at_chance_in_folds():
    X, Y = shared_latent(200, rank=4, d_source=8, d_target=6, noise=0.1)
    stitcher = train(X, Y[np.random.default_rng(0).permutation(200)], folds=5, **QUICK)
    assert stitcher.scorecard.query.recall_at(10).score < 0.15
    assert stitcher.scorecard.corpus.overlap.score < 0.12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"folds": 5, "split_shares": (0.5, 0.25, 0.25)},
            "With `folds` or `own`, no pairs are set apart; omit `split`",
        ),
        ({"folds": 5, "learning_curve": True}, "`learning_curve` requires a split; omit it, or `folds` and `own`"),
        ({"folds": 5, "method": "mlp"}, "the `method` must be ridge, procrustes, canonical or auto; got 'mlp'"),
        ({"own_share": 0.5}, "`own_share` must be above 0 and at most 1, and requires `own`; got 0.5"),
        ({"own": ["a"], "own_share": 1.5}, "`own_share` must be above 0 and at most 1, and requires `own`; got 1.5"),
        (
            {"use": "corpus", "objective": "match"},
            "`use` is a part of the objective neighbours; the `objective` is match",
        ),
        ({"use": "search", "folds": 5}, "`use` must be one of query, corpus, both; got 'search'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    X, Y = shared_latent(60, rank=4, d_source=8, d_target=6)
    with pytest.raises(InputError, match=message):
        train(X, Y, **QUICK | options)


# --- own pairs beside general ones ------------------------------------------------------------------------------------


def test_a_share_of_own_pairs_is_their_share_of_the_weight_in_the_moments():
    X, Y, _, is_own = two_domains(40, 10)
    X, Y = unit(torch.from_numpy(X)), unit(torch.from_numpy(Y))
    mask = torch.from_numpy(is_own)
    objective = ValidationObjective("neighbours", X[mask], Y[mask], Y[~mask])
    problem = Problem(X, Y, objective, folds=torch.where(mask, torch.arange(50) % 5, -1))
    weights = torch.where(mask, 0.3 / 10, 0.7 / 40)
    expected = moments((X, Y, weights))
    mixed = problem.decomposed((), 0.3).moments
    torch.testing.assert_close(mixed.cov_xy, expected.cov_xy, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(mixed.y_mean, expected.y_mean, rtol=1e-4, atol=1e-7)
    alone = problem.decomposed((), 1.0).moments
    torch.testing.assert_close(alone.cov_xx, moments((X[mask], Y[mask])).cov_xx)
    assert mixed.n_effective == pytest.approx(1 / (0.3**2 / 10 + 0.7**2 / 40))


def test_own_pairs_raise_the_score_on_own_pairs_above_that_of_all_pairs_alike():
    X, Y, ids, is_own = two_domains()
    others = two_domains(300, 400)
    X_new, Y_new = others[0][others[3]], others[1][others[3]]  # the first 60 of these own pairs are trained on
    assert np.array_equal(X_new[:60], X[is_own])
    marked = train(rows_of(X, "a", ids), rows_of(Y, "b", ids), own=ids[is_own], **QUICK)
    alike = train(rows_of(X, "a", ids), rows_of(Y, "b", ids), **QUICK)
    assert marked.scorecard.held_out == "own pairs in folds"
    assert marked.scorecard.n == 60
    assert marked.provenance["pairs"] == {"train": 360, "own": 60}
    assert marked.settings["own_share"] > 0.2
    cosines = [
        float((s.translate(X_new[60:]) * Y_new[60:] / np.linalg.norm(Y_new[60:], axis=1)[:, None]).sum(1).mean())
        for s in (marked, alike)
    ]
    assert 1 - cosines[0] < 0.7 * (1 - cosines[1])
    # The card promises for own rows what they get.
    assert marked.scorecard.reconstruction.cosine == pytest.approx(cosines[0], abs=0.05)


@pytest.mark.parametrize("form", ["ids", "array", "file", "column", "column of words", "column of the target", "table"])
def test_own_pairs_are_named_by_ids_or_by_a_column(form, tmp_path):
    X, Y, ids, is_own = two_domains(60, 40)
    columns: dict[str, Any] = {}
    own: Any = ids[is_own]
    if form == "file":
        own = str(tmp_path / "own.txt")
        (tmp_path / "own.txt").write_text("\n".join(ids[is_own]) + "\n")
    elif form == "ids":
        own = list(own)
    elif form == "table":
        (tmp_path / "own.csv").write_text("doc\n" + "\n".join(ids[is_own]) + "\n")
        own = f"{tmp_path / 'own.csv'}:doc"
    elif form != "array":
        own, columns = (
            "mine",
            {"mine": is_own if form != "column of words" else ["Yes" if mine else "" for mine in is_own]},
        )
    in_target = columns if form == "column of the target" else {}
    source = rows_of(X, "a", ids, **({} if in_target else columns))
    stitcher = train(source, rows_of(Y, "b", ids, **in_target), own=own, own_share=0.4, **QUICK)
    assert stitcher.provenance["pairs"] == {"train": 100, "own": 40}
    assert stitcher.settings["own_share"] == 0.4


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["x1", "x2"], r"`own` has none of the pairs' ids \(it has e.g. 'x1', the pairs 'g0'\)"),
        ("nowhere.txt", "`own`: there is no file nowhere.txt; pass a file with the ids of the own pairs"),
        ("half", "Column 'half' of `own` must say true or false for each row; got '0.5'"),
        ("nobody", "`own` must mark at least one pair; column 'nobody' marks none"),
        (np.ones(100, dtype=bool), "`own` must be the ids of the own pairs"),
    ],
)
def test_own_pairs_that_cannot_be_told_apart_are_refused(own, message):
    X, Y, ids, _ = two_domains(60, 40)
    source = rows_of(X, "a", ids, half=[0.5] * 100, nobody=[False] * 100)
    with pytest.raises(InputError, match=message):
        train(source, rows_of(Y, "b", ids), own=own, **QUICK)


def test_a_stitcher_of_own_pairs_is_the_same_after_loading(tmp_path):
    X, Y, ids, is_own = two_domains(60, 40)
    stitcher = train(rows_of(X, "a", ids), rows_of(Y, "b", ids), own=ids[is_own], **QUICK)
    again = load(stitcher.save(tmp_path / "stitcher"))
    assert np.array_equal(again.translate(X), stitcher.translate(X))
    assert np.array_equal(again.confidence(X).cosine_lower, stitcher.confidence(X).cosine_lower)
    assert again.scorecard.to_dict() == stitcher.scorecard.to_dict()
    assert (again.split, again.settings) == (stitcher.split, stitcher.settings)


def test_the_command_line_takes_own_pairs_with_their_share_folds_and_a_corpus(tmp_path, capsys):
    X, Y, ids, is_own = two_domains(60, 40)
    write(tmp_path / "a.parquet", rows_of(X, "a", ids))
    write(tmp_path / "b.parquet", rows_of(Y, "b", ids))
    write(tmp_path / "corpus.parquet", rows_of(two_domains(60, 200)[0][100:], "a", ids=[f"c{i}" for i in range(160)]))
    (tmp_path / "own.txt").write_text("\n".join(ids[is_own]) + "\n")
    options = ["--folds", "4", "--own", f"{tmp_path / 'own.txt'}=0.5", "--corpus", str(tmp_path / "corpus.parquet")]
    files = ["--source", str(tmp_path / "a.parquet"), "--target", str(tmp_path / "b.parquet")]
    command = ["train", *files, "--out", str(tmp_path / "s"), "--method", "ridge", "--objective", "neighbours"]
    assert main([*command, "--use", "corpus", *options, "--json"]) == 0
    card = json.loads(capsys.readouterr().out)["scorecard"]
    assert card["held_out"] == "own pairs in folds"
    assert card["corpus_sample"]["unlike"] is False
    made = load(tmp_path / "s")
    assert made.split["folds"] == 4
    assert made.settings["own_share"] == 0.5


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "column", "column of the target", "file", "table"])
def test_pairs_of_a_tiny_weight_do_not_change_the_map(form, tmp_path):
    X, Y, ids, is_own = two_domains(150, 150)
    weights = np.where(is_own, 1.0, 1e-6)
    columns: dict[str, Any] = {}
    weight: Any = weights
    if form == "file":
        np.save(tmp_path / "w.npy", weights)
        weight = str(tmp_path / "w.npy")
    elif form == "table":
        lines = [f"{i},{w}" for i, w in zip(ids[::-1], weights[::-1], strict=True)]
        (tmp_path / "w.csv").write_text("id,w\n" + "\n".join(lines) + "\n")
        weight = f"{tmp_path / 'w.csv'}:w"
    elif form != "array":
        weight, columns = "w", {"w": weights}
    in_target = columns if form == "column of the target" else {}
    source, target = rows_of(X, "a", ids, **({} if in_target else columns)), rows_of(Y, "b", ids, **in_target)
    weighted = train(source, target, weight=weight, **QUICK)
    pairs = pair(source, target)
    rows = np.intersect1d(split(pairs).train, np.flatnonzero(is_own))
    assert weighted.provenance["effective_pairs"] == pytest.approx(len(rows), rel=1e-3)
    heavy = moments(tuple(unit(torch.from_numpy(side[rows])) for side in (X, Y)))
    expected = fit_closed(decompose(heavy), "ridge", weighted.settings)
    np.testing.assert_allclose(weighted.map.tensors()["weight"], expected.weight, atol=1e-3)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("zero", "`weight` must be a positive number for every pair; that of 'g0' is 0.0"),
        ("words", "`weight` must be numbers; column 'words' has string"),
        ("nothing", "`weight` must be a column of either side, TABLE:COLUMN, or a file or array"),
        (np.ones(7), r"`weight` must have one entry per row of a"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(weight, message):
    X, Y, ids, _ = two_domains(60, 40)
    source = rows_of(X, "a", ids, zero=[0.0] * 100, words=["much"] * 100)
    with pytest.raises(InputError, match=message):
        train(source, rows_of(Y, "b", ids), weight=weight, **QUICK)


# --- a corpus ---------------------------------------------------------------------------------------------------------


def test_a_corpus_that_is_unlike_the_pairs_takes_verdict_and_confidence_away():
    X, Y, ids, is_own = two_domains(400, 60)
    corpus = two_domains(400, 300)[0][400:]
    general = rows_of(X[~is_own], "a", ids[~is_own]), rows_of(Y[~is_own], "b", ids[~is_own])
    blind, warned = train(*general, **QUICK), train(*general, corpus=corpus, **QUICK)
    assert str(blind.scorecard.corpus.verdict) != "not judged"
    for scores in warned.scorecard.uses.values():
        assert scores.verdict == "not judged"
        assert "the quality on the corpus is unknown. The corpus is unlike the pairs" in scores.verdict.why
    assert blind.calibration is not None
    assert warned.calibration is None
    sample = warned.scorecard.corpus_sample
    assert sample is not None
    assert sample.unlike
    assert sample.apart > 0.9


def test_a_corpus_that_is_like_the_pairs_changes_no_score():
    X, Y, ids, _ = two_domains(400, 60)
    general = rows_of(X[:300], "a", ids[:300]), rows_of(Y[:300], "b", ids[:300])
    plain, compared = train(*general, **QUICK), train(*general, corpus=X[300:400], **QUICK)
    assert compared.scorecard.to_dict() == plain.scorecard.to_dict() | {
        "corpus_sample": {"rows": 100, "apart": pytest.approx(0.5, abs=0.15), "unlike": False}
    }


def test_own_pairs_are_what_a_corpus_is_compared_with_and_a_column_can_name_them():
    X, Y, ids, is_own = two_domains(400, 60)
    corpus = two_domains(400, 300)[0][460:]
    source = rows_of(X, "a", ids, own=is_own)
    stitcher = train(source, rows_of(Y, "b", ids), corpus=corpus, **QUICK)
    assert stitcher.provenance["pairs"] == {"train": 460, "own": 60}
    sample = stitcher.scorecard.corpus_sample
    assert sample is not None
    assert not sample.unlike
    assert stitcher.scorecard.corpus.verdict != "not judged"


def test_a_corpus_in_another_space_is_refused():
    X, Y, ids, _ = two_domains(60, 40)
    with pytest.raises(InputError, match="`corpus`"):
        train(rows_of(X, "a", ids), rows_of(Y, "b", ids), corpus=rows_of(gaussian(50, 10), "b"), **QUICK)
