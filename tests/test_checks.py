import numpy as np
import pytest
from helpers import embeddings, gaussian, names, pairs_of, split_at

from repstitch.checks import check, refuse_leaks
from repstitch.errors import InputError
from repstitch.pairs import pair, repeated_pairs, split


def sound(n: int = 200):
    return pairs_of(gaussian(n, 6), gaussian(n, 5, 1))


def repeating(*copies: tuple[int, int], n: int = 200, sides: str = "XY"):
    """Pairs in which row `b` repeats row `a`, for each (a, b), on these sides."""
    pairs = sound(n)
    for a, b in copies:
        for side in sides:
            getattr(pairs, side)[b] = getattr(pairs, side)[a]
    return pairs


SPLIT = split_at(200, 120, 30)  # rows 0 … 119 train, 120 … 149 validate, 150 … 199 test


def test_sound_pairs_pass_without_a_note(caplog):
    assert check(sound(), SPLIT) == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("copies", "leaks"),
    [(((0, 150),), 1), (((0, 120),), 1), (((120, 150),), 1), (((0, 150), (0, 151), (1, 130), (2, 3)), 2)],
)
def test_an_identical_pair_on_both_sides_of_the_split_is_refused_with_the_count(copies, leaks):
    with pytest.raises(InputError, match=f"{leaks} identical pairs lie on both sides of the split.*--drop-invalid"):
        check(repeating(*copies), SPLIT)


@pytest.mark.parametrize("copies", [((0, 1), (5, 6)), ((120, 149),), ((150, 199), (150, 151))])
def test_an_identical_pair_that_stays_on_one_side_is_no_leak(copies):
    pairs = repeating(*copies)
    refuse_leaks(pairs, SPLIT)
    assert check(pairs, SPLIT) == [
        f"{len(copies)} of 200 {side} rows repeat another one." for side in ("source", "target")
    ]


@pytest.mark.parametrize(("sides", "side"), [("X", "source"), ("Y", "target")])
def test_a_row_that_repeats_on_one_side_only_is_told_and_not_refused(sides, side, caplog):
    notes = check(repeating((0, 150), (0, 151), sides=sides), SPLIT)
    assert notes == [f"2 of 200 {side} rows repeat another one."]
    assert notes[0] in caplog.text


def test_a_group_keeps_repeats_together_and_so_cures_a_leak():
    copies = [(i, i + 100) for i in range(100)]
    leaking = repeating(*copies)
    with pytest.raises(InputError, match="identical pairs lie on both sides"):
        check(leaking, split(leaking))
    grouped = pairs_of(leaking.X, leaking.Y, groups=names(100)[np.arange(200) % 100])
    assert any("repeat" in note for note in check(grouped, split(grouped)))


def test_dropping_what_is_invalid_cures_a_leak():
    a, b = embeddings(200, 6), embeddings(200, 5, "new", seed=1)
    a.vectors[100:], b.vectors[100:] = a.vectors[:100], b.vectors[:100]
    leaking = pair(a, b)
    with pytest.raises(InputError, match="identical pairs lie on both sides"):
        check(leaking, split(leaking))
    cured = pair(a, b, drop_invalid=True)
    assert len(cured) == 100
    assert check(cured, split(cured)) == []


def test_rows_without_ids_never_leak_for_identical_pairs_share_their_hash():
    X, Y = gaussian(100, 6), gaussian(100, 5, 1)
    a, b = (np.concatenate([side, side]) for side in (X, Y))
    pairs = pair(embeddings(200, 6, vectors=a, ids=None), embeddings(200, 5, "new", vectors=b, ids=None))
    assert repeated_pairs(pairs).sum() == 100
    refuse_leaks(pairs, split(pairs))


def test_fewer_training_pairs_than_dimensions_are_told(caplog):
    wide = pairs_of(gaussian(200, 150), gaussian(200, 121, 1))
    assert check(wide, SPLIT) == [
        "120 training pairs are fewer than the 150 dimensions of the source; the map will lean on shrinkage.",
        "120 training pairs are fewer than the 121 dimensions of the target; the map will lean on shrinkage.",
    ]
    assert "lean on shrinkage" in caplog.text
    assert check(pairs_of(gaussian(200, 120), gaussian(200, 6, 1)), SPLIT) == []
