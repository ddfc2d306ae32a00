"""Arrow IPC streams to rows with ids, and back."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from repstitch.embeddings.rows import SPACE_KEY
from repstitch.errors import InputError, one_line
from repstitch.spaces import Space
from repstitch.wire.rows import Buffer, MalformedError, UnusableError, cast

COLUMNS = ("id", "vector")
MESSAGE_HEADER, MESSAGE_METADATA, BATCH_COMPRESSION = 2, 4, 3  # fields of `Message` and `RecordBatch` in Arrow's format
WIDTHS = {pa.float32(): "float32", pa.float16(): "float16"}


@dataclass(frozen=True)
class ArrowRows:
    """The content of a stream: float32 rows (n, dim), the dtype they came in, the ids, and the space of its card."""

    rows: np.ndarray
    dtype: str
    ids: pa.ChunkedArray | None
    space: Space | None


def read_arrow(body: Buffer, dim: int) -> ArrowRows:
    """The rows of an uncompressed stream with the columns `vector` and, where there are any, `id`.

    `vector` holds lists of `dim` float32 or float16 numbers, of fixed size or not; `id` text or whole numbers. Raises
    MalformedError when the body is something else, UnusableError on another dimension and on missing values.
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
        raise MalformedError(f"The body must hold at least one row of {dim} numbers; it is empty.", "embedding")
    parts = [_numbers(chunk, dim) for chunk in table["vector"].chunks if len(chunk)]
    rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
    # Copied where Arrow shares the memory of the body, because torch warns about memory that is read-only.
    rows = np.require(rows, np.float32, ("C", "W"))
    return ArrowRows(rows, dtype, table["id"] if "id" in table.column_names else None, _space(reader.schema))


def write_arrow(
    rows: np.ndarray, ids: pa.ChunkedArray | None, measures: Mapping[str, np.ndarray], space: Space, dtype: str
) -> memoryview:
    """Rows (n, dim) as a stream: `id` where there are ids, `vector`, and a float32 column for each measure (n,).

    The schema's metadata holds the space, as in files of embeddings. UnusableError where `dtype` cannot hold the rows.
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
    """Refuse bytes after the stream and compressed batches, which may unpack to any size, before unpacking anything."""
    stream = pa.BufferReader(source)
    messages = pa.ipc.MessageReader.open_stream(stream)
    while (message := next(messages, None)) is not None:
        if message.type == "dictionary":
            raise MalformedError("The body must hold plain columns, not dictionaries; write it without.", "embedding")
        if message.metadata_version != pa.ipc.MetadataVersion.V5:  # older versions state compression elsewhere
            raise MalformedError("The body must be an Arrow stream of metadata version 5; write it with a newer Arrow.")
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise MalformedError("The body must be an Arrow stream without compression; write it without.")
    if stream.tell() != source.size:
        raise MalformedError(f"The body must end with its Arrow stream; {source.size - stream.tell()} bytes follow.")


def _is_compressed(metadata: bytes) -> bool:
    """Whether the metadata of a record batch, which the Arrow library has checked, states a compression.

    Also True for any metadata of the message, in which an older Arrow stated one. The library itself tells only by
    unpacking. In FlatBuffers a table begins with the distance back to the list of the positions of its fields.
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
    """The dtype of the column `vector`; refuses other columns than `COLUMNS` and lists of anything but floats."""
    for name in schema.names:
        if name not in COLUMNS or schema.names.count(name) > 1:
            raise MalformedError(
                f"The stream must have the columns {' and '.join(COLUMNS)}, each once; "
                f"got {', '.join(schema.names)[:200]}.",
                "embedding",
            )
    if "vector" not in schema.names:
        raise MalformedError("The stream must have a column `vector`; it has none.", "embedding")
    kind = schema.field("vector").type
    fixed = pa.types.is_fixed_size_list(kind)
    if not (fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)) or kind.value_type not in WIDTHS:
        raise MalformedError(f"`vector` must hold lists of float32 or float16; got {kind}.", "embedding")
    if fixed and kind.list_size != dim:
        raise UnusableError(f"`vector` must have {dim} numbers a row; got {kind.list_size}.")
    if "id" in schema.names:
        ids = schema.field("id").type
        if not (pa.types.is_string(ids) or pa.types.is_large_string(ids) or pa.types.is_integer(ids)):
            raise MalformedError(f"`id` must hold text or whole numbers; got {ids}.", "id")
    return WIDTHS[kind.value_type]


def _numbers(vectors: Any, dim: int) -> np.ndarray:
    """The rows (n, dim) of one chunk of the column `vector`."""
    if vectors.null_count:
        raise UnusableError(f"`vector` must be given for every row; {vectors.null_count} rows have none.")
    if not pa.types.is_fixed_size_list(vectors.type):
        lengths = np.diff(vectors.offsets.to_numpy())
        if (lengths != dim).any():
            row = int(np.argmax(lengths != dim))
            raise UnusableError(f"`vector` must have {dim} numbers a row; row {row} has {lengths[row]}.")
    numbers = vectors.flatten()
    if numbers.null_count:
        raise UnusableError(f"`vector` must hold numbers only; {numbers.null_count} are missing.")
    return numbers.to_numpy(zero_copy_only=False).reshape(-1, dim)


def _space(schema: pa.Schema) -> Space | None:
    """The space in the schema's metadata, as in files of embeddings."""
    card = (schema.metadata or {}).get(SPACE_KEY)
    return None if card is None else Space.from_json(card)
