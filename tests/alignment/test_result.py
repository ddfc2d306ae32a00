import copy
import json

import numpy as np
import pytest
from helpers.atlases import layered_atlas, made, made_asymmetry, made_atlas, made_trend, with_sizes

from repstitch.alignment import AlignmentScore, Atlas
from repstitch.alignment.result import LayerScore
from repstitch.errors import InputError

METRIC = "mutual_knn"
PAIR = {"source": "a", "target": "b", "metric": METRIC, "score": 0.4125, "null": 0.03, "p": 0.005, "se": 0.01}


def whole() -> dict:
    """An atlas with every part that one can have."""
    values = with_sizes(layered_atlas({"vit_base": 3, "bert_small": 2}))
    control = {"metric": METRIC, "n_models": 2, "factors": {}, "verdict": "no effect."}
    tests = {"trend": made_trend(), "control": control, "asymmetry": [made_asymmetry()], "unanswered": {"x": "y"}}
    return values | {"pairs": [PAIR], "tied": {"a": 3}} | tests


def test_the_json_object_comes_back_with_all_its_keys_in_their_order():
    values = whole() | {"of a newer release": [1]}
    record = Atlas.from_dict(copy.deepcopy(values))
    assert json.dumps(record.to_dict()) == json.dumps(values)
    record.to_dict()["spaces"].clear()
    assert record == made(values)
    assert hash(record) == hash(made(values))
    assert record != made(made_atlas(5))


def test_every_part_has_a_type():
    record = made(whole())
    assert (record.n, record.k, record.permutations, record.seed) == (1024, 10, 200, 0)
    assert [space.name for space in record.spaces] == record.names
    assert [space.layer for space in record.spaces] == [1, 2, 3, 1, 2]
    assert record.tied == {"a": 3}
    assert record.repeats == dict.fromkeys(record.names, 0) or record.repeats
    assert record.left_out
    assert record.pairs(METRIC) == [AlignmentScore(PAIR)]
    (pair,) = record.layers
    assert isinstance(pair, LayerScore)
    assert (pair.source_layer, pair.target_layer) == (2, 1)
    assert record.sizes is not None
    assert record.sizes.sizes == [32, 64, 128, 256, 512, 1000, 1024]
    assert record.trend is not None
    assert record.trend.rank_correlation.interval == (0.7, 0.98)
    assert record.trend.models[0].name == "dinov2_small_0"
    assert record.control is not None
    assert record.control.verdict == "no effect."
    assert [float(pair.r2_forward) for pair in record.asymmetry] == [0.62]
    assert record.unanswered == {"x": "y"}


def test_what_was_not_measured_is_none_or_empty():
    record = made(made_atlas(3))
    assert (record.sizes, record.trend, record.control) == (None, None, None)
    assert (record.layers, record.asymmetry, record.unanswered, record.tied) == ([], [], {}, {})


def test_matrices_are_arrays_with_nan_where_there_is_no_number():
    values = made_atlas(4, symmetric=False)
    record = made(values)
    assert record.metrics == [METRIC]
    assert not record.symmetric(METRIC)
    scores = record.scores(METRIC)
    assert scores.shape == (4, 4)
    assert scores[1, 2] == values["metrics"][METRIC]["score"][1][2]
    assert np.isnan(np.diag(record.matrix(METRIC, "q"))).all()
    assert record.measures(METRIC) == ["score", "null", "p", "q", "calibrated", "se"]
    assert record.order(METRIC) == values["order"][METRIC]
    assert record.map(METRIC)[record.names[0]] == tuple(values["map"][METRIC][record.names[0]])


def test_a_metric_or_measure_that_the_atlas_does_not_hold_is_refused():
    record = made(made_atlas(3, permutations=0))
    for ask in (record.scores, record.pairs, record.order, record.map, record.nearest, record.symmetric):
        with pytest.raises(InputError, match=r"`metric` must be a metric of this atlas \(mutual_knn\); got 'cka'"):
            ask("cka")
    with pytest.raises(InputError, match="`measure` must be one of score, se; got 'null'"):
        record.matrix(METRIC, "null")


def test_results_of_tests_are_added_to_another_atlas():
    record = made(made_atlas(3))
    answered = record.with_results({"trend": made_trend()})
    assert answered.trend is not None
    assert record.trend is None
    assert list(answered.to_dict())[-1] == "trend"


def test_a_record_is_shown_in_one_line():
    assert repr(made(made_atlas(3))) == "Atlas(3 spaces, n=1024, mutual_knn)"
    pairs = [PAIR, PAIR | {"target": "c", "score": 0.5}]
    assert repr(made(made_atlas(3) | {"pairs": pairs})).endswith("mutual_knn; highest mutual_knn: a - c 0.500)")
    score = AlignmentScore(PAIR)
    assert repr(score) == "AlignmentScore(a - b, mutual_knn=0.412, null=0.03, p=0.005, se=0.01)"
    assert float(score) == 0.4125
    record = made(whole())
    assert repr(record.trend).startswith("Trend('alignment rises with parameters")
    assert repr(record.asymmetry[0]).startswith("Asymmetry('dinov2_large predicts clip_base better")


def without(values: dict, key: str) -> dict:
    return {name: value for name, value in values.items() if name != key}


def with_result(values: dict, **changes) -> dict:
    return values | {"metrics": {METRIC: values["metrics"][METRIC] | changes}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: without(v, "order"), "must have the key 'order'"),
        (lambda v: v | {"n": "many"}, "'n' of an Atlas must be a whole number"),
        (lambda v: v | {"spaces": [1]}, "'spaces' and 'metrics' of an Atlas must contain objects; got int"),
        (lambda v: v | {"spaces": [{"name": "a"}]}, "must have at least the fields 'name' and 'dim'"),
        (lambda v: v | {"pairs": [3]}, "'pairs' of an Atlas must be a list of objects"),
        (lambda v: v | {"pairs": [without(PAIR, "score")]}, "An AlignmentScore must have the key 'score'"),
        (lambda v: v | {"pairs": [PAIR | {"p": "small"}]}, "'p' of an AlignmentScore must be a number"),
        (lambda v: v | {"metrics": {METRIC: []}}, "'spaces' and 'metrics' of an Atlas must contain objects; got list"),
        (lambda v: v | {"metrics": {}}, "'metrics' of an Atlas must contain at least one metric"),
        (lambda v: with_result(v, symmetric=1), "'symmetric' of mutual_knn in an Atlas must be true or false"),
        (lambda v: with_result(v, q=[[1.0]]), "'q' of mutual_knn in an Atlas must have 3 rows of 3 entries"),
        (
            lambda v: with_result(v, null=[["0"] * 3] * 3),
            "'null' of mutual_knn in an Atlas must contain numbers, or null",
        ),
        (lambda v: with_result(v, score=None), "'score' of mutual_knn in an Atlas must have 3 rows of 3 entries"),
        (lambda v: v | {"map": {}}, "'map' of an Atlas must contain its metric 'mutual_knn'"),
        (lambda v: v | {"trend": {"column": "a"}}, "of an Atlas cannot be used: A Trend must have the key 'verdict'"),
        (lambda v: v | {"asymmetry": [{}]}, "An Asymmetry must have the key 'verdict'"),
        (lambda v: v | {"layers": [PAIR]}, "A LayerScore must have the key 'source_space'"),
        (lambda v: v | {"sizes": {"k": 1, "sizes": [], "draws": [], "curves": [{}]}}, "must have the key 'source'"),
    ],
)
def test_an_object_that_is_no_atlas_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Atlas.from_dict(change(made_atlas(3)))
