"""Does a carried dictionary say of the target's rows what the original says of the same items' source rows?"""

import numpy as np

from repstitch.metrics.pearson import correlations
from repstitch.transfer.carry import carry_dictionary
from repstitch.transfer.kinds import Dictionary
from repstitch.transfer.linear import Linear

LEAST_ACTIVE = 5  # rows a feature must be active in, to be compared


def compare_features(
    dictionary: Dictionary,
    forward: Linear,
    backward: Linear,
    target: np.ndarray,
    source: np.ndarray,
    controls: tuple[Linear, Linear],
) -> dict:
    """Features of matched rows, target (n, d) by the carried dictionary and source (n, d') by the original.

    `correlation` is the mean and the median over features of Pearson's r between the two (0 where one never varies),
    `same_active` the share of each source row's active features that are active for the target row, beside what
    features give that are active as often but independently (`chance`); `shuffled` is the mean correlation of the
    dictionary carried through the `controls`, a forward and a backward map fitted to shuffled pairs. Features active in
    fewer than five rows are not compared. `explained` is the share of variance that decoding gives back: of the
    target's rows by the carried dictionary, of the source's by the original, and of the target's by both maps alone,
    there and back. Plain JSON types.
    """
    carried = carry_dictionary(dictionary, forward, backward)
    there, here = dictionary.encode(source), carried.encode(target)
    live = (there != 0).sum(0) >= LEAST_ACTIVE
    shuffled = carry_dictionary(dictionary, *controls).encode(target)
    # A feature that is never active there agrees with nothing.
    r, null = (np.nan_to_num(correlations(there.T[live], other.T[live])) for other in (here, shuffled))
    active, rates = there != 0, [(features != 0).mean(0) for features in (there, here)]
    both = ((here != 0) & active).sum() / max(1, active.sum())
    chance = float(rates[0] @ rates[1] / max(rates[0].sum(), 1e-12))
    back = (target @ backward.weight + backward.bias) @ forward.weight + forward.bias
    return {
        "n_test": len(target),
        "features": len(live),
        "compared": int(live.sum()),
        "correlation": {"mean": float(r.mean()), "median": float(np.median(r))} if live.any() else None,
        "shuffled": float(null.mean()) if live.any() else None,
        "same_active": {"share": float(both), "chance": chance},
        "explained": {
            "target": _explained(target, carried.decode(here)),
            "source": _explained(source, dictionary.decode(there)),
            "maps_alone": _explained(target, back),
        },
    }


def _explained(rows: np.ndarray, given: np.ndarray) -> float:
    return float(1 - np.square(rows - given).sum() / np.square(rows - rows.mean(0)).sum())
