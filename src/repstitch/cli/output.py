"""Print the result of a command: text for people, or JSON with `--json`."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from repstitch.redaction import redact, redact_values

if TYPE_CHECKING:
    from repstitch.evaluation.scorecard import Scorecard


def emit(result: Mapping[str, Any] | Callable[[], Mapping[str, Any]], text: str, as_json: bool) -> None:
    """Print `text` or, if `as_json`, `result` as one line of JSON. A function is called to get the result."""
    if as_json:
        print(json.dumps(redact_values(result() if callable(result) else result), ensure_ascii=False))
    else:
        print(redact(text))


def scorecard_text(card: "Scorecard", command: Sequence[str], full: bool) -> str:
    """Return the summary of a scorecard and the command that shows every score; if `full`, every score."""
    if full or not card:
        return card.table()
    return f"{card}\n\nEvery score: {shlex.join([*command, '--full'])}"
