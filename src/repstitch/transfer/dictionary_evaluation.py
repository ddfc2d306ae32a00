"""Does a carried dictionary give the target's rows the features that the original gives the same items' source rows?"""

import numpy as np

from repstitch.metrics.pearson import correlations
from repstitch.transfer.kinds import Dictionary
from repstitch.transfer.linear import LinearMap
from repstitch.transfer.proof import DictionaryProof
from repstitch.transfer.rules import carry_dictionary

LEAST_ACTIVE = 5  # rows a feature must be active in, to be compared


def compare_features(
    dictionary: Dictionary,
    forward: LinearMap,
    backward: LinearMap,
    target: np.ndarray,
    source: np.ndarray,
    controls: tuple[LinearMap, LinearMap],
) -> DictionaryProof:
    """Features of the same items: target (n, d) by the carried dictionary and source (n, d') by the original.

    `correlation` is the mean and the median over features of Pearson's r between the two (0 where one is constant).
    `same_active` is the share of each source row's active features that are active for the target row, and that share
    for features that are as often active but independent (`chance`). `shuffled` is the mean correlation of the
    dictionary carried through the `controls`, a forward and a backward map fitted to shuffled pairs. Features active in
    fewer than five rows are not compared. `explained` is the share of variance that decoding gives back: of the
    target's rows by the carried dictionary, of the source's by the original, and of the target's by both maps alone,
    there and back.
    """
    carried = carry_dictionary(dictionary, forward, backward)
    source_features, target_features = dictionary.encode(source), carried.encode(target)
    shuffled_features = carry_dictionary(dictionary, *controls).encode(target)
    active = source_features != 0
    compared = active.sum(0) >= LEAST_ACTIVE
    # A feature that is never active in the target correlates with nothing.
    r, shuffled_r = (
        np.nan_to_num(correlations(source_features.T[compared], features.T[compared]))
        for features in (target_features, shuffled_features)
    )
    both_active = ((target_features != 0) & active).sum() / max(1, active.sum())
    source_rates, target_rates = ((features != 0).mean(0) for features in (source_features, target_features))
    chance = float(source_rates @ target_rates / max(source_rates.sum(), 1e-12))
    there_and_back = (target @ backward.weight + backward.bias) @ forward.weight + forward.bias
    return DictionaryProof(
        {
            "n_test": len(target),
            "features": len(compared),
            "compared": int(compared.sum()),
            "correlation": {"mean": float(r.mean()), "median": float(np.median(r))} if compared.any() else None,
            "shuffled": float(shuffled_r.mean()) if compared.any() else None,
            "same_active": {"share": float(both_active), "chance": chance},
            "explained": {
                "target": _explained(target, carried.decode(target_features)),
                "source": _explained(source, dictionary.decode(source_features)),
                "maps_alone": _explained(target, there_and_back),
            },
        }
    )


def _explained(rows: np.ndarray, decoded: np.ndarray) -> float:
    return float(1 - np.square(rows - decoded).sum() / np.square(rows - rows.mean(0)).sum())
