import json
import logging
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.spaces import affine_image, card, gaussian, names, rotation, shared_latent

from repstitch.embeddings.pairs import pair
from repstitch.embeddings.rows import Embeddings
from repstitch.embeddings.splitting import split
from repstitch.embeddings.writing import write
from repstitch.errors import InputError
from repstitch.fit.recipe import Recipe, RecipeSettings
from repstitch.names import METHODS, OBJECTIVES
from repstitch.spaces import Space
from repstitch.stitchers.stitcher import load
from repstitch.workflows.scoring import score
from repstitch.workflows.training import train

FAST: dict[str, Any] = {"device": "cpu", "epochs": 2, "width": 8, "batch_size": 64, "temperatures": (1.0,)}
NAMED: dict[str, Any] = {"source_space": "old", "target_space": "new"}


def learn(source, target, method: str = "ridge", **changes):
    settings: dict[str, Any] = {"method": method} | FAST | changes
    return train(source, target, **settings)


def turned(n: int = 300, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return unit rows X, Y = X R + b with R orthogonal, R and b: a map that every method can represent exactly."""
    X, R = gaussian(n, d, seed).astype(np.float64), rotation(d, seed + 1)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    b = np.random.default_rng(seed + 2).standard_normal(d) / 4
    return X.astype(np.float32), (X @ R + b).astype(np.float32), R, b


def carried(X, Y, ids=None, **fields) -> tuple[Embeddings, Embeddings]:
    ids = names(len(X)) if ids is None else ids
    return (
        Embeddings(X, card("old", X.shape[1]), ids=ids, **fields),
        Embeddings(Y, card("new", Y.shape[1]), ids=ids),
    )


# --- the inputs -------------------------------------------------------------------------------------------------------


def test_arrays_embeddings_and_files_of_the_same_rows_give_the_same_map(tmp_path):
    X, Y, _, _ = turned()
    source, target = carried(X, Y)
    write(tmp_path / "x.parquet", source)
    write(tmp_path / "y.parquet", target)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "ids.txt").write_text("\n".join(source.ids))  # type: ignore[arg-type]
    ids: dict[str, Any] = {"source_ids": source.ids, "target_ids": target.ids}
    paths: dict[str, Any] = {"source_ids": tmp_path / "ids.txt", "target_ids": tmp_path / "ids.txt"}
    ways = [
        learn(source, target),
        learn(tmp_path / "x.parquet", str(tmp_path / "y.parquet")),
        learn(tmp_path / "x.npy", tmp_path / "y.npy", **NAMED, **paths),
        learn(X, Y, **NAMED, **ids),
        learn(torch.from_numpy(X), torch.from_numpy(Y), **NAMED, **ids),
    ]
    for stitcher in ways[1:]:
        assert torch.equal(stitcher.map.weight, ways[0].map.weight)
        assert torch.equal(stitcher.map.bias, ways[0].map.bias)
        np.testing.assert_array_equal(stitcher.seen, ways[0].seen)
    assert ways[1].version == ways[0].version
    assert ways[1].source == source.space
    assert ways[3].source == Space("old", 12)


def test_rows_are_paired_by_id_whatever_their_order(tmp_path):
    X, Y, _, _ = turned()
    source, target = carried(X, Y)
    order = np.random.default_rng(3).permutation(len(Y))
    shuffled = learn(source, target.take(order))
    assert shuffled.scorecard.query.recall_at(1).score == 1.0
    assert shuffled.provenance["paired_by"] == "id"


def test_rows_of_only_one_side_are_dropped_and_counted():
    X, Y, _, _ = turned()
    source, target = carried(X, Y)
    stitcher = learn(source.take(np.arange(0, 280)), target.take(np.arange(10, 300)))
    assert sum(stitcher.provenance["pairs"].values()) == 270
    assert stitcher.provenance["dropped"] == {"source only": 10, "target only": 20}


def test_two_spaces_with_the_same_default_name_are_refused(tmp_path):
    X, Y, _, _ = turned(60)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "a" / "rows.npy", X)
    np.save(tmp_path / "b" / "rows.npy", Y)
    with pytest.raises(InputError, match=r"Both spaces would be named 'rows'; set different names with `source_space`"):
        learn(tmp_path / "a" / "rows.npy", tmp_path / "b" / "rows.npy")
    assert learn(tmp_path / "a" / "rows.npy", tmp_path / "b" / "rows.npy", target_space="new").target.name == "new"


def test_spaces_of_arrays_are_called_source_and_target_unless_they_are_named(tmp_path):
    X, Y, _, _ = turned(60)
    np.save(tmp_path / "new.npy", Y)
    ways = {
        ("source", "target"): learn(X, Y.tolist()),
        ("source", "b"): learn(torch.from_numpy(X), Y, target_space="b"),
        ("a", "target"): learn(carried(X, X)[0], Y, source_space="a"),
        ("source", "new"): learn(X, tmp_path / "new.npy"),
    }
    for names_of_spaces, stitcher in ways.items():
        assert (stitcher.source.name, stitcher.target.name) == names_of_spaces
    scorecard = score(ways["source", "target"], X, Y)
    assert scorecard.n == ways["source", "target"].scorecard.n


def test_an_array_does_not_take_the_name_of_the_other_side(tmp_path):
    X, Y, _, _ = turned(60)
    for name in ("source", "target"):
        np.save(tmp_path / f"{name}.npy", Y)
    ways = {
        ("target", "array"): learn(X, Y, source_space="target"),
        ("array", "source"): learn(X, Y, target_space="source"),
    }
    ways_of_files = {
        ("target", "array"): learn(tmp_path / "target.npy", X),
        ("array", "source"): learn(X, tmp_path / "source.npy"),
        ("source", "target"): learn(tmp_path / "source.npy", X),
    }
    for names_of_spaces, stitcher in (*ways.items(), *ways_of_files.items()):
        assert (stitcher.source.name, stitcher.target.name) == names_of_spaces


def test_a_name_passed_for_one_side_must_differ_from_the_other_sides_default_name(tmp_path):
    X, Y, _, _ = turned(60)
    np.save(tmp_path / "old.npy", Y)
    with pytest.raises(InputError, match="Both spaces would be named 'old'"):
        learn(X, tmp_path / "old.npy", source_space="old")
    with pytest.raises(InputError, match="Both spaces would be named 'old'"):
        learn(tmp_path / "old.npy", carried(X, X)[0].take(np.arange(60)), target_space="old")
    both = learn(X, Y, source_space="old", target_space="old")
    assert (both.source.name, both.target.name) == ("old", "old")


def test_arrays_of_different_lengths_are_refused():
    X, Y, _, _ = turned(60)
    with pytest.raises(InputError, match="must have the same number of rows; got 60 and 59"):
        learn(X, Y[:-1])


def test_integer_vectors_train_like_floats_and_booleans_are_refused():
    X = np.random.default_rng(0).integers(-9, 10, (60, 4))
    whole, floats = learn(X, 2 * X[:, :3]), learn(X.astype(np.float32), 2 * X[:, :3].astype(np.float32))
    assert whole.version == floats.version
    with pytest.raises(InputError, match=r"^`source` must have one vector per item.*got bool"):
        learn(X > 0, X[:, :3])
    with pytest.raises(InputError, match=r"^`target` must have one vector per item.*got bool"):
        learn(X, X > 0)


def test_the_typed_keywords_are_the_settings_of_a_recipe():
    types = {field.name: field.type for field in fields(Recipe) if field.name != "seed"}
    assert RecipeSettings.__annotations__ == types


def test_fewer_than_twenty_pairs_are_refused():
    with pytest.raises(InputError, match="At least 20 pairs are needed; got 19"):
        learn(gaussian(19, 4, 1), gaussian(19, 3, 2), **NAMED)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("n", [20, 60])
def test_few_pairs_are_enough_for_every_method(n, method):
    X, Y, _, _ = turned(n, d=6)
    stitcher = learn(X, Y, method, **NAMED)
    assert stitcher.method in METHODS
    assert stitcher.scorecard.n == stitcher.provenance["pairs"]["test"]
    assert np.isfinite(stitcher.translate(X)).all()


@pytest.mark.parametrize("method", METHODS)
def test_more_dimensions_than_pairs_warn_and_still_train(method, caplog):
    X, Y = shared_latent(60, rank=3, d_source=90, d_target=80, noise=0.05)
    stitcher = learn(X, Y, method, **NAMED)
    assert "are fewer than the 90 dimensions of the source" in caplog.text
    assert any("fewer than the 80 dimensions of the target" in note for note in stitcher.scorecard.notes)
    assert stitcher.scorecard.query.recall_at(5).score > 5 * stitcher.scorecard.chance.recall_at(1).score


def test_the_length_of_rows_does_not_matter():
    X, Y, _, _ = turned()
    scale = np.float32(10.0) ** np.random.default_rng(0).integers(-25, 25, size=(len(X), 1))
    plain, scaled = learn(X, Y, output_norm="unit", **NAMED), learn(X * scale, Y, output_norm="unit", **NAMED)
    assert scaled.scorecard.query.recall_at(1).score > 0.98
    assert plain.scorecard.query.recall_at(1).score > 0.98


# --- the learned map --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_every_method_recovers_a_known_map(method):
    X, Y, R, b = turned()
    stitcher = learn(X, Y, method, output_norm="none", **NAMED)
    for use in ("query", "corpus"):
        assert stitcher.scorecard.uses[use].recall_at(1).score == 1.0
    assert stitcher.scorecard.held_out == "test pairs"
    new = gaussian(50, 12, 99)
    unit = new / np.linalg.norm(new, axis=1, keepdims=True)
    cosine = (stitcher.translate(new) * (unit @ R + b)).sum(1)
    cosine /= np.linalg.norm(stitcher.translate(new), axis=1) * np.linalg.norm(unit @ R + b, axis=1)
    assert cosine.min() > 0.99


def test_a_closed_form_recovers_the_exact_weights():
    X, Y, R, b = turned()
    stitcher = learn(X, Y, objective="reconstruction", output_norm="none", **NAMED)
    np.testing.assert_allclose(stitcher.map.weight.numpy(), R, atol=1e-3)
    np.testing.assert_allclose(stitcher.map.bias.numpy(), b, atol=1e-3)
    assert stitcher.scorecard.reconstruction.r2 > 0.999


def test_unrelated_spaces_score_at_chance():
    stitcher = learn(gaussian(400, 8, 1), gaussian(400, 6, 2), "auto", **NAMED)
    pool = stitcher.scorecard.pool
    assert stitcher.scorecard.query.recall_at(10).score < 10 / pool + 5 * (10 / pool / pool) ** 0.5


@pytest.mark.parametrize("method", ["canonical", "linear", "mlp", "auto"])
def test_one_seed_gives_one_version(method):
    X, Y = shared_latent(200)
    first, second = (learn(X, Y, method, seed=5, **NAMED) for _ in range(2))
    assert first.version == second.version
    assert first.settings["seed"] == 5


def test_another_split_seed_holds_out_other_pairs():
    X, Y, _, _ = turned()
    first, second = (learn(X, Y, split_seed=seed, **NAMED) for seed in (0, 1))
    assert set(first.seen) != set(second.seen)
    assert second.split == {"shares": [0.6, 0.15, 0.25], "seed": 1, "group": None}


def test_auto_tries_every_method_and_prefers_the_simplest_if_all_are_perfect():
    X, Y, _, _ = turned()
    stitcher = learn(X, Y, "auto", output_norm="none", **NAMED)
    tried = stitcher.scorecard.candidates
    assert list(dict.fromkeys(candidate.method for candidate in tried)) == list(METHODS)
    assert len({str((candidate.method, candidate.settings)) for candidate in tried}) == len(tried) > len(METHODS)
    assert [candidate.method for candidate in tried if candidate.chosen] == [stitcher.method] == ["ridge"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_objective_is_recorded(objective, tmp_path):
    X, Y = shared_latent(200)
    stitcher = learn(X, Y, objective=objective, **NAMED)
    assert load(stitcher.save(tmp_path / "s")).objective == objective


def test_the_objective_decides_which_settings_are_chosen():
    """Least squares has the lowest error; restoring the variance of the target has the best retrieval."""
    X, Y = shared_latent(800, rank=20, d_source=24, d_target=24, noise=2.0)
    match, reconstruction = (learn(X, Y, "canonical", objective=o, **NAMED) for o in ("match", "reconstruction"))
    assert reconstruction.settings["power"] > match.settings["power"]
    assert reconstruction.scorecard.reconstruction.r2 > match.scorecard.reconstruction.r2
    assert match.scorecard.query.mrr.score > reconstruction.scorecard.query.mrr.score


def test_the_control_on_broken_pairs_is_at_chance():
    X, Y, _, _ = turned()
    card = learn(X, Y, **NAMED).scorecard
    assert card.query.recall_at(1).score > 0.95
    assert card.control_fit is not None
    assert card.control_fit.recall_at(10).score < 3 * card.chance.recall_at(10).score
    assert card.query.shuffled.recall_at(10).score < 3 * card.chance.recall_at(10).score


@pytest.mark.parametrize(
    ("normalised", "asked", "expected"),
    [
        (True, None, "unit"),
        (None, None, "unit"),
        (False, None, "none"),
        (False, "unit", "unit"),
        (True, "none", "none"),
    ],
)
def test_output_norm_follows_the_targets_card_unless_it_is_passed(normalised, asked, expected):
    X, Y, _, _ = turned(80)
    source, _ = carried(X, Y)
    target = Embeddings(3 * Y, card("new", 12, normalised=normalised), ids=source.ids)
    stitcher = learn(source, target, output_norm=asked)
    lengths = np.linalg.norm(stitcher.translate(X), axis=1)
    assert stitcher.output_norm == expected
    assert np.allclose(lengths, 1, atol=1e-5) == (expected == "unit")


def test_the_means_are_those_of_the_normalised_training_rows():
    X, Y, _, _ = turned()
    stitcher = learn(5 * X, Y, output_norm="unit", split_shares=(0.8, 0.2, 0), **NAMED)
    unit = Y / np.linalg.norm(Y, axis=1, keepdims=True)
    assert stitcher.source_mean.shape == stitcher.target_mean.shape == (12,)
    np.testing.assert_allclose(stitcher.source_mean, X.mean(0), atol=0.05)
    np.testing.assert_allclose(stitcher.target_mean, unit.mean(0), atol=0.05)


# --- the split --------------------------------------------------------------------------------------------------------


def test_the_scores_are_those_of_the_unseen_pairs():
    source, target = carried(*shared_latent(300))
    stitcher = learn(source, target)
    again = score(stitcher, source, target)
    counts = stitcher.provenance["pairs"]
    assert again.left_out == counts["train"] + counts["select"] + counts["calibrate"] == len(stitcher.seen) // 2
    assert again.n == stitcher.scorecard.n == counts["test"]
    for use in ("query", "corpus"):
        now, before = (card.to_dict()[use] for card in (again, stitcher.scorecard))
        assert now["shuffled"] == before["shuffled"]
        scores = {name: value for name, value in now.items() if isinstance(value, float)}
        assert scores == pytest.approx({name: before[name] for name in scores}, rel=1e-5)
    assert again.reconstruction.r2 == pytest.approx(stitcher.scorecard.reconstruction.r2, rel=1e-4)


def test_without_a_test_share_the_scores_are_of_validation_pairs_and_labelled_so():
    X, Y, _, _ = turned()
    stitcher = learn(X, Y, split_shares=(0.7, 0.3, 0), **NAMED)
    counts = stitcher.provenance["pairs"]
    assert counts["test"] == 0
    assert stitcher.scorecard.held_out == "validation pairs"
    assert stitcher.scorecard.n == counts["calibrate"]
    assert len(stitcher.seen) == 2 * len(X)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_a_refit_uses_all_pairs_and_keeps_the_earlier_scores(method):
    source, target = carried(*shared_latent(200))
    held, refitted = (learn(source, target, method, refit_on_all=again) for again in (False, True))
    assert refitted.scorecard.to_dict() == held.scorecard.to_dict() | {"refit": True}
    assert (refitted.method, refitted.settings) == (held.method, held.settings)
    assert not torch.equal(refitted.map.weight, held.map.weight)
    assert len(refitted.seen) == 400
    with pytest.raises(InputError, match="All 200 pairs were used to train this stitcher"):
        score(refitted, source, target)


def test_the_model_card_of_a_refit_states_that_its_scores_are_of_the_first_fit(tmp_path):
    source, target = carried(*shared_latent(200))
    folder = learn(source, target, refit_on_all=True).save(tmp_path / "s")
    assert "fitted again on all pairs; the scores are of the first fit" in (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    "shares",
    [(0.5, 0.5), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (0.6, 0.6, -0.2), (0.5, 0.2, 0.2), (float("nan"), 0.5, 0.5)],
)
def test_invalid_shares_of_the_split_are_refused(shares):
    with pytest.raises(InputError, match="that sum to 1; only test may be 0"):
        learn(gaussian(50, 4, 1), gaussian(50, 3, 2), split_shares=shares, **NAMED)


def test_an_empty_part_of_the_split_is_refused():
    with pytest.raises(InputError, match=r"Only \d pairs fell into validation"):
        learn(gaussian(50, 4, 1), gaussian(50, 3, 2), group=np.zeros(50), **NAMED)


def test_an_identical_pair_on_both_sides_of_the_split_is_refused():
    X, Y, _, _ = turned(100)
    X, Y = np.concatenate([X, X]), np.concatenate([Y, Y])
    with pytest.raises(InputError, match=r"identical pairs are in more than one part of the split"):
        learn(*carried(X, Y))
    dropped = learn(*carried(X, Y), drop_invalid=True)
    assert dropped.provenance["dropped"]["repeats of an identical pair"] == 100
    assert sum(dropped.provenance["pairs"].values()) == 100
    grouped = learn(*carried(X, Y), group=np.tile(np.arange(100), 2))
    assert sum(grouped.provenance["pairs"].values()) == 200


def group_sides(stitcher, groups: np.ndarray, source: Embeddings, target: Embeddings) -> list[set[str]]:
    """Return for each group whether its pairs are seen, test, or both."""
    from repstitch.embeddings.fingerprints import id_fingerprints
    from repstitch.embeddings.pairs import pair

    seen = np.isin(id_fingerprints(pair(source, target).ids), stitcher.seen)
    return [set(np.where(seen[groups == g], "seen", "test")) for g in np.unique(groups)]


@pytest.mark.parametrize("way", ["array", "field", "file", "path", "column of the source", "column of the target"])
def test_pairs_of_one_group_stay_on_one_side_of_the_split(tmp_path, way):
    X, Y, _, _ = turned(200)
    groups = np.array([f"photo{i // 5}" for i in range(200)], dtype=object)
    source, target = carried(X, Y)
    (tmp_path / "groups.txt").write_text("\n".join(groups))
    group: object = {"array": groups, "file": str(tmp_path / "groups.txt"), "path": tmp_path / "groups.txt"}.get(way)
    inputs: tuple = (source, target)
    if way == "field":
        inputs = (Embeddings(X, source.space, source.ids, groups), target)
    elif way != "array":
        write(tmp_path / "x.parquet", source)
        write(tmp_path / "y.parquet", target)
        inputs = (tmp_path / "x.parquet", tmp_path / "y.parquet")
    if way.startswith("column"):
        import pyarrow.parquet as pq

        side = tmp_path / ("x.parquet" if way.endswith("source") else "y.parquet")
        table = pq.read_table(side)
        pq.write_table(table.append_column("photo", [groups.tolist()]), side)
        group = "photo"
    stitcher = learn(*inputs, group=group)
    assert all(len(sides) == 1 for sides in group_sides(stitcher, groups, source, target))
    ungrouped = learn(source, target)
    assert any(len(sides) == 2 for sides in group_sides(ungrouped, groups, source, target))
    recorded = {"array": "array", "field": None, "file": "groups.txt", "path": "groups.txt"}
    assert stitcher.split["group"] == recorded.get(way, "photo")


def test_a_group_file_needs_entries_only_for_source_rows(tmp_path):
    X, Y, _, _ = turned(200)
    source, target = carried(X, Y)
    write(tmp_path / "x.parquet", source)
    write(tmp_path / "y.parquet", target.take(np.arange(0, 200, 2)))
    (tmp_path / "groups.txt").write_text("\n".join(f"photo{i // 5}" for i in range(200)))
    stitcher = learn(tmp_path / "x.parquet", tmp_path / "y.parquet", group=str(tmp_path / "groups.txt"))
    assert sum(stitcher.provenance["pairs"].values()) == 100


@pytest.mark.parametrize("kind", ["arrays", "files"])
def test_an_unknown_group_column_is_refused(tmp_path, kind):
    X, Y, _, _ = turned(60)
    source, target = carried(X, Y)
    write(tmp_path / "x.parquet", source)
    write(tmp_path / "y.parquet", target)
    inputs = (source, target) if kind == "arrays" else (tmp_path / "x.parquet", tmp_path / "y.parquet")
    with pytest.raises(InputError, match=r"`group` must be a column of either side.*got 'fotos'"):
        learn(*inputs, group="fotos")


def test_groups_of_the_wrong_length_are_refused():
    with pytest.raises(InputError, match=r"`group` must have one entry per row of `source` \(60\); got 59 entries"):
        learn(gaussian(60, 4, 1), gaussian(60, 3, 2), group=np.arange(59), **NAMED)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(("value", "what"), [(np.nan, "NaN or Inf"), (np.inf, "NaN or Inf"), (0, "all zeros")])
def test_invalid_rows_are_refused_by_id_or_left_out_and_counted(side, value, what, caplog):
    X, Y, _, _ = turned(100)
    (X if side == "source" else Y)[7] = value
    source, target = carried(X, Y)
    with pytest.raises(InputError, match=rf"1 with {side} {what} \(first: id 'item7'\)\. Leave them out with"):
        learn(source, target)
    with caplog.at_level(logging.WARNING):
        stitcher = learn(source, target, drop_invalid=True)
    assert f"Left out: 1 {side} {what}" in caplog.text
    assert stitcher.provenance["dropped"][f"{side} {what}"] == 1
    assert sum(stitcher.provenance["pairs"].values()) == 99


def test_rows_repeated_on_one_side_are_noted_and_kept(caplog):
    X, Y, _, _ = turned(500)
    Y[10:15] = Y[10]
    notes = learn(X, Y, **NAMED).scorecard.notes
    assert notes == ["4 of 500 target rows repeat another row."]
    assert notes[0] in caplog.text


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_side_with_identical_rows_is_refused(side):
    X, Y, _, _ = turned(100)
    (X if side == "source" else Y)[:] = 1
    with pytest.raises(InputError, match=f"The {side} rows must differ from one another"):
        learn(X, Y, **NAMED)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, r"`method` must be one of ridge, .* or auto; got 'magic'"),
        ({"objective": "cosine"}, r"`objective` must be one of match, .*; got 'cosine'"),
        ({"output_norm": "l2"}, "`output_norm` must be one of unit, none; got 'l2'"),
        ({"device": "tpu"}, "`device` must be auto, cpu or cuda; got 'tpu'"),
        ({"dropuot": 0.1}, r"`dropuot` is not a parameter of train; did you mean `dropout`\?"),
        ({"methd": "ridge"}, r"`methd` is not a parameter of train; did you mean `method`\?"),
        ({"zzz": 1}, r"`zzz` is not a parameter of train; it takes .*, dropout, .*, source_ids, .*"),
        ({"epochs": 0}, "`epochs` must be a whole number, at least 1; got 0"),
        ({"epochs": 2.5}, "`epochs` must be a whole number"),
        ({"batch_size": -1}, "`batch_size` must be a whole number"),
        ({"gallery": 0}, "`gallery` must be a whole number"),
        ({"patience": 0}, "`patience` must be a whole number"),
        ({"stop_after": 0}, "`stop_after` must be at least 1"),
        ({"width": -1}, "`width` must be a whole number"),
        ({"width": 0}, "`width` of an mlp must be at least 1"),
        ({"seed": -1}, "`seed` must be a whole number from 0"),
        ({"seed": 2**70}, "`seed` must be a whole number from 0"),
        ({"learning_rate": 0.0}, "`learning_rate` must be a positive number"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a positive number"),
        ({"whitening": 0.0}, "`whitening` must be a positive number"),
        ({"clip": -1.0}, "`clip` must not be negative"),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1; got 1.0"),
        ({"temperatures": ()}, "`temperatures` must be positive multiples"),
        ({"strategy": "magic"}, "must suit the Lightning Trainer and this machine; Lightning reports: .*magic"),
        ({"devices": 0}, "must suit the Lightning Trainer"),
        ({"devices": "many"}, "must suit the Lightning Trainer"),
        ({"accelerator": "quantum"}, "must suit the Lightning Trainer"),
        ({"checkpoints": "/dev/null/here"}, "`checkpoints` must be a folder that can be written to"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message) as error:
        learn(*carried(*shared_latent(60)), **({"method": "mlp"} | settings))
    assert "\n" not in str(error.value)


def test_the_scorecard_is_plain_json_and_the_provenance_is_recorded(tmp_path):
    X, Y, _, _ = affine_image(200, noise=0.2)
    stitcher = learn(X, Y, "mlp", **NAMED)
    loaded = load(stitcher.save(tmp_path / "s"))
    assert json.loads(json.dumps(stitcher.scorecard.to_dict(), allow_nan=False)) == loaded.scorecard.to_dict()
    assert stitcher.settings["width"] == FAST["width"]
    assert set(stitcher.provenance) == {"repstitch", "torch", "python", "paired_by", "pairs", "dropped"}
    assert sum(stitcher.provenance["pairs"].values()) == 200


# --- confidence -------------------------------------------------------------------------------------------------------


def test_the_scorecard_states_how_well_confidence_is_calibrated_on_test_pairs(tmp_path):
    X, Y = shared_latent(800, rank=4, noise=0.3)
    stitcher = learn(*carried(X, Y), method="canonical")
    scores, pairs = stitcher.scorecard.confidence, stitcher.provenance["pairs"]
    assert stitcher.calibration is not None
    assert scores is not None
    assert (scores.n, scores.calibration_rows) == (pairs["test"], pairs["calibrate"])
    assert scores.pool == stitcher.calibration.pool == pairs["calibrate"] + pairs["select"] + pairs["train"]
    assert scores.calibrated
    assert abs(scores.covered - 0.9) <= 3 * (0.09 / pairs["test"] + 0.09 / pairs["calibrate"]) ** 0.5
    loaded = load(stitcher.save(tmp_path / "s"))
    assert loaded.scorecard == stitcher.scorecard
    for name, values in stitcher.confidence(X[:5]).to_dict().items():
        np.testing.assert_array_equal(loaded.confidence(X[:5]).to_dict()[name], values)
    assert "confidence on " in (tmp_path / "s" / "README.md").read_text(encoding="utf-8")


def test_few_pairs_are_not_calibrated_and_the_scorecard_states_it():
    X, Y, _, _ = turned(100)
    stitcher = learn(*carried(X, Y))
    assert stitcher.calibration is None
    assert "confidence" not in stitcher.scorecard
    note = "One half of validation has fewer than 20 pairs, so confidence is not calibrated."
    assert stitcher.scorecard.notes[-1] == note


def test_the_calibration_half_of_validation_does_not_influence_the_choice_of_map():
    X, Y = shared_latent(400, rank=4, noise=0.5)
    halves = split(pair(*carried(X, Y)))
    tried = []
    for replaced in (None, halves.calibrate, halves.select):
        targets = Y.copy()
        if replaced is not None:
            targets[replaced] = gaussian(len(replaced), Y.shape[1], 9)
        tried.append([c.validation for c in learn(*carried(X, targets), method="canonical").scorecard.candidates])
    whole, without_calibrate, without_select = tried
    assert without_calibrate == whole
    assert without_select != whole


def test_confidence_is_not_calibrated_on_the_pairs_used_for_selection():
    X, Y = shared_latent(600, rank=4, noise=0.3)
    group = np.array([f"g{i % 6}" for i in range(600)])
    stitcher = learn(*carried(X, Y), group=group, split_seed=1)  # validation consists of one of the six groups
    counts = stitcher.provenance["pairs"]
    assert counts["select"] == counts["calibrate"] == 100
    assert stitcher.calibration is None
    assert stitcher.scorecard.notes[-1].startswith("Validation could not be halved")


def test_without_test_pairs_confidence_is_calibrated_but_not_scored():
    X, Y, _, _ = turned(400)
    stitcher = learn(*carried(X, Y), split_shares=(0.7, 0.3, 0))
    assert stitcher.calibration is not None
    assert "confidence" not in stitcher.scorecard


def test_a_refit_keeps_the_calibration_of_the_first_fit():
    X, Y = shared_latent(800, rank=4, noise=0.3)
    before, after = (learn(*carried(X, Y), refit_on_all=refit) for refit in (False, True))
    assert before.calibration is not None
    assert not torch.equal(before.map.weight, after.map.weight)
    for name, tensor in before.calibration.tensors().items():
        assert torch.equal(getattr(after.calibration, name), tensor)
    assert after.scorecard.confidence == before.scorecard.confidence


# --- ids and groups in files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [None, "doc_id", "_id", "ID", "uuid", "point_id", "sku"])
def test_files_in_different_orders_are_paired_by_the_ids_that_they_have(tmp_path, index):
    X, Y, _, _ = turned()
    order = np.random.default_rng(1).permutation(300)
    for name, rows, positions in (("old", X, np.arange(300)), ("new", Y, order)):
        frame = pd.DataFrame({"vector": list(rows[positions])}, index=pd.Index(names(300)[positions], name=index))
        if index not in (None, "sku"):
            frame = frame.reset_index()
        frame.to_parquet(tmp_path / f"{name}.parquet")
    stitcher = learn(tmp_path / "old.parquet", tmp_path / "new.parquet")
    assert stitcher.provenance["paired_by"] == "id"
    assert stitcher.scorecard.query["recall@1"] > 0.99


def test_each_file_may_have_another_column_of_ids(tmp_path):
    X, Y, _, _ = turned()
    for name, rows, column in (("old", X, "sku"), ("new", Y[::-1], "ean")):
        ids = names(300) if name == "old" else names(300)[::-1]
        table = pa.table({"vector": list(rows), column: ids, "id": names(300, f"{name}-")})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    files = (tmp_path / "old.parquet", tmp_path / "new.parquet")
    stitcher = learn(*files, id_column=("sku", "ean"))
    assert stitcher.scorecard.query["recall@1"] > 0.99
    with pytest.raises(InputError, match=r"`id_column` must name one column of .*new\.parquet \(ean, id\); got sku\.$"):
        learn(*files, id_column="sku")


@pytest.mark.parametrize("owner", ["old", "new"])
def test_a_column_of_groups_in_either_file_goes_before_a_file_of_that_name(tmp_path, monkeypatch, owner):
    X, Y, _, _ = turned()
    groups = [f"photo{i // 5}" for i in range(300)]
    for name, rows in (("old", X), ("new", Y)):
        columns = {"id": names(300), "vector": list(rows)} | ({"photo": groups} if name == owner else {})
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    (tmp_path / "photo").write_text("\n".join(names(300, "wrong")))
    monkeypatch.chdir(tmp_path)
    by_column = learn("old.parquet", "new.parquet", group="photo")
    by_array = learn("old.parquet", "new.parquet", group=groups)
    by_table = learn("old.parquet", "new.parquet", group=f"{owner}.parquet:photo")
    assert by_column.provenance["pairs"] == by_array.provenance["pairs"] == by_table.provenance["pairs"]
    assert by_column.provenance["pairs"] != learn("old.parquet", "new.parquet").provenance["pairs"]
    np.testing.assert_array_equal(by_column.seen, by_array.seen)


@pytest.mark.parametrize("factor", [1e-10, 1e-20])
def test_the_cosine_with_tiny_targets_is_that_of_their_directions(factor):
    X, Y, _, _ = affine_image(300, 8, 6, noise=0.3)
    ids: dict[str, Any] = {"source_ids": names(300), "target_ids": names(300), "output_norm": "none"}
    expected = learn(X, Y, **ids).scorecard.reconstruction
    tiny = learn(X, Y * np.float32(factor), **ids).scorecard.reconstruction
    assert tiny["cosine"] == pytest.approx(expected["cosine"], abs=1e-3)
    assert tiny["cosine_floor"] == pytest.approx(expected["cosine_floor"], abs=1e-3)
