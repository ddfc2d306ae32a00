import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.embedding_sets import FAMILY, OTHERS, known_spaces, layered_spaces, space
from helpers.spaces import affine_image, card, embeddings, gaussian, shared_latent

from repstitch.alignment import Atlas, atlas, measuring, scores
from repstitch.alignment.inputs import unit_rows
from repstitch.alignment.layers import by_encoder
from repstitch.alignment.layout import best_pairs, classical_scaling
from repstitch.alignment.lineage import encoder_spaces
from repstitch.alignment.sizes import subset_sizes
from repstitch.embeddings.matching import match
from repstitch.errors import InputError
from repstitch.metrics.alignment import METRICS, measure
from repstitch.metrics.neighbours import graph
from repstitch.metrics.null import adjust, calibrate

MEASURES = ("score", "null", "p", "q", "calibrated", "se")


@pytest.fixture(scope="module")
def measured() -> Atlas:
    return atlas(known_spaces(), ("mutual_knn", "cka_unbiased", "cycle_knn"), k=6, permutations=79, seed=3)


# --- what the numbers are ---------------------------------------------------------------------------------------------


def test_every_number_is_the_metrics_own(measured):
    rows = unit_rows(match(known_spaces()))
    for metric in ("mutual_knn", "cka_unbiased", "cycle_knn"):
        prepared = [METRICS[metric].prepare(X, 6, "X") for X in rows]
        alone = measure(metric, prepared, [(0, 1), (1, 2)], 79, 3)
        for at, (i, j) in enumerate([(0, 1), (1, 2)]):
            for what, number in alone.pair(at).items():
                assert measured.matrix(metric, what)[i, j] == pytest.approx(number, abs=1e-9)


def test_rotations_are_one_and_the_others_are_chance(measured):
    order = measured.names
    same = np.array([[a in FAMILY and b in FAMILY for b in order] for a in order])
    off = ~np.eye(5, dtype=bool)
    for metric in ("mutual_knn", "cka_unbiased"):
        score, null, p, q = (measured.matrix(metric, what) for what in ("score", "null", "p", "q"))
        np.testing.assert_allclose(score[same], 1, atol=1e-5)
        np.testing.assert_allclose(score[~same & off], null[~same & off], atol=0.03)
        assert (p[same & off] == 1 / 80).all()
        assert (q[same & off] <= 0.05).all()
        assert (q[~same & off] > 0.05).all()
        np.testing.assert_allclose(measured.matrix(metric, "calibrated")[same & off], 1, atol=1e-5)


def test_only_the_diagonal_of_the_score_is_a_number(measured):
    off = ~np.eye(5, dtype=bool)
    for metric in measured.metrics:
        assert measured.measures(metric) == list(MEASURES)
        assert (np.diag(measured.scores(metric)) == 1).all()
        for what in MEASURES[1:]:
            assert (np.isfinite(measured.matrix(metric, what)) == off).all()


def test_both_triangles_are_filled_and_differ_only_where_direction_counts(measured):
    for metric in measured.metrics:
        score = measured.scores(metric)
        assert measured.symmetric(metric) == METRICS[metric].symmetric
        assert np.array_equal(score, score.T) == measured.symmetric(metric)
        assert len(measured.pairs(metric)) == (10 if measured.symmetric(metric) else 20)


def test_q_is_over_all_unique_pairs(measured):
    for metric in measured.metrics:
        p, q = measured.matrix(metric, "p"), measured.matrix(metric, "q")
        which = np.triu_indices(5, 1) if measured.symmetric(metric) else np.nonzero(~np.eye(5, dtype=bool))
        np.testing.assert_allclose(q[which], adjust(p[which]))


def test_pairs_hold_what_the_matrices_hold(measured):
    place = {name: i for i, name in enumerate(measured.names)}
    for metric in measured.metrics:
        for pair in measured.pairs(metric):
            for what in MEASURES:
                assert getattr(pair, what) == measured.matrix(metric, what)[place[pair.source], place[pair.target]]
    listed = [pair["metric"] for pair in measured.to_dict()["pairs"][:4]]
    assert listed == ["mutual_knn", "cka_unbiased", "cycle_knn", "cycle_knn"]


