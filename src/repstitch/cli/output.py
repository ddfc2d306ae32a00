"""The output of the commands: text for people, or JSON with `--json`."""

import json
from collections.abc import Callable, Mapping
from typing import Any


def emit(result: Mapping[str, Any] | Callable[[], Mapping[str, Any]], text: str, as_json: bool) -> None:
    """Print `result`, or what it returns, as one line of JSON; or print `text`."""
    if as_json:
        text = json.dumps(result() if callable(result) else result, ensure_ascii=False)
    print(text)
