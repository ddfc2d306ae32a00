"""The rules for transferring directions, probes and dictionaries through an affine map y = x W + b.

A point is mapped to x W + b. A vector v is the difference of two points, so it is mapped to v W, without the bias. A
covector scores points: the probe (w, c) gives a point y the score y·w + c. It is transferred against the direction of
the map, by the transpose of W: the probe (W w, c + b·w) gives x the score that (w, c) gives to x W + b. So points and
vectors of the source reach the target through the forward map (source → target), and covectors of the source through
the backward map (target → source).
"""

from dataclasses import replace
from typing import cast

import numpy as np

from repstitch.errors import InputError
from repstitch.transfer.kinds import Dictionary, Directions, Kind, Probe, Transferable
from repstitch.transfer.linear import LinearMap


def carry(
    transferable: Kind, forward: LinearMap | None = None, backward: LinearMap | None = None, renormalise: bool = False
) -> Kind:
    """Transfer directions, a probe or a dictionary of the source space to the target space.

    Directions need the `forward` map, probes the `backward` map, dictionaries both. `renormalise` scales each
    transferred direction to its original length. Raises InputError if a map is missing or has the wrong dimensions, on
    directions that the map takes to zero, and if `renormalise` is passed with a probe or dictionary.
    """
    if renormalise and not isinstance(transferable, Directions):
        raise InputError(
            "`renormalise` applies only to directions; rescaling a probe or dictionary would change its results."
        )
    carried: Transferable
    if isinstance(transferable, Directions):
        forward = _check_map(forward, "forward", "directions", transferable.dim)
        carried = push_forward(transferable, forward, renormalise)
    elif isinstance(transferable, Probe):
        carried = pull_back(transferable, _check_map(backward, "backward", "a probe", transferable.dim))
    else:
        forward = _check_map(forward, "forward", "a dictionary", transferable.dim)
        backward = _check_map(backward, "backward", "a dictionary", transferable.dim)
        if forward.map.d_target != backward.map.d_source:
            raise InputError(
                f"`backward` must take the {forward.map.d_target} dimensions that `forward` returns; it takes "
                f"{backward.map.d_source}."
            )
        carried = carry_dictionary(transferable, forward, backward)
    return cast(Kind, carried)


def push_forward(directions: Directions, forward: LinearMap, renormalise: bool = False) -> Directions:
    """Map each direction v to v W, without the bias. Raises InputError on a direction that the map takes to zero."""
    values = directions.values @ forward.weight
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    original_lengths = np.linalg.norm(directions.values, axis=1, keepdims=True)
    lost = lengths[:, 0] <= 1e-12 * original_lengths[:, 0] * np.linalg.norm(forward.weight)
    if lost.any():
        raise InputError(
            f"The map takes direction {int(lost.argmax())} to zero, so it cannot be transferred; leave it out."
        )
    return Directions(values / lengths * original_lengths if renormalise else values, directions.names)


def pull_back(probe: Probe, backward: LinearMap) -> Probe:
    """Return the probe (W w, c + b·w). Its scores of any x are the scores that `probe` (w, c) gives to x W + b."""
    return Probe(
        probe.coef @ backward.weight.T,
        probe.intercept + probe.coef @ backward.bias,
        probe.classes,
    )


def carry_dictionary(dictionary: Dictionary, forward: LinearMap, backward: LinearMap) -> Dictionary:
    """Transfer the columns of W_enc with b_enc as covectors, the rows of W_dec as vectors and b_dec as a point.

    The transferred dictionary encodes a row y to encode(backward(y)) and decodes features f to forward(decode(f)).
    `subtract_b_dec` does not change, so the same code can run the transferred dictionary.
    """
    subtracted = dictionary.b_dec if dictionary.subtract_b_dec else np.zeros_like(dictionary.b_dec)
    W_enc = backward.weight @ dictionary.W_enc
    b_dec = dictionary.b_dec @ forward.weight + forward.bias
    b_enc = dictionary.b_enc + (backward.bias - subtracted) @ dictionary.W_enc
    if dictionary.subtract_b_dec:
        b_enc = b_enc + b_dec @ W_enc
    return replace(
        dictionary, W_enc=W_enc, b_enc=b_enc, W_dec=dictionary.W_dec @ forward.weight, b_dec=b_dec, space=None
    )


def _check_map(map: LinearMap | None, way: str, kind: str, dim: int) -> LinearMap:
    """Check that the map is not missing and has `dim` dimensions on its side of the source space, and return it."""
    if map is None:
        ends = "the source space to the target space" if way == "forward" else "the target space to the source"
        raise InputError(f"`{way}` is needed to transfer {kind}: a map from {ends}.")
    d_source, d_target = map.map.d_source, map.map.d_target
    if way == "backward":
        d_source, d_target = d_target, d_source
    if dim != d_source:
        swapped = " The target space has that many: `forward` and `backward` may be swapped." if dim == d_target else ""
        raise InputError(
            f"The object to transfer has {dim} dimensions, but the source space of `{way}` has {d_source}.{swapped}"
        )
    return map