def test_without_permutations_there_are_scores_alone():
    values = atlas(known_spaces(), "mutual_knn", k=6, permutations=0).to_dict()
    assert set(values["metrics"]["mutual_knn"]) == {"symmetric", "score", "se"}
    assert set(values["pairs"][0]) == {"source", "target", "metric", "score", "se"}


def test_the_same_seed_gives_the_same_atlas_and_it_is_plain_json(measured):
    one, again = (atlas(known_spaces(60), ("mutual_knn", "cka_unbiased", "cycle_knn"), permutations=9) for _ in "ab")
    assert one == again
    assert json.loads(json.dumps(measured.to_dict(), allow_nan=False)) == measured.to_dict()


def test_the_length_of_rows_does_not_matter():
    scaled = known_spaces()
    scaled[1] = space(scaled[1].vectors * np.linspace(1e-3, 1e3, len(scaled[1]))[:, None], "un0")
    a, b = (atlas(spaces, "cka", permutations=0) for spaces in (scaled, known_spaces()))
    np.testing.assert_allclose(a.scores("cka"), b.scores("cka"), atol=1e-5)


def test_spaces_meet_on_the_ids_that_all_of_them_have():
    spaces = known_spaces()
    spaces[1] = spaces[1].take(np.random.default_rng(0).permutation(len(spaces[1]))[:100])
    result = atlas(spaces, "mutual_knn", permutations=0)
    assert result.n == 100
    assert result.left_out["rot0"] == {"not in every space": 20}
    assert result.matrix("mutual_knn", "score")[0, 2] == 1


def test_a_form_is_prepared_once_for_each_space(monkeypatch):
    prepared = []

    def counted(X, k, name):
        prepared.append(name)
        return graph(X, k, name)

    for metric in ("mutual_knn", "cycle_knn"):
        monkeypatch.setitem(METRICS, metric, replace(METRICS[metric], prepare=counted))
    atlas(known_spaces(), ("mutual_knn", "cycle_knn"), permutations=0)
    assert prepared == [one.space.name for one in known_spaces()]


def test_pairs_are_measured_in_few_calls_whose_results_join_in_order(monkeypatch):
    spaces = [space(gaussian(40, 3, i), f"s{i}") for i in range(9)]
    whole = measure("mutual_knn", [graph(X, 10) for X in unit_rows(match(spaces))], [(0, 8), (3, 5)], 19)
    calls = []
    monkeypatch.setattr(scores, "measure", lambda *args: (calls.append(len(args[2])), measure(*args))[1])
    result = atlas(spaces, "mutual_knn", permutations=19)
    assert calls == [1, 14, 21]
    for at, (i, j) in enumerate([(0, 8), (3, 5)]):
        for what, number in whole.pair(at).items():
            assert result.matrix("mutual_knn", what)[i, j] == pytest.approx(number)


# --- order, map, nearest ----------------------------------------------------------------------------------------------


def test_alike_spaces_are_beside_one_another_in_the_order(measured):
    for order in map(measured.order, measured.metrics):
        assert sorted(order) == sorted(FAMILY + OTHERS)
        at = sorted(order.index(name) for name in FAMILY)
        assert at[2] - at[0] == 2


def test_the_map_has_the_distances_of_the_scores(measured):
    for metric in ("mutual_knn", "cka_unbiased"):
        places = {name: np.array(place) for name, place in measured.map(metric).items()}
        assert max(np.linalg.norm(places[a] - places[b]) for a in FAMILY for b in FAMILY) < 0.01
        assert all(np.linalg.norm(places[a] - places["rot0"]) > 0.5 for a in OTHERS)
        for axis in np.array(list(places.values())).T:
            assert axis[np.abs(axis).argmax()] > 0


def test_points_of_a_plane_are_found_again_by_their_distances():
    X = gaussian(12, 2, 3).astype(np.float64)
    apart = np.linalg.norm(X[:, None] - X[None], axis=2)
    places = classical_scaling(apart)
    np.testing.assert_allclose(np.linalg.norm(places[:, None] - places[None], axis=2), apart, atol=1e-9)


