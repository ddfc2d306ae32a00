"""Whether a corpus is like the pairs that a map is trained on."""

import numpy as np
import pytest
from helpers.spaces import cone, gaussian

from repstitch.embeddings.likeness import Likeness, compare_with_pairs
from repstitch.errors import InputError


def domain(n: int, seed: int, at: int = 0) -> np.ndarray:
    """Rows of a domain: they vary in five directions of their own, around a mean that all domains share."""
    directions = np.linalg.qr(gaussian(40, 40, 7))[0][:, 5 * at : 5 * at + 5]
    return (gaussian(n, 5, seed) @ directions.T + 0.05 * gaussian(n, 40, seed + 500) + 1).astype(np.float32)


@pytest.mark.parametrize("n", [100, 1000])
def test_other_rows_of_the_same_domain_are_alike_whatever_their_number(n):
    for seed in range(5):
        likeness = compare_with_pairs(domain(n, 2 * seed), domain(300, 2 * seed + 1))
        assert not likeness.unlike
        assert likeness.apart == pytest.approx(0.5, abs=0.17)


@pytest.mark.parametrize("n", [40, 100, 1000])
def test_rows_of_another_domain_are_unlike_whatever_their_number(n):
    for seed in range(5):
        likeness = compare_with_pairs(domain(n, 2 * seed, at=1), domain(300, 2 * seed + 1))
        assert likeness.unlike
        assert likeness.apart > (0.95 if n >= 100 else 0.85)


def test_a_narrow_cone_and_the_length_of_rows_do_not_matter():
    rows = cone(600, spread=0.02)
    assert not compare_with_pairs(rows[:300], 9 * rows[300:]).unlike


def test_rows_that_are_in_a_pair_are_left_out():
    rows = domain(400, 0)
    likeness = compare_with_pairs(rows[:300], 3 * rows[200:])
    assert likeness.rows == 200
    assert likeness.apart == pytest.approx(0.5, abs=0.12)


def test_a_corpus_with_too_few_other_rows_is_refused():
    rows = domain(100, 0)
    with pytest.raises(InputError, match=r"At least 20 rows of the corpus that are in no pair, .*; got 10 and 90"):
        compare_with_pairs(rows, rows[10:])


def test_the_comparison_says_in_words_what_it_found():
    assert str(Likeness(50, 0.9)) == (
        "The corpus is unlike the pairs: 90 % of its rows are nearer to each other than to any pair (alike: 50 %)."
    )
    assert str(Likeness(50, 0.52)).startswith("The corpus is like the pairs: 52 %")
    assert Likeness(50, 0.9).to_dict() == {"rows": 50, "apart": 0.9, "unlike": True}
