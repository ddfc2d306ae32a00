"""Columns of Arrow with the same values in types that have one form in memory and that Python has too."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def plain(table: pa.Table) -> pa.Table:
    """Return the table without categories, repeated runs and views of text, and with times in nanoseconds as text.

    Python's own times have no nanoseconds, so Arrow would convert such times only if pandas is installed.
    """
    columns = [
        pc.call_function("run_end_decode", [column]) if pa.types.is_run_end_encoded(column.type) else column
        for column in table.columns
    ]
    return pa.table([column.cast(_plain_type(column.type)) for column in columns], table.column_names)


def content(table: pa.Table) -> pa.Buffer:
    """Return the values of a table as bytes, which are equal for equal values, however these lie in memory."""
    copied = plain(table).take(np.arange(len(table))).combine_chunks()  # it starts at 0 and has zeros where values lack
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, copied.schema) as writer:
        writer.write_table(copied)
    return sink.getvalue()


def _plain_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if (types.is_timestamp(kind) or types.is_time64(kind)) and kind.unit == "ns":
        return pa.string()
    if types.is_struct(kind):
        return pa.struct([_plain_field(field) for field in kind])
    if types.is_map(kind):
        return pa.map_(_plain_type(kind.key_type), _plain_field(kind.item_field))
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if types.is_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    return pa.large_list(_plain_field(kind.value_field)) if types.is_large_list(kind) else kind


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(_plain_type(field.type))