def test_the_nearest_are_best_first_and_the_space_itself_is_none_of_them(measured):
    score, order = measured.matrix("cycle_knn", "score"), measured.names
    for i, name in enumerate(order):
        others = measured.nearest("cycle_knn")[name]
        assert [other.score for other in others] == sorted(np.delete(score[i], i), reverse=True)
        assert all(score[i, order.index(other.name)] == other.score for other in others)
        assert name not in [other.name for other in others]
    assert {other.name for other in measured.nearest("mutual_knn")["rot1"][:2]} == {"rot0", "rot2"}


def test_two_spaces_have_an_order_and_a_map_too():
    result = atlas(known_spaces()[:2], "mutual_knn", permutations=0)
    (a, zero), (b, none) = result.map("mutual_knn").values()
    assert a == -b == pytest.approx((1 - result.pairs("mutual_knn")[0].score) / 2)
    assert (zero, none) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))
    assert sorted(result.order("mutual_knn")) == ["rot0", "un0"]


# --- layers -----------------------------------------------------------------------------------------------------------


def test_the_best_layers_are_found_beside_the_null_of_the_best():
    n = 80
    Z = gaussian(n, 4, 0)
    a, b = layered_spaces("a", 3, n, 1), layered_spaces("b", 2, n, 2)
    a[1] = space(Z @ gaussian(4, 5, 9), "a.layer02", encoder="timm:a", layer=2)
    b[0] = space(Z @ gaussian(4, 5, 8), "b.layer01", encoder="timm:b", layer=1)
    alone = space(gaussian(n, 3, 7), "alone")
    spaces = [a[0], b[0], a[1], alone, b[1], a[2]]  # as files may come, layers of several encoders mixed
    result = atlas(spaces, "mutual_knn", k=5, permutations=99, seed=2)
    lines = {(line.source, line.target): line for line in result.layers}
    assert set(lines) == {("a", "b"), ("a", "alone"), ("b", "alone")}
    best = lines["a", "b"]
    assert (best.source_layer, best.target_layer) == (2, 1)
    assert (best.source_space, best.target_space) == ("a.layer02", "b.layer01")
    assert lines["a", "alone"].target_layer is None
    graphs = [graph(X, 5) for X in unit_rows(match([*a, *b]))]
    alone = measure("mutual_knn", graphs, [(i, j) for i in range(3) for j in (3, 4)], 99, 2)
    assert alone.draws is not None
    placed = calibrate(float(alone.score.max()), alone.draws.max(0))
    for what in ("score", "null", "p", "calibrated"):
        assert getattr(best, what) == pytest.approx(getattr(placed, what))
    q = adjust(np.array([line.p for line in result.layers]))
    assert [line.q for line in result.layers] == pytest.approx(q.tolist())


def test_the_best_of_unrelated_layers_is_significant_no_more_often_than_it_says():
    """A p-value of the best pair alone would reject 1 − .9⁹ = 61 % of unrelated encoders at .1."""
    spaces = [one for i in range(10) for one in layered_spaces(f"e{i}", 3, 60, i, d=3)]
    result = atlas(spaces, "mutual_knn", k=5, permutations=99)
    place = {name: i for i, name in enumerate(result.names)}
    p = result.matrix("mutual_knn", "p")
    honest = np.array([line.p for line in result.layers])
    naive = np.array([p[place[line.source_space], place[line.target_space]] for line in result.layers])
    assert len(honest) == 45
    assert (honest >= naive).all()
    assert (honest <= 0.1).mean() < 0.2
    assert (naive <= 0.1).mean() > 0.4


def test_layers_are_compared_both_ways_by_a_metric_that_is_not_symmetric():
    result = atlas([*layered_spaces("a", 2, 50, 1), *layered_spaces("b", 2, 50, 2)], "cycle_knn", k=4, permutations=9)
    assert [(line.source, line.target) for line in result.layers] == [("b", "a"), ("a", "b")]


