import inspect

import numpy as np
import pytest

import repstitch as rs
from repstitch.arguments import (
    MOST_DRAWS,
    check_choice,
    check_draws,
    check_neighbours,
    check_positive,
    check_seed,
    check_shares,
    check_unmasked,
    names_keywords,
)
from repstitch.errors import InputError


def test_a_choice_must_be_one_of_the_allowed_values():
    check_choice("use", "query", ("query", "corpus"))
    with pytest.raises(InputError, match="`use` must be one of query, corpus; got 'both'"):
        check_choice("use", "both", ("query", "corpus"))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_a_seed_of_32_bits_is_allowed(seed):
    check_seed(seed)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_32_bits_is_refused(seed):
    with pytest.raises(InputError, match=f"`seed` must be a whole number from 0 to 4294967295; got {seed}"):
        check_seed(seed)
    with pytest.raises(InputError, match="`other` must be"):
        check_seed(seed, "`other`")


@pytest.mark.parametrize("draws", [0, 1, MOST_DRAWS])
def test_permutations_up_to_the_limit_are_allowed(draws):
    check_draws(draws)


@pytest.mark.parametrize("draws", [-1, MOST_DRAWS + 1])
def test_permutations_outside_the_limits_are_refused(draws):
    with pytest.raises(InputError, match=f"`permutations` must be from 0 to 100,000; got {draws}"):
        check_draws(draws)


@pytest.mark.parametrize("shares", [(0.6, 0.15, 0.25), [0.5, 0.5, 0.0], (0.1, 0.2, 0.7)])
def test_valid_shares_are_returned_as_a_tuple(shares):
    assert check_shares(shares) == tuple(shares)


@pytest.mark.parametrize(
    "shares",
    [(0.6, 0.4), (0.5, 0.2, 0.2), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (1.2, -0.1, -0.1), (float("nan"), 0.5, 0.5), ()],
)
def test_invalid_shares_are_refused(shares):
    with pytest.raises(InputError, match=r"`split` must be three shares .* that sum to 1; only test may be 0; got"):
        check_shares(shares)


CHECKS = {
    "permutations": check_draws,
    "seed": check_seed,
    "k": lambda k: check_neighbours(k, 10),
    "draws": lambda draws: check_positive(draws, "`draws`"),
}


@pytest.mark.parametrize("value", [1.5, 2.0, "3", True, None, np.float64(1), np.bool_(True), [1]])
@pytest.mark.parametrize("argument", CHECKS)
def test_a_count_that_is_not_a_whole_number_is_refused(argument, value):
    with pytest.raises(InputError, match=f"^`{argument}` must be a whole number; got .*\\.$"):
        CHECKS[argument](value)


@pytest.mark.parametrize("argument", CHECKS)
def test_numpy_integers_become_python_integers(argument):
    for value in (3, np.int8(3), np.int64(3), np.uint64(3)):
        checked = CHECKS[argument](value)
        assert (checked, type(checked)) == (3, int)


def test_k_must_be_below_the_number_of_rows():
    assert [check_neighbours(k, 10) for k in (1, 9)] == [1, 9]
    for k in (0, 10):
        message = rf"^`k` must be at least 1 and below the number of rows \(10\); got {k}\.$"
        with pytest.raises(InputError, match=message):
            check_neighbours(k, 10)


def test_a_count_of_at_least_one_has_no_upper_limit():
    assert check_positive(MOST_DRAWS + 1, "`draws`") == MOST_DRAWS + 1
    with pytest.raises(InputError, match=r"^`draws` must be at least 1; got 0\.$"):
        check_positive(0, "`draws`")


def test_only_masked_arrays_are_refused():
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    for values in (masked, [masked, masked]):
        with pytest.raises(InputError, match=r"^rows must not be a masked array, .*; remove the masked rows"):
            check_unmasked(values, "rows")
    for values in (np.ones(2), [1.0, 2.0], "text", None):
        check_unmasked(values, "rows")


def test_an_unknown_keyword_is_refused_with_the_nearest_parameter_and_other_calls_are_unchanged():
    @names_keywords
    def scale(rows: list[int], *, factor: int = 2) -> list[int]:
        """Rows times a factor."""
        return [row * factor for row in rows]

    assert scale([1, 2]) == [2, 4]
    assert scale(rows=[1, 2], factor=3) == [3, 6]
    assert (scale.__name__, scale.__doc__) == ("scale", "Rows times a factor.")
    assert list(inspect.signature(scale).parameters) == ["rows", "factor"]
    with pytest.raises(InputError, match=r"`facter` is not a parameter of scale; did you mean `factor`\?"):
        scale([1], facter=3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(InputError, match=r"`qqq` is not a parameter of scale; it takes factor, rows\."):
        scale([1], qqq=3)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="rows"):
        scale()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("name", "misspelt", "meant"),
    [
        ("train", "split_sed", "split_seed"),
        ("align", "permutatons", "permutations"),
        ("atlas", "metric", "metrics"),
        ("score", "lables", "labels"),
        ("read", "spaces", "space"),
        ("translate_file", "confidense", "confidence"),
        ("embed", "batchsize", "batch_size"),
        ("embed", "poling", "pooling"),
        ("embed", "promt", "prompt"),
    ],
)
def test_public_functions_suggest_the_nearest_parameter_for_a_misspelt_keyword(name, misspelt, meant):
    function = getattr(rs, name)
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty and p.kind == 1]
    with pytest.raises(InputError, match=rf"^`{misspelt}` is not a parameter of {name}; did you mean `{meant}`\?$"):
        function(*["none"] * len(required), **{misspelt: 1})
