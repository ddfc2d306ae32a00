import numpy as np
import pytest
from helpers.spaces import affine_image, embeddings, gaussian, names, pairs_of, shared_latent, split_at, unrelated

from repstitch.embeddings.checks import (
    check,
    effective_rank,
    refuse_leaks,
    refuse_shift,
)
from repstitch.embeddings.pairs import pair, repeated_pairs
from repstitch.embeddings.splitting import split
from repstitch.errors import InputError


def valid_pairs(n: int = 200):
    X, Y, _, _ = affine_image(n, 6, 5, noise=0.1)
    return pairs_of(X, Y)


def repeating(*copies: tuple[int, int], n: int = 200, sides: str = "XY"):
    """Return pairs in which row `b` repeats row `a`, for each (a, b) of `copies`, on the named sides."""
    pairs = valid_pairs(n)
    for a, b in copies:
        for side in sides:
            getattr(pairs, side)[b] = getattr(pairs, side)[a]
    return pairs


SPLIT = split_at(200, 120, 30)  # rows 0 … 119 train, 120 … 149 validate, 150 … 199 test


def test_sound_pairs_pass_without_a_note(caplog):
    assert check(valid_pairs(), SPLIT).notes == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("copies", "leaks"),
    [(((0, 150),), 1), (((0, 120),), 1), (((120, 150),), 1), (((0, 150), (0, 151), (1, 130), (2, 3)), 2)],
)
def test_an_identical_pair_on_both_sides_of_the_split_is_refused_with_the_count(copies, leaks):
    with pytest.raises(
        InputError, match=f"{leaks} identical pairs are in more than one part of the split.*`drop_invalid`"
    ):
        check(repeating(*copies), SPLIT)


@pytest.mark.parametrize("copies", [((0, 1), (5, 6)), ((120, 149),), ((150, 199), (150, 151))])
def test_identical_pairs_on_one_side_of_the_split_are_not_a_leak(copies):
    pairs = repeating(*copies)
    refuse_leaks(pairs, SPLIT)
    assert check(pairs, SPLIT).notes == [
        f"{len(copies)} of 200 {side} rows repeat another row." for side in ("source", "target")
    ]


@pytest.mark.parametrize(("sides", "side"), [("X", "source"), ("Y", "target")])
def test_rows_repeated_in_one_space_only_give_a_note_and_no_error(sides, side, caplog):
    notes = check(repeating((0, 150), (0, 151), sides=sides), SPLIT).notes
    assert notes == [f"2 of 200 {side} rows repeat another row."]
    assert notes[0] in caplog.text


def test_grouping_repeated_pairs_keeps_them_together_and_prevents_the_leak():
    copies = [(i, i + 100) for i in range(100)]
    leaking = repeating(*copies)
    with pytest.raises(InputError, match="identical pairs are in more than one part"):
        check(leaking, split(leaking))
    grouped = pairs_of(leaking.X, leaking.Y, groups=names(100)[np.arange(200) % 100])
    assert any("repeat" in note for note in check(grouped, split(grouped)).notes)


def test_drop_invalid_removes_repeated_pairs_and_so_prevents_the_leak():
    X, Y, _, _ = affine_image(200, 6, 5)
    a, b = embeddings(200, 6, vectors=X), embeddings(200, 5, "new", vectors=Y)
    a.vectors[100:], b.vectors[100:] = a.vectors[:100], b.vectors[:100]
    leaking = pair(a, b)
    with pytest.raises(InputError, match="identical pairs are in more than one part"):
        check(leaking, split(leaking))
    cured = pair(a, b, drop_invalid=True)
    assert len(cured) == 100
    assert check(cured, split(cured)).notes == []


def test_identical_pairs_without_ids_never_leak_because_they_have_the_same_hash():
    X, Y = gaussian(100, 6), gaussian(100, 5, 1)
    a, b = (np.concatenate([side, side]) for side in (X, Y))
    pairs = pair(embeddings(200, 6, vectors=a, ids=None), embeddings(200, 5, "new", vectors=b, ids=None))
    assert repeated_pairs(pairs).sum() == 100
    refuse_leaks(pairs, split(pairs))


