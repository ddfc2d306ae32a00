"""Strategies for valid and corrupted translate requests: query strings, JSON bodies and Arrow streams."""

import base64
import json
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from helpers.fuzz import SPECIAL, one_in, rows, spoiled
from helpers.oracle import ACCEPTS, DETOURS, DIM, NAMES, PAIRS, ROUTED, STRAIGHT
from repstitch.server.negotiation import OCTETS
from repstitch.spaces import SPACE_KEY, Space
from repstitch.wire.rows import DTYPES

REFUSED_ACCEPTS = ("text/html", "application/json;q=0", f"{OCTETS};dtype=float64", "*/*;q=nan", ";;,", "é/ü")
accepts = st.sampled_from((*(*ACCEPTS,) * 6, *REFUSED_ACCEPTS))


class Query(NamedTuple):
    text: str
    names: list[str] | None
    confidence: bool


@st.composite
def queries(draw) -> Query:
    """Draw a query, its stitchers (None if it must be refused), and whether it requests confidence."""
    source, target = draw(st.sampled_from((("old", "new"), *DETOURS, *STRAIGHT, *STRAIGHT, *STRAIGHT)))
    if draw(one_in(10)):
        source, target = draw(st.sampled_from(NAMES)), draw(st.sampled_from(NAMES))
    route, flag, stitcher = (
        draw(st.sampled_from(("", "", "direct", "auto", "auto"))),
        draw(st.sampled_from(("", "", "", "true", "false", *(("True", "1") if draw(one_in(9)) else ())))),
        draw(st.sampled_from(("",) * 12 + ("old-to-new", "odd", "no\u2028ne"))),
    )
    params = {"source": source, "target": target}
    params |= {k: v for k, v in (("route", route), ("confidence", flag), ("stitcher", stitcher)) if v}
    names = (ROUTED if route == "auto" else PAIRS).get((source, target))
    if stitcher and names != [stitcher]:
        names = None
    if flag not in ("", "true", "false") or (flag == "true" and names != ["old-to-new"]):
        names = None
    text = "&".join(f"{k}={quote(v)}" for k, v in params.items())
    if draw(one_in(15)):
        wrong = ("&source=old", "&x%0Ay=1", "&%ff=1", "&route=%ff", "&confidence", "&route=fast%0D")
        text, names = text + draw(st.sampled_from(wrong)), None
    return Query(text, names, flag == "true")


@st.composite
def junk(draw) -> Any:
    """Draw a JSON value of a wrong type."""
    deep: Any = draw(st.sampled_from((0.5, "x", None)))
    for _ in range(draw(st.sampled_from((1, 2, 40)))):
        deep = [deep]
    return draw(
        st.sampled_from((None, True, False, {}, [], "", "0.5", "x", "\ud800", "AA==", 2**63, 2**64, -(2**70), 10**400))
        | st.sampled_from(SPECIAL)
        | st.just(deep)
        | st.text(max_size=8)
    )


@st.composite
def json_bodies(draw) -> tuple[bytes, np.ndarray]:
    """Draw a JSON request for /v1/translate, valid or corrupted in its structure or text, and the numbers in it."""
    numbers, fields = draw(json_fields())
    for _ in range(draw(st.sampled_from((0, 0, 0, 0, 0, 1, 1, 2)))):
        fields = draw(spoiled_fields(fields))
    text = json.dumps(fields, indent=draw(st.sampled_from((None, None, 1))), ensure_ascii=draw(st.booleans()))
    body = draw(spoiled(text.encode("utf-8", "surrogatepass"), 2))
    if draw(one_in(20)):
        more = (
            b"\xef\xbb\xbf" + body,
            b" \n" + body + b"\t",
            body + body,
            b"[" * 5000,
            body[:-1] + b',"route":"auto"}',
        )
        body = draw(st.sampled_from(more))
    return body, numbers


@st.composite
def json_fields(draw) -> tuple[np.ndarray, dict[str, Any]]:
    """Draw numbers and the fields of a valid request with them."""
    numbers, dtype = draw(rows(DIM)), draw(st.sampled_from(tuple(DTYPES)))
    coded = draw(st.booleans())
    if coded:
        with np.errstate(over="ignore"):
            value: Any = base64.b64encode(numbers.astype(DTYPES[dtype]).tobytes()).decode()
    else:
        value = numbers.tolist()
        if len(numbers) == 1 and draw(st.booleans()):
            value = value[0]
    source, target = draw(st.sampled_from((*STRAIGHT, *STRAIGHT, *DETOURS)))
    fields: dict[str, Any] = {"embedding": value, "source": source, "target": target}
    if coded or draw(st.booleans()):
        fields["dtype"] = dtype
    for name, values in (("encoding_format", ("float", "base64")), ("route", ("auto", "direct"))):
        if draw(st.booleans()):
            fields[name] = draw(st.sampled_from(values))
    if source == "old" and target == "new" and draw(st.booleans()):
        fields["confidence"] = draw(st.booleans())
    return numbers, fields