def test_layers_of_one_encoder_are_never_each_others_best_or_nearest():
    result = atlas([*layered_spaces("a", 2, 50, 1), *layered_spaces("b", 2, 50, 2)], "mutual_knn", permutations=0)
    assert [(line.source, line.target) for line in result.layers] == [("a", "b")]
    for name, others in result.nearest("mutual_knn").items():
        assert len(others) == 2
        assert all(other.name[0] != name[0] for other in others)
    assert all(a[0] != b[0] for a, b in best_pairs(result))


def test_spaces_of_one_encoder_that_do_not_differ_in_layer_are_encoders_of_their_own():
    same = [space(gaussian(50, 4, i), f"v{i}", encoder="timm:v", revision=f"r{i}") for i in range(3)]
    result = atlas(same, "mutual_knn", permutations=0)
    assert "layers" not in result
    assert [one.name for one in encoder_spaces(tuple(one.space for one in same))] == ["v0", "v1", "v2"]


def test_an_encoder_that_is_there_twice_keeps_its_layers_apart():
    spaces = [
        card(f"{pooling}.layer{i:02d}", 4, encoder="timm:v", pooling=pooling, layer=i)
        for pooling in ("cls", "mean")
        for i in (1, 2)
    ]
    assert [one.name for one in encoder_spaces(spaces)] == ["cls", "mean"]
    layers = [space(gaussian(50, 4, i), s.name, encoder=s.encoder, layer=s.layer) for i, s in enumerate(spaces)]
    result = atlas([*layers, space(gaussian(50, 4, 9), "other")], "mutual_knn", permutations=0)
    assert [(line.source, line.target) for line in result.layers] == [("cls", "other"), ("mean", "other")]


def test_the_matrices_by_encoder_are_those_of_the_best_layers():
    result = atlas(
        [*layered_spaces("a", 2, 50, 1), *layered_spaces("b", 2, 50, 2), space(gaussian(50, 3), "c")], permutations=9
    )
    numbers = by_encoder(result, "mutual_knn")
    lines = {(line.source, line.target): line for line in result.layers if line.metric == "mutual_knn"}
    for what in ("score", "null", "p", "q", "calibrated"):
        assert numbers[what].shape == (3, 3)
        assert numbers[what][0, 1] == numbers[what][1, 0] == getattr(lines["a", "b"], what)
        assert numbers[what][1, 2] == getattr(lines["b", "c"], what)
    assert np.isnan(np.diag(numbers["null"])).all()


def test_the_matrices_by_encoder_are_the_atlas_own_where_there_are_no_layers(measured):
    numbers = by_encoder(measured, "cycle_knn")
    np.testing.assert_array_equal(numbers["q"], measured.matrix("cycle_knn", "q"))


# --- sizes ------------------------------------------------------------------------------------------------------------


def test_one_relation_scores_less_by_mutual_knn_the_more_rows_there_are():
    X, Y = shared_latent(300, noise=0.6)
    result = atlas([space(X, "a"), space(Y, "b")], "mutual_knn", k=5, permutations=30, sizes=[40, 100, 300])
    assert result.sizes is not None
    (curve,) = result.sizes.curves
    assert (result.sizes.sizes, result.sizes.k, result.sizes.draws) == ([40, 100, 300], 5, [5, 5, 1])
    assert curve.score == sorted(curve.score, reverse=True)
    assert curve.score[0] > curve.score[2] + 0.1
    assert curve.null == pytest.approx([5 / 39, 5 / 99, 5 / 299], abs=0.01)
    assert curve.se[0] > 1.5 * curve.se[2]
    (pair,) = result.pairs("mutual_knn")
    assert (curve.score[2], curve.null and curve.null[2], curve.se[2]) == (pair.score, pair.null, pair.se)


def test_the_subsets_of_rows_are_nested_and_the_score_is_their_mean(monkeypatch):
    prepared: list[torch.Tensor] = []
    monkeypatch.setitem(
        METRICS,
        "mutual_knn",
        replace(METRICS["mutual_knn"], prepare=lambda X, k, name: (prepared.append(X), graph(X, k, name))[1]),
    )
    X, Y, _, _ = affine_image(60)
    result = atlas([space(X, "a"), space(Y, "b")], "mutual_knn", k=3, permutations=0, sizes=[20, 40])
    small, large = prepared[2:12], prepared[12:]
    assert [len(part) for part in (*small, *large)] == [20] * 10 + [40] * 10
    for one, whole in zip(small, large, strict=True):
        assert torch.equal(one, whole[:20])
    by_hand = [METRICS["mutual_knn"].compare(graph(small[i], 3), graph(small[i + 1], 3)) for i in range(0, 10, 2)]
    assert result.sizes is not None
    assert result.sizes.curves[0].score[0] == pytest.approx(np.mean(by_hand))
    assert result.sizes.curves[0].null is None