def test_fewer_training_pairs_than_dimensions_give_a_note(caplog):
    wide = pairs_of(*affine_image(200, 150, 121)[:2])
    assert check(wide, SPLIT).notes == [
        "120 training pairs are fewer than the 150 dimensions of the source; the map depends on regularisation.",
        "120 training pairs are fewer than the 121 dimensions of the target; the map depends on regularisation.",
    ]
    assert "depends on regularisation" in caplog.text
    assert check(pairs_of(*affine_image(200, 120, 6)[:2]), SPLIT).notes == []


# --- one side ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_side_of_equal_rows_is_refused(side):
    pairs = valid_pairs()
    (pairs.X if side == "source" else pairs.Y)[:] = 0.3
    with pytest.raises(InputError, match=f"The {side} rows must differ from one another; they are all the same"):
        check(pairs, SPLIT)


@pytest.mark.parametrize("side", ["source", "target"])
def test_rows_that_differ_only_in_length_are_refused_unless_lengths_are_learned(side):
    pairs = valid_pairs()
    lengths = np.linspace(1, 3, 200, dtype=np.float32)[:, None]
    rows = pairs.X if side == "source" else pairs.Y
    rows[:] = np.arange(1, rows.shape[1] + 1) * lengths
    with pytest.raises(InputError, match=f"The {side} rows must differ .* at unit length; they all point the same way"):
        check(pairs, SPLIT)
    if side == "target":
        assert any("effective rank of" in note for note in check(pairs, SPLIT, output_norm="none").notes)


@pytest.mark.parametrize("value", [0.0, 7.5])
def test_constant_dimensions_are_counted(value, caplog):
    pairs = valid_pairs()
    pairs.X[:, [1, 4]] = value
    assert (
        "2 of 6 source dimensions are constant or nearly so; they contain no information." in check(pairs, SPLIT).notes
    )
    assert "2 of 6 source dimensions" in caplog.text


def test_a_dimension_counts_as_constant_if_it_barely_varies_and_not_if_it_is_only_smaller():
    pairs = valid_pairs()
    pairs.Y[:, 2] = 1 + 1e-6 * pairs.Y[:, 2]
    assert any("1 of 5 target dimensions are constant" in note for note in check(pairs, SPLIT).notes)
    pairs = valid_pairs()
    pairs.Y[:, 2] *= 0.1
    assert check(pairs, SPLIT).notes == []


def test_a_dimension_that_varies_far_more_than_the_others_gives_a_note_with_the_factor():
    pairs = valid_pairs()
    pairs.X[:, 0] = pairs.X[:, 1] * 1e4
    notes = [note for note in check(pairs, SPLIT).notes if note.startswith("One source dimension varies")]
    assert 5e3 < float(notes[0].split()[4]) < 2e4


def test_a_side_that_spans_few_directions_gives_a_note_with_their_number():
    X, Y = shared_latent(200, rank=3, d_source=40, d_target=12, noise=0)
    notes = check(pairs_of(X, Y), SPLIT).notes
    assert [note for note in notes if note.startswith("The source rows span 3 of at most 40 directions")]
    doubled = np.concatenate([gaussian(200, 8), gaussian(200, 8)], axis=1)
    notes = check(pairs_of(doubled, doubled[:, :5] + gaussian(200, 5, 1) / 9), SPLIT).notes
    assert [note for note in notes if note.startswith("The source rows span 8 of at most 16 directions")]


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_notes_do_not_depend_on_the_scale_of_the_rows(scale):
    pairs = valid_pairs()
    assert check(pairs_of(pairs.X * np.float32(scale), pairs.Y), SPLIT).notes == []


def test_effective_rank_is_the_count_of_equal_values_and_less_where_they_differ():
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([1.0, 0, 0])) == pytest.approx(1)
    assert 1 < effective_rank(np.array([3.0, 1.0])) < 2
    assert effective_rank(np.zeros(3)) == 0


def test_near_duplicates_give_a_note_and_no_error(caplog):
    X, Y, _, _ = affine_image(400, 32, 24, noise=0.1)
    X[300:320], Y[300:320] = X[:20] * 1.0001 + 1e-4, Y[:20] * 1.0001
    findings = check(pairs_of(X, Y), split_at(400, 240, 60))
    assert findings.near_duplicates.sum() == 20
    assert findings.notes == [
        "20 of 100 test pairs nearly repeat a training pair in both spaces, so their scores partly measure "
        "memorisation; keep such pairs together with `group`."
    ]
    assert findings.notes[0] in caplog.text


