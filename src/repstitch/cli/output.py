"""The output of the commands: text for people, or JSON with `--json`."""

import json
from collections.abc import Mapping
from typing import Any


def emit(result: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print `result` as one line of JSON, or `text`."""
    print(json.dumps(result, ensure_ascii=False) if as_json else text)
