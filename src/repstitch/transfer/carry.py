"""The rules by which things go through a map y = x W + b.

A point goes through the map. A vector, the difference of two points, goes through W alone. A covector, what reads
points, comes back through the transpose: the probe (w, c) on the target reads source rows as (W w, c + b·w). So what is
of the source reaches the target by the forward map (source → target) where it is a vector or a point, and by the
backward map (target → source) where it is a covector.
"""

from dataclasses import replace

import numpy as np

from repstitch.errors import InputError
from repstitch.transfer.kinds import Dictionary, Directions, Probe, Thing
from repstitch.transfer.linear import Linear


def carry(
    thing: Thing, forward: Linear | None = None, backward: Linear | None = None, renormalise: bool = False
) -> Thing:
    """The same thing of the other space.

    Directions need the `forward` map, probes the `backward` one, dictionaries both. With `renormalise` each direction
    gets back the length it had. Raises InputError where a map that is needed is missing, or of other dimensions.
    """
    if renormalise and not isinstance(thing, Directions):
        raise InputError(
            "`renormalise` is of directions only; a probe's or dictionary's scale is part of what it says."
        )
    if isinstance(thing, Directions):
        return push_forward(thing, _needed(forward, "forward", "directions", thing.dim), renormalise)
    if isinstance(thing, Probe):
        return pull_back(thing, _needed(backward, "backward", "a probe", thing.dim))
    forward = _needed(forward, "forward", "a dictionary", thing.dim)
    backward = _needed(backward, "backward", "a dictionary", thing.dim)
    if forward.map.d_target != backward.map.d_source:
        raise InputError(
            f"`backward` must come from the {forward.map.d_target} dimensions that `forward` leads to; "
            f"it takes {backward.map.d_source}."
        )
    return carry_dictionary(thing, forward, backward)


def push_forward(directions: Directions, forward: Linear, renormalise: bool = False) -> Directions:
    """v → v W, without the bias. Raises InputError on a direction of which the map keeps nothing."""
    values = directions.values @ forward.weight
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    own = np.linalg.norm(directions.values, axis=1, keepdims=True)
    lost = lengths[:, 0] <= 1e-12 * own[:, 0] * np.linalg.norm(forward.weight)
    if lost.any():
        raise InputError(f"Direction {int(lost.argmax())} is one of those that the map takes to zero; nothing is left.")
    return Directions(values / lengths * own if renormalise else values, directions.names)


def pull_back(probe: Probe, backward: Linear) -> Probe:
    """(w, c) → (W w, c + b·w): the probe that says of x what `probe` says of x W + b, for every x."""
    return Probe(
        probe.coef @ backward.weight.T,
        probe.intercept + probe.coef @ backward.bias,
        probe.classes,
    )


def carry_dictionary(dictionary: Dictionary, forward: Linear, backward: Linear) -> Dictionary:
    """Columns of W_enc with b_enc as covectors, rows of W_dec as vectors, b_dec as a point.

    encode'(y) = encode(backward(y)) and decode'(f) = forward(decode(f)), for every row y and all features f. Whether
    b_dec is subtracted before encoding stays as it was, so that the same code runs it.
    """
    at = dictionary.b_dec if dictionary.subtract_b_dec else np.zeros_like(dictionary.b_dec)
    W_enc = backward.weight @ dictionary.W_enc
    b_dec = dictionary.b_dec @ forward.weight + forward.bias
    b_enc = dictionary.b_enc + (backward.bias - at) @ dictionary.W_enc
    if dictionary.subtract_b_dec:
        b_enc = b_enc + b_dec @ W_enc
    return replace(
        dictionary, W_enc=W_enc, b_enc=b_enc, W_dec=dictionary.W_dec @ forward.weight, b_dec=b_dec, space=None
    )


def _needed(map: Linear | None, which: str, what: str, dim: int) -> Linear:
    end = "from the source space to the target space" if which == "forward" else "from the target space to the source"
    if map is None:
        raise InputError(f"`{which}` is needed to carry {what}: a stitcher {end}.")
    own, other = (map.map.d_source, map.map.d_target) if which == "forward" else (map.map.d_target, map.map.d_source)
    if dim != own:
        swapped = " It fits the other side: forward and backward may be swapped." if dim == other else ""
        raise InputError(f"What is carried has {dim} dimensions, but `{which}` knows the source by {own}.{swapped}")
    return map