# --- shifted rows -----------------------------------------------------------------------------------------------------


def film(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two views of a slow random walk, in which each row is close to the one before it."""
    random = np.random.default_rng(seed)
    walk = np.cumsum(random.standard_normal((n, 12)), axis=0)
    X, Y = (walk @ random.standard_normal((12, d)) + 0.1 * random.standard_normal((n, d)) for d in (20, 16))
    return X.astype(np.float32), Y.astype(np.float32)


def captions(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two views of captions, with the five captions of each photo in consecutive rows."""
    random = np.random.default_rng(seed)
    photos = np.repeat(random.standard_normal((n // 5, 12)), 5, axis=0) + 0.3 * random.standard_normal((n, 12))
    X, Y = (photos @ random.standard_normal((12, d)) + 0.3 * random.standard_normal((n, d)) for d in (20, 16))
    return X.astype(np.float32), Y.astype(np.float32)


def photo_of_captions(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs in which the row of a photo is repeated for each of its five captions."""
    X, Y = captions(n, seed)
    return np.repeat(X[::5], 5, axis=0), Y


def sorted_rows(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return two views of rows sorted by ten classes."""
    random = np.random.default_rng(seed)
    rows = np.repeat(3 * random.standard_normal((10, 12)), n // 10, axis=0) + random.standard_normal((n, 12))
    X, Y = (rows @ random.standard_normal((12, d)) + 0.3 * random.standard_normal((n, d)) for d in (20, 16))
    return X.astype(np.float32), Y.astype(np.float32)


ORDERS = [shared_latent, film, captions, photo_of_captions, sorted_rows]


@pytest.mark.parametrize("make", ORDERS)
@pytest.mark.parametrize("seed", range(3))
def test_matched_rows_are_not_reported_as_shifted_in_any_order_of_rows(make, seed):
    assert refuse_shift(pairs_of(*make(300, seed=seed)))


@pytest.mark.parametrize("make", ORDERS)
@pytest.mark.parametrize("lag", [-3, -1, 1, 2])
def test_shifted_rows_are_refused_with_the_lag(make, lag):
    X, Y = make(300)
    shifted = pairs_of(X, np.roll(Y, lag, axis=0))
    with pytest.raises(InputError, match=rf"shifted: throughout, source row i matches target row i [+−] {abs(lag)} "):
        refuse_shift(shifted)


@pytest.mark.parametrize("by", ["id", "position"])
def test_the_error_on_a_shift_says_what_to_correct_for_pairs_by_id_and_by_position(by):
    X, Y = shared_latent(200)
    ids = names(200) if by == "id" else None
    shifted = pair(
        embeddings(200, 12, vectors=X, ids=ids), embeddings(200, 10, "new", vectors=np.roll(Y, 1, axis=0), ids=ids)
    )
    subject = "ids of both files refer to" if by == "id" else "files contain"
    with pytest.raises(InputError, match=rf"target row i \+ 1 and not row i\. Check that the {subject} the same items"):
        check(shifted, split(shifted))


def test_a_row_missing_halfway_is_reported_with_the_range_of_shifted_rows():
    X, Y = shared_latent(2400)
    Y[1200:-1] = Y[1201:].copy()
    with pytest.raises(InputError, match=r"shifted: in rows 1\d\d\d to \d+, source row i matches target row i − 1"):
        refuse_shift(pairs_of(X, Y))


@pytest.mark.parametrize("n", [40, 60, 200])
def test_unrelated_rows_are_not_reported_as_shifted(n):
    related = [refuse_shift(pairs_of(*unrelated(n, 20, 16, seed))) for seed in range(20)]
    assert sum(related) <= 3


def test_pairs_that_look_unrelated_give_a_note(caplog):
    pairs = pairs_of(*unrelated(200, 6, 5, seed=1))
    assert any(note.startswith("The pairs look unrelated") for note in check(pairs, SPLIT).notes)
    assert "look unrelated" in caplog.text


def test_too_few_rows_are_not_tested_for_a_shift():
    assert refuse_shift(pairs_of(*unrelated(39)))


def test_rows_that_do_not_vary_within_a_block_have_no_shift():
    X, Y = shared_latent(2400)
    X[:600] = X[0]
    assert refuse_shift(pairs_of(X, Y))
