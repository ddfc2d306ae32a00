"""The rules by which directions, probes and dictionaries go through an affine map y = x W + b.

A point goes through the map. A vector, the difference of two points, goes through W alone. A covector, which reads
points, comes back through the transpose: the probe (w, c) on the target reads source rows as (W w, c + b·w). So vectors
and points of the source reach the target through the forward map (source → target), and covectors through the backward
map (target → source).
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
    """Directions, a probe or a dictionary of the source space, carried to the target space.

    Directions need the `forward` map, probes the `backward` one, dictionaries both. With `renormalise` each direction
    keeps its original length. Raises InputError where a map is missing or has other dimensions.
    """
    if renormalise and not isinstance(transferable, Directions):
        raise InputError(
            "`renormalise` is of directions only; a probe's or dictionary's scale is part of what it says."
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
                f"`backward` must come from the {forward.map.d_target} dimensions that `forward` leads to; "
                f"it takes {backward.map.d_source}."
            )
        carried = carry_dictionary(transferable, forward, backward)
    return cast(Kind, carried)


def push_forward(directions: Directions, forward: LinearMap, renormalise: bool = False) -> Directions:
    """v → v W, without the bias. Raises InputError on a direction that the map takes to zero."""
    values = directions.values @ forward.weight
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    original_lengths = np.linalg.norm(directions.values, axis=1, keepdims=True)
    lost = lengths[:, 0] <= 1e-12 * original_lengths[:, 0] * np.linalg.norm(forward.weight)
    if lost.any():
        raise InputError(f"Direction {int(lost.argmax())} is one of those that the map takes to zero; nothing is left.")
    return Directions(values / lengths * original_lengths if renormalise else values, directions.names)


def pull_back(probe: Probe, backward: LinearMap) -> Probe:
    """(w, c) → (W w, c + b·w): its scores of x are those that `probe` gives to x W + b, for every x."""
    return Probe(
        probe.coef @ backward.weight.T,
        probe.intercept + probe.coef @ backward.bias,
        probe.classes,
    )


def carry_dictionary(dictionary: Dictionary, forward: LinearMap, backward: LinearMap) -> Dictionary:
    """Columns of W_enc with b_enc as covectors, rows of W_dec as vectors, b_dec as a point.

    encode'(y) = encode(backward(y)) and decode'(f) = forward(decode(f)), for every row y and all features f.
    `subtract_b_dec` stays the same, so the same code can run the carried dictionary.
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
    """The map, if it is there and its side of the source space has `dim` dimensions."""
    if map is None:
        ends = "the source space to the target space" if way == "forward" else "the target space to the source"
        raise InputError(f"`{way}` is needed to carry {kind}: a stitcher from {ends}.")
    d_source, d_target = map.map.d_source, map.map.d_target
    if way == "backward":
        d_source, d_target = d_target, d_source
    if dim != d_source:
        swapped = " It fits the other side: forward and backward may be swapped." if dim == d_target else ""
        raise InputError(f"What is carried has {dim} dimensions, but `{way}` knows the source by {d_source}.{swapped}")
    return map