def test_automatic_sizes_are_powers_of_two_and_the_whole():
    assert subset_sizes("auto", 1000, 10) == [32, 64, 128, 256, 512, 1000]
    assert subset_sizes("auto", 1024, 20) == [64, 128, 256, 512, 1024]
    assert subset_sizes("auto", 25, 10) == [25]


def followed_pairs(measured: Atlas) -> list[tuple[str, str]]:
    assert measured.sizes is not None
    return [(curve.source, curve.target) for curve in measured.sizes.curves]


def test_only_the_ten_best_pairs_are_followed_unless_others_are_named():
    spaces = [space(gaussian(40, 4, i), f"s{i}") for i in range(6)]
    result = atlas(spaces, "mutual_knn", permutations=0, sizes=[30])
    ranked = sorted(result.pairs("mutual_knn"), key=float, reverse=True)
    assert followed_pairs(result) == best_pairs(result) == [(pair.source, pair.target) for pair in ranked[:10]]
    named = atlas(spaces, "mutual_knn", permutations=0, sizes=[30], size_pairs=[("s4", "s2")])
    assert followed_pairs(named) == [("s4", "s2")]


def test_a_size_that_a_metric_refuses_is_left_out_of_the_automatic_ones(caplog):
    spaces = [space(gaussian(90, 35, i), name) for i, name in enumerate("ab")]
    result = atlas(spaces, ("mutual_knn", "cca"), permutations=0, sizes="auto")
    assert result.sizes is not None
    assert result.sizes.sizes == [64, 90]
    assert len(caplog.messages) == 1
    assert "The size of 32 rows is left out: cca cannot be computed for a and b" in caplog.messages[0]
    with pytest.raises(InputError, match=r"`sizes`: 32 rows are too few. cca cannot be computed for a and b"):
        atlas(spaces, ("mutual_knn", "cca"), permutations=0, sizes=[32])


# --- graphs that are kept ---------------------------------------------------------------------------------------------


def test_an_atlas_from_kept_graphs_is_the_same(tmp_path, monkeypatch):
    given = {"metrics": ("mutual_knn", "cka_unbiased", "cycle_knn"), "k": 6, "permutations": 9, "seed": 3}
    without = atlas(known_spaces(), **given)
    first = atlas(known_spaces(), **given, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5

    def never(*_args):
        raise AssertionError("searched twice")

    monkeypatch.setattr("repstitch.metrics.cache.graph", never)
    second = atlas(known_spaces(), **given, cache=tmp_path)
    assert first == second == without


def test_a_broken_file_of_the_cache_is_made_again(tmp_path, caplog):
    first = atlas(known_spaces(), "mutual_knn", permutations=9, cache=tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert atlas(known_spaces(), "mutual_knn", permutations=9, cache=tmp_path) == first
    assert sum("cannot be read" in message for message in caplog.messages) == 5


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"metrics": ["mutual_knn", "magic"]}, "`metrics` must be among mutual_knn, .*; got 'magic'"),
        ({"metrics": []}, "`metrics` must name at least one of mutual_knn"),
        ({"permutations": -1}, "`permutations` must be from 0 to 100,000; got -1"),
        ({"metrics": [["cka"]]}, r"`metrics` must be among mutual_knn, .*; got \['cka'\]"),
        ({"metrics": 5}, "`metrics` must be among mutual_knn, .*; got 5"),
        ({"k": 2.5}, "^`k` must be a whole number; got 2.5"),
        ({"permutations": 1.5}, "^`permutations` must be a whole number; got 1.5"),
        ({"seed": 1.5}, "^`seed` must be a whole number; got 1.5"),
        ({"k": 0}, "`k` must be at least 1 and below the number of rows .120.; got 0"),
        ({"k": 120}, "`k` must be at least 1 and below the number of rows .120.; got 120"),
        ({"device": "tpu"}, "`device` must be auto, cpu or cuda; got 'tpu'"),
        ({"sizes": [64, 121]}, "`sizes` must be auto or numbers of rows from 20 to 120; got 121"),
        ({"sizes": [30], "k": 30}, "`sizes` must be auto or numbers of rows from 31 to 120; got 30"),
        ({"sizes": []}, "`sizes` must be auto or numbers of rows from 20 to 120; got 'none'"),
        ({"sizes": "all"}, "`sizes` must be auto or numbers of rows from 20 to 120; got 'all'"),
        (
            {"sizes": [64], "size_pairs": [("rot0", "rot9")]},
            "`size_pairs` must be pairs of names from rot0, .*; got 'rot9'",
        ),
        ({"sizes": [64], "size_pairs": [("rot0", "rot0")]}, "`size_pairs` must be pairs of two different spaces"),
    ],
)
def test_refuses_settings_before_anything_is_computed(given, says, monkeypatch):
    monkeypatch.setattr(measuring, "score_all", None)
    with pytest.raises(InputError, match=says):
        atlas(known_spaces(), **given)


