"""Print the result of a command: text for people, or JSON with `--json`."""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repstitch.evaluation.scorecard import Scorecard


def emit(result: Mapping[str, Any] | Callable[[], Mapping[str, Any]], text: str, as_json: bool) -> None:
    """Print `text` or, if `as_json`, `result` as one line of JSON. A function is called to get the result."""
    if as_json:
        text = json.dumps(result() if callable(result) else result, ensure_ascii=False)
    print(text)


def scorecard_text(card: "Scorecard", stitcher: str, full: bool) -> str:
    """Return the summary of a stitcher's scorecard with the command that shows all scores; if `full`, all scores."""
    return card.table() if full else f"{card}\n\nEvery score: repstitch show {stitcher} --full"
