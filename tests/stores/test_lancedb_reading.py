"""Rows of a LanceDB table are read whole, at random and by id, and its indexes are copied."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from helpers.lance_jobs import D_OLD, MIGRATION, W, assert_translated, begun, cut, fill, open_table, vectors
from helpers.lance_world import LanceWorld, vectors_of

from repstitch.embeddings.reading import read
from repstitch.errors import InputError
from repstitch.stores.checksums import checksums

ROOT = Path(__file__).parents[2]
KINDS = {
    "IVF_PQ": {"num_partitions": 2, "num_sub_vectors": 4},
    "IVF_HNSW_SQ": {"num_partitions": 1, "m": 12, "ef_construction": 60},
    "IVF_HNSW_PQ": {"num_partitions": 1, "num_sub_vectors": 8, "m": 10},
    "IVF_FLAT": {"num_partitions": 3},
    "IVF_SQ": {"num_partitions": 2},
    "IVF_RQ": {"num_partitions": 2},
}


def test_an_address_is_read_as_embeddings_with_its_condition_and_the_card_of_its_column(tmp_path):
    world, store = begun(tmp_path, 50)
    rows = read(f"lancedb://{world.database}?table=docs&vector=vector&where=id>=40")
    assert rows.ids is not None
    assert sorted(rows.ids, key=int) == [str(number) for number in range(40, 50)]
    np.testing.assert_allclose(rows.vectors[0], vectors(50)[int(rows.ids[0])])
    fill(store)
    new = read(f"lancedb://{world.database}?table=docs&vector=vector_new")
    assert (new.space.name, new.declared) == ("new", True)
    cut(store)
    assert read(f"lancedb://{world.database}?table=docs&vector=vector").space.name == "new"


def test_without_a_named_column_the_readers_column_is_chosen_during_and_after_a_job(tmp_path):
    world, store = begun(tmp_path, 50)
    address = f"lancedb://{world.database}?table=docs"
    assert open_table(address).vector == "vector"
    fill(store)
    cut(store)
    assert open_table(address).vector == "vector"
    assert open_table(address).job() == {"phase": "cut over"}


def test_rows_stay_those_of_one_moment(tmp_path):
    world, store = begun(tmp_path, 50)
    rows = store.rows()
    world.delete([3])
    world.insert([90, 91], vectors(2))
    assert rows.count_rows() == 50
    assert sum(part.count_rows() for part in rows.get_fragments()) == 50


@pytest.mark.parametrize("where", [None, "id < 40"])
def test_a_sample_draws_each_row_with_a_vector_with_the_same_probability(tmp_path, where):
    world = LanceWorld(tmp_path)
    rows = vectors(50)
    rows[7] = np.nan
    world.create(range(50), rows)
    world.delete([8])
    store = open_table(f"lancedb://{world.database}?table=docs" + (f"&where={where}" if where else ""))
    counts = np.zeros(50)
    for seed in range(150):
        drawn = store.sample(10, seed, ["id"])["id"].to_pylist()
        assert len(set(drawn)) == 10
        counts[drawn] += 1
    last = 40 if where else 50
    assert counts[7] == counts[8] == counts[last:].sum() == 0
    kept = np.delete(counts[:last], [7, 8])
    assert kept.min() > 10
    assert kept.max() < 70
    assert len(store.sample(1000, 0, ["vector", "id"])) == last - 2


def test_rows_are_taken_by_id_and_compared_by_id(tmp_path):
    _, store = begun(tmp_path, 50)
    fill(store)
    rows = store.take(["3", "49", "50", "no number"], ["id", "vector"])
    assert sorted(rows["id"].to_pylist()) == [3, 49]
    assert store.take([], ["id"]).num_rows == 0
    parts = list(store.compare(["3", "49"]))
    assert sorted(key for part in parts for key in part.ids) == ["3", "49"]
    np.testing.assert_allclose(parts[0].new[0], vectors(50)[3] @ W, rtol=1e-4)


def test_compare_reports_rows_that_were_changed_since(tmp_path):
    world, store = begun(tmp_path, 50)
    fill(store)
    world.update([4], vectors(1, seed=3))
    world.insert([90], vectors(1))
    changed = {key for part in store.compare() for key in part.ids[~part.intact]}
    assert changed == {"4", "90"}
    store.reopen().resume(replace(MIGRATION))


def test_facts_name_sizes_indexes_and_an_embedding_function_that_depends_on_the_column(tmp_path):
    world = LanceWorld(tmp_path)
    store = open_table(world.create(range(300), vectors(300), index=True))
    function = json.dumps([{"vector_column": "vector", "source_column": "body", "name": "openai", "model": {}}])
    world.latest.update_schema_metadata({"embedding_functions": function})
    facts = store.facts()
    assert (facts.n_rows, facts.n_without_vector, facts.dim) == (300, 0, D_OLD)
    assert facts.table_bytes > 300 * D_OLD * 4
    assert facts.free_bytes
    assert facts.indexes[0].kind == "IVF_HNSW_SQ"
    assert facts.indexes[0].settings.items() >= {"metric": "cosine", "m": 12, "ef_construction": 60}.items()
    assert any("embedding function" in sentence for sentence in facts.dependents)
    assert any("error_if_tagged_old_versions=False" in sentence for sentence in facts.dependents)
    peak = store.peak_bytes(MIGRATION, facts)
    assert peak["new vectors"] == 300 * 24 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_every_kind_is_copied_with_its_settings(tmp_path, kind):
    world, store = begun(tmp_path, 400)
    settings: Any = KINDS[kind]
    world.latest.create_index("vector", kind, metric="cosine", **settings)
    fill(store)
    store.index(lambda share: None)
    indexes = {index.name: index for index in store.facts().indexes}
    cut(store)
    copied = {index.name: index for index in store.facts().indexes}["vector_new_idx"]
    expected = dict(indexes["vector_idx"].settings)
    if "num_sub_vectors" in expected:
        expected["num_sub_vectors"] = expected["num_sub_vectors"] * 24 // 16
    assert (copied.kind, copied.settings) == (kind, expected)
    hits = store.search(vectors(400)[:5] @ W, 10, "new")
    assert [str(row) in ids for row, ids in enumerate(hits.ids)] == [True] * 5
    assert (hits.seconds > 0).all()


def test_the_seconds_that_lance_logs_for_an_index_are_left_out_and_its_logger_stays_as_it_was(tmp_path, caplog):
    _, store = begun(tmp_path, 300, index=True)
    logger = logging.getLogger("pylance")
    before, level = list(logger.filters), logger.level
    caplog.clear()
    fill(store)
    store.index(lambda share: None)
    with store.rehearsal(300) as copy:
        assert copy.facts().n_rows == 300
    assert not caplog.records
    assert (logger.filters, logger.level) == (before, level)


def test_a_search_can_be_restricted_and_pads_missing_hits(tmp_path):
    _, store = begun(tmp_path, 50)
    fill(store)
    hits = store.search(vectors(50)[:2], 5, "old", where="id < 3")
    assert hits.ids[:, 0].tolist() == ["0", "1"]
    assert hits.ids[0].tolist()[3:] == ["", ""]
    assert set(hits.ids[0]) == {"0", "1", "2", ""}


def test_a_rehearsal_moves_a_copy_with_the_same_indexes_and_leaves_nothing(tmp_path):
    world = LanceWorld(tmp_path)
    store = open_table(world.create(range(400), vectors(400), index=True))
    before, version = world.schema(), world.latest.version
    with store.rehearsal(300) as copy:
        assert (copy.facts().n_rows, copy.facts().indexes[0].kind) == (300, "IVF_HNSW_SQ")
        copy.begin(MIGRATION, {})
        copy.resume(MIGRATION)
        fill(copy)  # type: ignore[arg-type]
        copy.index(lambda share: None)
        assert copy.index_stamp()
    assert (world.schema(), world.latest.version) == (before, version)


def test_another_process_trusts_what_was_checked_and_no_version_is_tagged_for_it(tmp_path):
    world, store = begun(tmp_path, 50)
    fill(store)
    world.insert([90], vectors(1))
    fill(store)
    assert not world.latest.tags.list()
    other = open_table(str(store.address.to_text()))
    other.resume(MIGRATION)
    dataset = world.latest
    assert not other.filling.unchecked(dataset, other.filling.columns(dataset))
    dataset.cleanup_old_versions(older_than=timedelta(0))
    last = open_table(str(store.address.to_text()))
    last.resume(MIGRATION)
    assert last.filling.unchecked(dataset, last.filling.columns(dataset))
    assert last.count_rest() == 0


def test_checksums_differ_for_rows_that_differ_in_a_sign_an_order_or_one_bit():
    rows = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
    others = np.concatenate([rows, -rows, np.roll(rows, 1), rows, rows])
    others[3, :2] *= -1
    others.view(np.uint32)[4, 31] ^= 1
    sums = {checksum.tobytes() for checksum in checksums(others, np.ones(5, bool))}
    assert len(sums) == 5
    assert checksums(rows, np.array([False]))[0].tobytes() == b"--------"


LIMITED = """
import resource, sys
from helpers.lance_jobs import MIGRATION, open_table, translate
from repstitch.errors import InputError
store = open_table(sys.argv[1])
store.begin(MIGRATION, {})
store.resume(MIGRATION)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    for unit in store.units():
        store.fill(unit, translate)
