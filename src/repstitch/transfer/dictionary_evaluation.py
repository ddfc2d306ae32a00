"""Compare the features of a transferred dictionary on target rows with those of the original on source rows."""

import numpy as np

from repstitch.metrics.pearson import correlations
from repstitch.transfer.kinds import Dictionary
from repstitch.transfer.linear import LinearMap
from repstitch.transfer.proof import DictionaryProof
from repstitch.transfer.rules import carry_dictionary

LEAST_ACTIVE = 5  # source rows in which a feature must be active to be compared


def compare_features(
    dictionary: Dictionary,
    forward: LinearMap,
    backward: LinearMap,
    target: np.ndarray,
    source: np.ndarray,
    controls: tuple[LinearMap, LinearMap],
) -> DictionaryProof:
    """Compare the transferred dictionary's features of target rows (n, d) with the original's features of source rows.

    Both are rows of the same n items; the source rows are (n, d'). The proof contains

    - `correlation`: the mean and the median over features of Pearson's r between the two (0 if one is constant);
    - `shuffled`: the mean correlation for the dictionary transferred through the `controls`, a forward and a backward
      map fitted to shuffled pairs;
    - `same_active`: of the features that are active on source rows, the share that are active on the target rows of
      the same items, and the share expected if the features were independent and active equally often (`chance`);
    - `explained`: the share of variance that reconstructions explain: of the target's rows by the transferred
      dictionary (`target`), of the source's rows by the original (`source`), and of the target's rows by mapping them
      to the source and back without a dictionary (`maps_alone`).

    `correlation` and `shuffled` leave out features that are active in fewer than five source rows.
    """
    carried = carry_dictionary(dictionary, forward, backward)
    source_features, target_features = dictionary.encode(source), carried.encode(target)
    shuffled_features = carry_dictionary(dictionary, *controls).encode(target)
    active = source_features != 0
    compared = active.sum(0) >= LEAST_ACTIVE
    # Pearson's r is NaN for a feature that is constant on the target rows; it counts as 0.
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
    """Share of the variance of the rows that the decoded rows explain."""
    return float(1 - np.square(rows - decoded).sum() / np.square(rows - rows.mean(0)).sum())
