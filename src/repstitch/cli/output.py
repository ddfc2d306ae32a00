"""What the commands print: a table for people, or JSON with `--json`."""

import json
from collections.abc import Mapping


def emit(result: Mapping, text: str, as_json: bool) -> None:
    """Print `result` as one line of JSON, or `text`."""
    print(json.dumps(result, ensure_ascii=False) if as_json else text)