except InputError as error:
    print("refused:", error)
"""


def test_a_full_disk_is_reported_and_the_job_goes_on_when_there_is_space(tmp_path):
    world = LanceWorld(tmp_path)
    address = world.create(range(2000), vectors(2000))
    files = len(list((world.path / "data").iterdir()))
    environment = {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT / 'src'}", "PATH": ""}
    command = [sys.executable, "-c", LIMITED, address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("refused: New vectors cannot be written"), done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert len(list((world.path / "data").iterdir())) == files
    store = open_table(address)
    store.resume(MIGRATION)
    assert fill(store) == 2000
    assert_translated(world)


def test_a_table_with_a_card_in_its_own_metadata_keeps_it(tmp_path):
    rows = pa.table({"id": pa.array(range(5)), "vector": vectors_of(vectors(5))})
    rows = rows.replace_schema_metadata({"repstitch.space": "{}", "mine": "1"})
    lance.write_dataset(rows, str(tmp_path / "t.lance"))
    store = open_table(f"lancedb://{tmp_path}?table=t")
    store.begin(MIGRATION, {})
    assert store.rows().schema.metadata == {b"mine": b"1"}  # the card of the table is not that of the column
    store.clean_up()
    assert lance.dataset(str(tmp_path / "t.lance")).schema.metadata == rows.schema.metadata


def test_a_column_with_two_vector_indexes_is_refused_because_lancedb_uses_one_of_them(tmp_path):
    world = LanceWorld(tmp_path)
    store = open_table(world.create(range(300), vectors(300), index=True))
    world.latest.create_index("vector", "IVF_FLAT", num_partitions=2, metric="l2", name="by_l2")
    with pytest.raises(InputError, match=r"has the vector indexes .*by_l2.*, of which LanceDB uses only one"):
        store.check(MIGRATION)
    world.latest.drop_index("by_l2")
    store.check(MIGRATION)
