import numpy as np
import pytest
from helpers.spaces import gaussian, names, pairs_of
from hypothesis import given, settings
from hypothesis import strategies as st

from repstitch.embeddings.splitting import split
from repstitch.errors import InputError


def split_sides(pairs, *args) -> dict[str, str]:
    """Return the part of the split that each id falls into."""
    parts = split(pairs, *args)
    return {pairs.ids[row]: name for name in ("train", "select", "calibrate", "test") for row in getattr(parts, name)}


def many(n: int = 4000, prefix: str = "item", groups=None):
    return pairs_of(np.ones((n, 1), dtype="float32"), np.ones((n, 1), dtype="float32"), names(n, prefix), groups)


def test_every_pair_falls_into_exactly_one_part():
    parts = split(many())
    rows = np.concatenate([parts.train, parts.select, parts.calibrate, parts.test])
    assert sorted(rows) == list(range(4000))
    assert list(parts.validation) == sorted([*parts.select, *parts.calibrate])


@pytest.mark.parametrize("shares", [(0.6, 0.15, 0.25), (0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.1, 0.1, 0.8)])
def test_the_parts_have_the_requested_shares(shares):
    parts = split(many(), shares)
    actual = np.array([len(parts.train), len(parts.validation), len(parts.test)]) / 4000
    error = np.sqrt(np.array(shares) * (1 - np.array(shares)) / 4000)
    assert (np.abs(actual - shares) <= 4 * error).all()
    assert abs(len(parts.select) - len(parts.calibrate)) <= 4 * np.sqrt(len(parts.validation))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(300)), st.integers(120, 300))
def test_the_part_of_an_id_does_not_depend_on_the_other_rows(order, kept):
    whole, some = many(300), many(300).take(np.array(order)[:kept])
    everywhere = split_sides(whole)
    assert all(everywhere[key] == part for key, part in split_sides(some).items())


def test_the_split_does_not_depend_on_the_vectors_or_their_width():
    a = pairs_of(gaussian(400, 4), gaussian(400, 5))
    b = pairs_of(gaussian(400, 9, 1), gaussian(400, 2, 2))
    assert split_sides(a) == split_sides(b)


def test_the_seed_changes_the_split_and_the_same_seed_does_not():
    pairs = many(400)
    assert split_sides(pairs, (0.6, 0.15, 0.25), 3) == split_sides(pairs, (0.6, 0.15, 0.25), 3)
    a, b = split_sides(pairs, (0.6, 0.15, 0.25), 0), split_sides(pairs, (0.6, 0.15, 0.25), 1)
    moved = np.mean([a[key] != b[key] for key in a])
    assert 0.4 < moved < 0.75


def test_a_larger_training_share_only_adds_to_the_training_rows():
    small, large = split(many(), (0.4, 0.3, 0.3)), split(many(), (0.6, 0.1, 0.3))
    assert set(small.train) < set(large.train)


def test_a_group_is_never_divided():
    groups = np.array([f"photo{i // 5}" for i in range(1000)], dtype=object)
    pairs = many(1000, groups=groups)
    sides = split_sides(pairs)
    for photo in range(200):
        assert len({sides[f"item{i}"] for i in range(5 * photo, 5 * photo + 5)}) == 1


def test_a_test_share_of_zero_leaves_no_test_rows():
    parts = split(many(200), (0.7, 0.3, 0.0))
    assert len(parts.test) == 0
    assert len(parts.train) + len(parts.validation) == 200


def test_validation_rows_too_few_to_halve_are_used_for_selection_and_calibration():
    for seed in range(50):
        pairs = many(24, prefix=f"{seed}-")
        try:
            parts = split(pairs, (0.85, 0.15, 0.0))
        except InputError:
            continue
        assert min(len(parts.select), len(parts.calibrate)) >= 2
        if len(parts.validation) == len(parts.select):
            assert list(parts.select) == list(parts.calibrate)
            return
    pytest.fail("no draw had too few rows to halve")


@pytest.mark.parametrize(
    "shares",
    [(0.6, 0.4), (0.5, 0.2, 0.2), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5), ()],
)
def test_shares_that_do_not_describe_a_split_are_refused(shares):
    with pytest.raises(
        InputError, match=r"`split` must be three shares \(train,validation,test\) that sum to 1; only test"
    ):
        split(many(100), shares)


def test_a_split_with_too_few_pairs_in_a_part_is_refused():
    one_group = many(100, groups=np.full(100, "all", dtype=object))
    with pytest.raises(InputError, match=r"Only 0 pairs fell into .*; pass more pairs"):
        split(one_group)
    with pytest.raises(InputError, match=r"Only . pairs fell into test"):
        split(many(30), (0.49, 0.5, 0.01))
