"""Native and translated rows in one column of a store: a search ranks both kinds by the inner product."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.migrations import opened, resumed, settings_of, stitcher_of
from helpers.spaces import gaussian

from repstitch.bulk.filling import catch_up
from repstitch.bulk.finishing import cut_over, status
from repstitch.bulk.job import job_of, placement_for
from repstitch.bulk.mixed_scores import mixed_scores
from repstitch.bulk.planning import make_plan
from repstitch.bulk.report import plan_text, status_text, verification_text
from repstitch.bulk.running import run
from repstitch.bulk.translation import Translation
from repstitch.bulk.verification import verify
from repstitch.errors import InputError
from repstitch.mixing.placement import Placement
from repstitch.spaces import Space
from repstitch.stitchers.held_out_rows import HeldOutRows
from repstitch.stores.lancedb.indexing import copied_settings
from repstitch.stores.store import Facts, Index

N, D, E = 300, 64, 96
LENGTH = 0.9
N_NATIVE = 100


def settings(world, **others):
    return settings_of(**{**world.options, **others})


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def native_rows(translated: np.ndarray) -> np.ndarray:
    """Return rows that are much like their translations."""
    n, d = translated.shape
    return unit(translated + 0.05 * gaussian(n, d, 9)).astype(np.float32)


def nearest(similar: np.ndarray) -> list[set[str]]:
    return [set(map(str, row)) for row in np.argsort(-similar, axis=1)[:, :10]]


@pytest.mark.parametrize("index", [False, "cosine", "l2", "dot"])
def test_a_store_ranks_native_and_translated_rows_as_numpy_does_by_inner_product(world, index):
    stitcher, vectors = stitcher_of(), gaussian(N, D, 1)
    address = world.create(list(range(N)), vectors, index=index)
    translated = stitcher.translate(vectors)
    native = native_rows(translated[:N_NATIVE])
    with opened(address) as store:
        run(store, stitcher, settings(world, translated_length=LENGTH))
        placement = resumed(store).placement
        has_dot = bool(store.facts().indexes) and index == "dot"
        assert (placement.length, placement.extra) == (LENGTH, 0 if has_dot else 1)
    world.dual(list(range(N_NATIVE)), vectors[:N_NATIVE], placement.native(native))
    queries = unit(native_rows(translated[50:150]) + 0.05 * gaussian(100, E, 5))
    expected = nearest(queries @ np.concatenate([native, LENGTH * translated[N_NATIVE:]]).T)
    raw = nearest(queries @ np.concatenate([native, translated[N_NATIVE:]]).T)
    with opened(address) as store:
        job = resumed(store)
        catch_up(store, Translation(stitcher, placement=job.placement))
        hits = [set(row) for row in store.search(placement.queries(queries), 10, "new").ids]
        shares = [np.mean([len(a & b) for a, b in zip(hits, right, strict=True)]) / 10 for right in (expected, raw)]
        assert shares[0] == 1 if not store.facts().indexes else shares[0] > 0.95
        assert shares[1] < shares[0] - 0.02
        held_out = HeldOutRows(np.arange(200, N).astype(str).astype(object), native_rows(translated[200:]))
        job, result = verify(store, stitcher, settings(world), held_out)
        assert (job.phase, result["rows"]["native"], result["rows"]["wrong"]) == ("verified", N_NATIVE, 0)
        cut_over(store, stitcher, settings(world))


def test_a_column_with_further_coordinates_is_a_space_of_its_own(world):
    stitcher, vectors = stitcher_of(), gaussian(N, D, 1)
    address = world.create(list(range(N)), vectors)
    with opened(address) as store:
        run(store, stitcher, settings(world, translated_length=LENGTH))
        job = job_of(store)
        assert job is not None
        assert (job.migration.dim, job.to_dict()["format_version"]) == (E + 1, 2)
        space = Space.from_json(job.migration.space)
        assert (space.name, space.dim, space.normalised) == ("new with length", E + 1, None)
        rows = next(iter(store.compare())).new
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(rows[:, -1], np.sqrt(1 - LENGTH**2), rtol=1e-4)
        with pytest.raises(InputError, match=r"`translated_length` must be 0\.9, as when the migration began"):
            run(store, stitcher, settings(world, translated_length=0.95))
        run(store, stitcher, settings(world))  # it goes on with the length that it began with
        assert "scale native rows and queries to length 1, and append a number" in status_text(status(store))
        again = job_of(store)
        assert again is not None
        assert again.placement == job.placement


def test_equal_dimensions_are_told_by_what_is_written(world):
    """The spaces have D and D - 1 dimensions, and the new column has D."""
    stitcher = stitcher_of(D, D - 1)
    address = world.create(list(range(60)), gaussian(60, D, 1))
    with opened(address) as store:
        run(store, stitcher, settings(world, translated_length=LENGTH))
        migration = resumed(store).migration
        assert migration.dim == D
        assert migration.keep_names == (world.options.get("view") is None)


def test_a_length_requires_translations_of_unit_length(world):
    address = world.create(list(range(60)), gaussian(60, D, 1))
    stitcher = replace(stitcher_of(), output_norm="none")
    with opened(address) as store, pytest.raises(InputError, match="`translated_length` requires translations of leng"):
        run(store, stitcher, settings(world, translated_length=LENGTH))


def test_a_plan_and_a_verification_show_mixed_indexes(world):
    stitcher, vectors = stitcher_of(), gaussian(N, D, 1)
    address = world.create(list(range(N)), vectors)
    native = unit(gaussian(N, E, 1) / np.sqrt(E) + 0.1).astype(np.float32)
    mean = native.mean(0)
    shrunk = unit(mean + 0.5 * (native - mean) + 0.03 * gaussian(N, E, 3)).astype(np.float32)
    held_out = HeldOutRows(np.arange(N).astype(str).astype(object), native, shrunk, vectors)
    best = mixed_scores(held_out)
    assert best is not None
    assert best["length"] < 1  # a map that shrinks towards the mean makes all rows similar to every query
    with opened(address) as store:
        text = plan_text(make_plan(store, stitcher, settings(world), held_out))
        assert f"corrected: possible with --translated-length {best['length']:g}" in text
        stated = plan_text(make_plan(store, stitcher, settings(world, translated_length=LENGTH), held_out))
        assert f"corrected: with --translated-length {LENGTH:g}" in stated
        assert "append a number: to native rows 0, to queries 0" in stated
        run(store, stitcher, settings(world, translated_length=LENGTH))
        job, result = verify(store, stitcher, settings(world), held_out)
        assert result["mixed"]["length"] == LENGTH
        assert "Mixed:       share of the right ten results, of 300 held-out rows" in verification_text(
            result, job.phase
        )


def test_the_parts_of_a_product_quantiser_stay_whole():
    index = Index("by_parts", "IVF_PQ", {"num_sub_vectors": 8, "metric": "cosine"})
    facts = Facts(N, 0, D, 0, 0, None, (index,))
    placement = placement_for(facts, stitcher_of(), LENGTH)
    assert placement.extra == 8
    assert copied_settings(index, (D, E + placement.extra), N)["num_sub_vectors"] == (E + 8) / 8
    rows = placement.translated(unit(gaussian(5, E, 1)))
    assert rows.shape == (5, E + 8)
    assert not rows[:, E + 1 :].any()
    assert str(placement).endswith("append 8 numbers: to native rows 8 zeros, to queries 8 zeros.")
    assert "to native rows 0.458258 and 7 zeros, to queries 8 zeros" in str(Placement(1.1, 8))
