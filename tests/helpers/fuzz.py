"""Settings of the fuzz tests, counts of their results, and strategies that corrupt valid bytes.

`make test` runs 150 cases, the same each time, and the tests marked slow run 500 (`test_fuzz_long.py`). `make fuzz`
sets the number of cases, the seed, and a file for the counts.
"""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("REPSTITCH_FUZZ_CASES", "150"))
SEED = int(os.environ["REPSTITCH_FUZZ_SEED"]) if "REPSTITCH_FUZZ_SEED" in os.environ else None
TALLY = os.environ.get("REPSTITCH_FUZZ_TALLY")
SPECIAL = (
    0.0, -0.0, 1.0, float("nan"), float("inf"), float("-inf"), 1e38, -3.4028235e38, 1e39, 1e308, 1e-45, 1e-38,
    1.17549435e-38, 65504.0, 65519.9, 65520.0, 6e-8, 1e-20, 1e19, 16777217.0,
)  # fmt: skip


def cases(share: float):
    """Run a property on this share of all cases. The cases are the same each time, unless a seed is set."""
    chosen = settings(
        max_examples=max(1, round(CASES * share)),
        derandomize=SEED is None,
        database=None,
        deadline=None,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
    )
    return lambda test: chosen(test if SEED is None else seed(SEED)(test))


def tell(counts: Counter) -> None:
    """Add counts by (route, kind of input, status) to the file that `make fuzz` reads."""
    if TALLY:
        with Path(TALLY).open("a") as file:
            for key, count in counts.items():
                file.write(json.dumps([*key, count]) + "\n")


def one_in(n: int) -> st.SearchStrategy[bool]:
    """Draw True in one of n cases."""
    return st.sampled_from((False,) * (n - 1) + (True,))


@st.composite
def rows(draw, dim: int, special: bool = True) -> np.ndarray:
    """Draw some rows, sometimes more than are answered inline, and sometimes with `SPECIAL` numbers among them."""
    n = draw(st.sampled_from((1, 1, 2, 3, 5, 64, 65, 70)))
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).standard_normal((n, dim))
    numbers *= 10.0 ** draw(st.sampled_from((0, 0, 0, -3, 4, 15, -15)))
    if special and draw(one_in(4)):
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, n * dim - 1))
            numbers.reshape(-1)[at] = draw(st.sampled_from(SPECIAL))
        if draw(one_in(3)):
            numbers[draw(st.integers(0, n - 1))] = draw(st.sampled_from(SPECIAL))
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


@st.composite
def spoiled(draw, body: bytes, most: int = 3) -> bytes:
    """Draw the bytes with at most `most` corruptions, usually none."""
    changed = bytearray(body)
    for _ in range(draw(st.sampled_from((*(0,) * 3 * most, *range(1, most + 1))))):
        at = draw(st.integers(0, len(changed)))
        match draw(st.sampled_from(("flip", "set", "cut", "insert", "remove", "repeat"))):
            case "flip" if at < len(changed):
                changed[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if at < len(changed):
                changed[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
            case "cut":
                del changed[at:]
            case "insert":
                changed[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "remove":
                del changed[at : at + draw(st.integers(1, 24))]
            case "repeat":
                changed[at:at] = changed[max(0, at - draw(st.integers(1, 24))) : at]
    return bytes(changed)
