"""Native vectors that a job writes: the same law on every store."""

import numpy as np
import pytest
from helpers.migrations import opened, resumed, settings_of, stitcher_of
from helpers.spaces import gaussian
from helpers.worlds import WORLDS

from repstitch.bulk.filling import catch_up, fill
from repstitch.bulk.job import Job
from repstitch.bulk.row_check import differ
from repstitch.bulk.running import begin
from repstitch.bulk.translation import Translation
from repstitch.stores.store import Store

N, D, E = 200, 16, 24
CHOSEN = list(range(3, N, 7))


@pytest.fixture(params=WORLDS)
def world(request, tmp_path):
    made = WORLDS[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def stitcher():
    return stitcher_of(D, E)


def filled(store: Store, job: Job, translation: Translation) -> None:
    fill(store, job.migration, translation, 1)
    while store.count_rest():
        catch_up(store, translation)


def rows_of(store: Store) -> dict[int, tuple[np.ndarray, str, bool]]:
    """Return the new vector of each row, its state, and whether it is intact."""
    return {
        int(key): (part.new[i], str(part.states[i]), bool(part.intact[i]))
        for part in store.compare()
        for i, key in enumerate(part.ids)
    }


def texts(ids) -> list[str]:
    return [str(key) for key in ids]


@pytest.mark.parametrize("first", ["native", "translated"])
def test_native_rows_stay_until_their_old_vectors_change(world, stitcher, first):
    vectors, native = gaussian(N, D, 1), gaussian(len(CHOSEN), E, 2)
    address = world.create(list(range(N)), vectors, index=True)
    translation = Translation(stitcher)
    with opened(address) as store:
        job = begin(store, stitcher, settings_of(**world.options))
        if first == "translated":
            filled(store, job, translation)
        ids, rows = texts([*CHOSEN, 10_000]), np.concatenate([native, native[:1]])
        assert store.write_native(ids, rows) == len(CHOSEN)
        filled(store, job, translation)
        store.index(lambda _: None)
        seen = rows_of(store)
        assert {key for key, (_, state, _) in seen.items() if state == "native"} == set(CHOSEN)
        assert all(intact for _, _, intact in seen.values())
        assert len(seen) == N
        np.testing.assert_array_equal(np.stack([seen[key][0] for key in CHOSEN]), native)
        others = [key for key in range(N) if key not in CHOSEN]
        assert not differ(np.stack([seen[key][0] for key in others]), stitcher.translate(vectors[others])).any()
        assert store.states() == {"native": len(CHOSEN), "translated": N - len(CHOSEN)}
        hits = store.search(native, 1, "new")
        assert hits.ids[:, 0].tolist() == texts(CHOSEN)

        changed = gaussian(2, D, 3)
        world.update([CHOSEN[0], 0], changed)  # a native row and a translated one
        world.touch([CHOSEN[1], 1])
        assert store.count_rest() >= 2
        with opened(address) as later:  # as after an interruption
            resumed(later)
            while later.count_rest():
                catch_up(later, translation)
            seen = rows_of(later)
        assert seen[CHOSEN[0]][1:] == ("translated", True)
        assert not differ(np.stack([seen[key][0] for key in (CHOSEN[0], 0)]), stitcher.translate(changed)).any()
        assert {key for key, (_, state, _) in seen.items() if state == "native"} == set(CHOSEN[1:])
        np.testing.assert_array_equal(np.stack([seen[key][0] for key in CHOSEN[1:]]), native[1:])
        assert all(intact for _, _, intact in seen.values())


def test_native_rows_are_written_again_and_replaced(world, stitcher):
    address = world.create(list(range(N)), gaussian(N, D, 1))
    translation = Translation(stitcher)
    first, second = gaussian(len(CHOSEN), E, 2), gaussian(len(CHOSEN), E, 3)
    with opened(address) as store:
        job = begin(store, stitcher, settings_of(**world.options))
        for native in (first, first, second):
            assert store.write_native(texts(CHOSEN), native) == len(CHOSEN)
            filled(store, job, translation)
        more = [0, 1]
        assert store.write_native(texts(more), first[:2]) == 2
        filled(store, job, translation)
        seen = rows_of(store)
        np.testing.assert_array_equal(np.stack([seen[key][0] for key in [*CHOSEN, *more]]), [*second, *first[:2]])
        assert store.states()["native"] == len(CHOSEN) + 2
        assert store.write_native([], first[:0]) == 0


def test_a_native_row_that_is_not_right_is_translated(world, stitcher):
    vectors = gaussian(N, D, 1)
    address = world.create(list(range(N)), vectors)
    translation = Translation(stitcher)
    with opened(address) as store:
        job = begin(store, stitcher, settings_of(**world.options))
        filled(store, job, translation)
        store.write_native(texts(CHOSEN), gaussian(len(CHOSEN), E, 2))
        filled(store, job, translation)
        assert store.redo(texts(CHOSEN[:2])) == 2
        filled(store, job, translation)
        seen = rows_of(store)
        assert [seen[key][1] for key in CHOSEN[:3]] == ["translated", "translated", "native"]
        assert not differ(np.stack([seen[key][0] for key in CHOSEN[:2]]), stitcher.translate(vectors[CHOSEN[:2]])).any()