def test_a_space_that_a_metric_refuses_is_named():
    spaces = [*known_spaces(40), space(np.tile(gaussian(4, 5), (10, 1)), "copies")]
    with pytest.raises(InputError, match="`copies` has only 4 different directions"):
        atlas(spaces, "mutual_knn")


def test_a_pair_that_a_metric_refuses_is_named():
    spaces = [space(gaussian(40, d, d), name) for d, name in ((3, "a"), (4, "b"), (45, "c"))]
    with pytest.raises(InputError, match=r"cca cannot be computed for a and c: .*cca. needs more rows than dimensions"):
        atlas(spaces, "cca")


def test_all_metrics_are_those_that_the_spaces_allow(caplog):
    spaces = [space(gaussian(40, d, d), name) for d, name in ((45, "b"), (22, "c"))]
    result = atlas(spaces, "all", permutations=5)
    assert set(METRICS) - set(result.metrics) >= {"cca", "pwcca"}
    assert result.metrics == [metric for metric in METRICS if metric in result.metrics]
    assert any(message.startswith("cca is left out: cca cannot be computed for b and c") for message in caplog.messages)


def test_all_metrics_that_are_refused_are_an_error():
    with pytest.raises(InputError, match="`copies` "):
        atlas([space(np.ones((40, 3)), "copies"), embeddings(40)], "all")


def test_rows_that_cannot_be_used_are_refused_or_left_out():
    spaces = known_spaces()
    spaces[2].vectors[4] = 0
    with pytest.raises(InputError, match="rot1 has rows that cannot be used: 1 with all zeros"):
        atlas(spaces)
    assert atlas(spaces, "cka", permutations=0, drop_invalid=True).n == 119


def test_rows_that_repeat_are_counted_and_warned_of(caplog):
    X = gaussian(60, 5)
    X[50:] = 2 * X[:10]
    result = atlas([space(X, "copies"), space(gaussian(60, 4, 1), "plain")], "mutual_knn", k=5, permutations=0)
    assert result.repeats == {"copies": 10, "plain": 0}
    assert "Some of the 60 rows are copies of another row: 10 in copies." in caplog.text


def test_ties_at_the_last_neighbour_are_counted_and_many_are_warned_of(caplog):
    ring = np.eye(60) + np.roll(np.eye(60), 1, axis=0)  # two neighbours a row, and all others at right angles
    spaces = [space(ring, "all tied"), space(gaussian(60, 4, 1), "plain")]
    assert atlas(spaces, "mutual_knn", k=5, permutations=0).tied == {"all tied": 60, "plain": 0}
    assert "For some of the 60 rows, several rows are equally near as neighbour number 5" in caplog.text
    assert "this neighbour is arbitrary: 60 in all tied." in caplog.text
    assert "tied" not in atlas(spaces, "cka", permutations=0)