@st.composite
def spoiled_fields(draw, fields: dict[str, Any]) -> dict[str, Any]:
    """Draw the fields of a request with one corruption."""
    name = draw(st.sampled_from(tuple(fields)))
    corruption = draw(
        st.sampled_from(("drop", "retype", "add", "number", "number", "number", "row", "nest", "widen", "name"))
    )
    if corruption == "drop" and len(fields) > 1:
        del fields[name]
    if corruption == "retype":
        fields[name] = draw(junk())
    if corruption == "add":
        added = draw(st.sampled_from(("x\ny", "Embedding", "stitcher", "user", "\u2028", "é" * 300)))
        fields[added] = draw(junk())
    if corruption == "name":
        fields[draw(st.sampled_from(("source", "target", "stitcher")))] = draw(st.sampled_from(NAMES))
    value = fields.get("embedding")
    if isinstance(value, list) and value:
        at = draw(st.integers(0, len(value) - 1))
        row = value[at] if isinstance(value[at], list) and value[at] else value
        match corruption:
            case "number":
                row[draw(st.integers(0, len(row) - 1))] = draw(junk())
            case "row":
                value[at] = draw(junk())
            case "nest":
                fields["embedding"] = [value]
            case "widen":
                row.append(0.25)
    return fields


CARDS = (
    Space("old", DIM).to_json().encode(),
    Space("new", DIM).to_json().encode(),
    b"{}", b"[", b"\xff", b"[" * 100_000, b'{"name": "old", "dim": 6, "x\\ny": 1}', b'{"name": "\\ud800", "dim": 6}',
    b'{"\\ud800": 1}', b'{"name": "old", "dim": 6, "encoder": "a\\nb"}', b'{"name": ["old"], "dim": "6"}',
    b'{"name": "old", "dim": 1e999}', b'{"name": "' + b"x" * 5000 + b'", "dim": 6}',
)  # fmt: skip


class Stream(NamedTuple):
    body: bytes
    numbers: np.ndarray
    valid: bool


ID_KINDS = {
    "text": pa.string(),
    "large": pa.large_string(),
    "view": pa.string_view(),
    "gaps": pa.string(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "float": pa.float32(),
}


@st.composite
def streams(draw) -> Stream:
    """Draw an Arrow stream, and whether it must be accepted if its numbers can be translated."""
    fault = draw(
        st.sampled_from(("",) * 24 + ("width", "type", "gap", "hole", "extra", "twice", "packed", "dictionary"))
    )
    numbers, vectors = draw(vector_columns(fault))
    n = len(vectors)
    columns: dict[str, Any] = {"vector": vectors}
    ids = draw(st.sampled_from((*("none", "text", "large", "view", "int64", "uint8", "gaps") * 3, "float")))
    if ids != "none":
        textual = ID_KINDS[ids] in (pa.string(), pa.large_string(), pa.string_view())
        values: list[Any] = [f"ü{i}\n" if textual else i % 200 for i in range(n)]
        if ids == "gaps":
            values[0] = None
        column = pa.array(values, ID_KINDS[ids])
        columns = {"id": column.dictionary_encode() if fault == "dictionary" else column, **columns}
    valid = (not fault and ids != "float") or (fault == "dictionary" and ids == "none")
    if fault == "extra":
        columns["mo\nre"] = pa.array(range(n))
    names, arrays = [*columns], [*columns.values()]
    if fault == "twice":
        names, arrays = [*names, "vector"], [*arrays, vectors]
    table = pa.table(arrays, names=names)
    if draw(one_in(3)):
        table = table.replace_schema_metadata({SPACE_KEY: draw(st.sampled_from(CARDS))})
        valid = False  # it may be refused; the test compares the card
    whole = draw(written(table, "zstd" if fault == "packed" else None))
    body = draw(spoiled(whole, 2))
    return Stream(body, numbers, valid and body == whole)


@st.composite
def vector_columns(draw, fault: str) -> tuple[np.ndarray, Any]:
    """Draw numbers (n, DIM) and the column `vector` with them in one of its types, with a fault."""
    numbers, dtype = draw(rows(DIM)), draw(st.sampled_from(tuple(DTYPES)))
    with np.errstate(over="ignore"):
        flat = numbers.astype(DTYPES[dtype]).reshape(-1)
    values = pa.array(flat)
    if fault == "type":
        values = pa.array(flat.astype(np.float64))
    if fault == "hole":
        values = pa.array(flat, mask=np.arange(len(flat)) == 3)
    width = DIM
    if fault == "width":
        width = draw(st.sampled_from([w for w in (1, 2, 3, 12) if len(flat) % w == 0]))
    n = len(flat) // width
    mask = pa.array(np.arange(n) == 0) if fault == "gap" else None
    form = draw(st.sampled_from(("fixed", "list", "large")))
    if form == "fixed":
        return numbers, pa.FixedSizeListArray.from_arrays(values, width, mask=mask)
    kind, array = (np.int32, pa.ListArray) if form == "list" else (np.int64, pa.LargeListArray)
    offsets = pa.array((np.arange(n + 1) * width).astype(kind))
    return numbers, array.from_arrays(offsets, values, mask=mask)


@st.composite
def written(draw, table: pa.Table, compression: str | None) -> bytes:
    """Draw the bytes of a table as a stream of batches of a random size."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        for batch in table.to_batches(max_chunksize=draw(st.sampled_from((1, 2, 100)))):
            writer.write_batch(batch)
        if draw(one_in(5)):
            writer.write_table(table.slice(0, 0))
    return sink.getvalue().to_pybytes()
