"""Rows of PostgreSQL's binary COPY format."""

import numpy as np
import pytest

from repstitch.stores.postgresql.copying import (
    END,
    FLAG,
    PLACE,
    SIGNATURE,
    TRANSACTION,
    Vectors,
    decode,
    encode,
    record,
    rows_of,
)

PAGE = {"place": PLACE, "transaction": TRANSACTION, "vector": Vectors(3)}


def page(n: int) -> np.ndarray:
    rows = np.zeros(n, record(PAGE))
    rows["n_fields"], rows["place_size"], rows["transaction_size"] = 3, 6, 4
    rows["vector_size"], rows["vector_dim"] = 16, 3
    rows["place"] = np.arange(n).astype("<i8").view("V8").astype("V6")
    return rows


def test_what_is_encoded_is_decoded_without_loss_and_rows_that_are_not_finite_become_null():
    rows = page(4)
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    vectors[1, 2], vectors[3, 0] = np.nan, np.inf
    content, n_vectors = encode(rows, vectors, half=False)
    assert n_vectors == 2
    size = record(PAGE).itemsize
    records, texts = decode([content[19 : 19 + size], content[19 + size : 19 + 2 * size]], record(PAGE))
    np.testing.assert_array_equal(records["vector"], vectors[[0, 2]])
    assert (records["place"] == rows["place"][[0, 2]]).all()
    assert texts == []
    assert content.endswith(b"\xff\xff\xff\xff" + END)
    assert len(content) == 19 + 2 * size + 2 * (size - 16) + 2


def test_a_number_too_large_for_half_precision_becomes_null():
    assert encode(page(1), np.full((1, 3), 1e6, np.float32), half=True)[1] == 0


def test_texts_after_the_fixed_fields_are_decoded():
    layout = record({"flag": FLAG, "vector": Vectors(1)})
    fixed = np.zeros(1, layout)
    fixed["flag_size"], fixed["vector_size"], fixed["vector_dim"], fixed["flag"] = 1, 8, 1, b"n"
    row = fixed.tobytes() + b"\0\0\0\3" + "ü!".encode()
    records, texts = decode(list(rows_of([SIGNATURE + row, row, END])), layout)
    assert texts == ["ü!", "ü!"]
    assert records["flag"].tolist() == [b"n", b"n"]


def test_vectors_of_other_dimensions_are_refused():
    row = page(1).tobytes()
    with pytest.raises(ValueError, match="several dimensions"):
        decode([row], record(PAGE | {"vector": Vectors(2)}))
    with pytest.raises(ValueError, match="several dimensions"):
        decode([row], record(PAGE | {"vector": Vectors(4)}))
