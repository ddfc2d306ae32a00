"""Lines of text files: one reader for ids, groups, labels, names, texts and relevance judgements."""

import os
from pathlib import Path

from repstitch.errors import InputError, one_line


def read_lines(path: str | os.PathLike[str], argument: str) -> list[str]:
    """Return the lines of a UTF-8 text file. Raises InputError, naming the `argument`, if it cannot be read.

    A line ends at a line feed, or at a carriage return and line feed. All other separators, such as U+2028 or a form
    feed, belong to the line. A byte order mark at the start belongs to no line.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"`{argument}` {os.fspath(path)} cannot be read as UTF-8 text: {one_line(error)}") from None
    lines = text.removesuffix("\n").split("\n") if text else []
    return [line.removesuffix("\r") for line in lines]
