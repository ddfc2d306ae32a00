"""Read rows with ids from Arrow IPC streams, and write them."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from repstitch.errors import InputError, one_line
from repstitch.spaces import SPACE_KEY, Space
from repstitch.wire.rows import Buffer, MalformedError, UnusableError, cast

COLUMNS = ("id", "vector")
MESSAGE_HEADER, MESSAGE_METADATA, BATCH_COMPRESSION = 2, 4, 3  # fields of `Message` and `RecordBatch` in Arrow's format
TEXTS = (pa.string(), pa.large_string(), pa.string_view())
WIDTHS = {pa.float32(): "float32", pa.float16(): "float16"}


@dataclass(frozen=True)
class ArrowRows:
    """The content of a stream: float32 rows (n, dim), their dtype in the stream, the ids and the space."""

    rows: np.ndarray
    dtype: str
    ids: pa.ChunkedArray | None
    space: Space | None


def read_arrow(body: Buffer, dim: int) -> ArrowRows:
    """Read the rows of an uncompressed stream with the column `vector` and, optionally, the column `id`.

    `vector` contains lists of `dim` float32 or float16 numbers, of fixed or variable size. Views of lists are refused,
    because many of them can share the same numbers, so that a small body has many rows. `id` contains text or integers.

    Raises MalformedError if the body is anything else, and UnusableError if a row has another dimension or a value is
    missing.
    """
    source = pa.py_buffer(body)
    try:
        _check_messages(source)
        with pa.ipc.open_stream(source) as reader:
            dtype = _check_schema(reader.schema, dim)
            table = reader.read_all()
        table.validate(full=True)
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, struct.error, OverflowError, MemoryError) as error:
        raise MalformedError(f"The body must be an Arrow IPC stream; {one_line(error)}", "embedding") from None
    if not len(table):
        raise MalformedError(f"The body must contain at least one row of {dim} numbers; it is empty.", "embedding")
    parts = [_numbers(chunk, dim) for chunk in table["vector"].chunks if len(chunk)]
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    # Rows that share the read-only memory of the body are copied, because torch warns about read-only memory.
    rows = np.require(rows, np.float32, ("C", "W"))
    return ArrowRows(rows, dtype, table["id"] if "id" in table.column_names else None, _space(reader.schema))


def write_arrow(
    rows: np.ndarray, ids: pa.ChunkedArray | None, measures: Mapping[str, np.ndarray], space: Space, dtype: str
) -> memoryview:
    """Write rows (n, dim) as a stream: `id` if there are ids, `vector`, and one float32 column (n,) per measure.

    The schema metadata contains the space, as in embeddings files. Raises UnusableError if a number is too large for
    `dtype`.
    """
    numbers = pa.array(cast(rows, dtype).reshape(-1))
    columns: dict[str, Any] = {} if ids is None else {"id": ids}
    columns["vector"] = pa.FixedSizeListArray.from_arrays(numbers, rows.shape[1])
    columns |= {name: pa.array(np.ascontiguousarray(values, np.float32)) for name, values in measures.items()}
    table = pa.table(columns).replace_schema_metadata({SPACE_KEY: space.to_json().encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return memoryview(sink.getvalue())


def _check_messages(source: pa.Buffer) -> None:
    """Reject bytes after the stream and compressed batches, before anything is decompressed.

    A compressed batch may decompress to any size.
    """
    stream = pa.BufferReader(source)
    messages = pa.ipc.MessageReader.open_stream(stream)
    while (message := next(messages, None)) is not None:
        if message.type == "dictionary":
            raise MalformedError(
                "The body must have plain columns, not dictionaries; write it without dictionary encoding.", "embedding"
            )
        if message.metadata_version != pa.ipc.MetadataVersion.V5:  # older versions store the compression elsewhere
            raise MalformedError("The body must be an Arrow stream of metadata version 5; write it with a newer Arrow.")
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise MalformedError("The body must be an Arrow stream without compression; write it uncompressed.")
    if stream.tell() != source.size:
        raise MalformedError(
            f"The body must end with its Arrow stream; {source.size - stream.tell()} more bytes follow."
        )


def _is_compressed(metadata: bytes) -> bool:
    """Return whether the metadata of a record batch, which Arrow has already validated, states a compression.

    Any custom metadata of the message also counts as a compression, because older versions of Arrow stored it there.
    The metadata is parsed here because the library reports a compression only by decompressing. In FlatBuffers, a table
    begins with the distance back to its list of field positions.
    """

    def field(table: int, number: int) -> int:
        listing = table - struct.unpack_from("<i", metadata, table)[0]
        (size,) = struct.unpack_from("<H", metadata, listing)
        slot = 4 + 2 * number
        offset = struct.unpack_from("<H", metadata, listing + slot)[0] if slot < size else 0
        return table + offset if offset else 0

    message = struct.unpack_from("<I", metadata, 0)[0]
    header = field(message, MESSAGE_HEADER)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return bool(field(batch, BATCH_COMPRESSION) or field(message, MESSAGE_METADATA))


def _check_schema(schema: pa.Schema, dim: int) -> str:
    """Return the dtype of the column `vector`. Reject columns other than `COLUMNS`, and lists of non-floats."""
    for name in schema.names:
        if name not in COLUMNS or schema.names.count(name) > 1:
            raise MalformedError(
                f"The stream may have only the columns {' and '.join(COLUMNS)}, each at most once; "
                f"got {', '.join(schema.names)[:200]}.",
                "embedding",
            )
    if "vector" not in schema.names:
        raise MalformedError("The stream must have a column `vector`; it has no column of this name.", "embedding")
    kind = schema.field("vector").type
    fixed = pa.types.is_fixed_size_list(kind)
    if not (fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)) or kind.value_type not in WIDTHS:
        raise MalformedError(f"`vector` must contain lists of float32 or float16; got {kind}.", "embedding")
    if fixed and kind.list_size != dim:
        raise UnusableError(f"`vector` must have {dim} numbers per row; got {kind.list_size}.")
    if "id" in schema.names:
        ids = schema.field("id").type
        if ids not in TEXTS and not pa.types.is_integer(ids):
            raise MalformedError(f"`id` must contain text or integers; got {ids}.", "id")
    return WIDTHS[kind.value_type]


def _numbers(vectors: Any, dim: int) -> np.ndarray:
    """Return the rows (n, dim) of one chunk of the column `vector`."""
    if vectors.null_count:
        raise UnusableError(f"`vector` must not be null; it is null in {vectors.null_count} rows.")
    if not pa.types.is_fixed_size_list(vectors.type):
        lengths = np.diff(vectors.offsets.to_numpy())
        if (lengths != dim).any():
            row = int(np.argmax(lengths != dim))
            raise UnusableError(f"`vector` must have {dim} numbers per row; row {row} has {lengths[row]}.")
    numbers = vectors.flatten()
    if numbers.null_count:
        raise UnusableError(f"`vector` must not contain null; {numbers.null_count} numbers are null.")
    return numbers.to_numpy(zero_copy_only=False).reshape(-1, dim)


def _space(schema: pa.Schema) -> Space | None:
    """Return the space that the schema metadata states, as in embeddings files; None if it states none."""
    card = (schema.metadata or {}).get(SPACE_KEY)
    return None if card is None else Space.from_json(card)
