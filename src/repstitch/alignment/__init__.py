"""Measure how similar embedding spaces are: two spaces with `align`, two or more with `atlas`."""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.alignment.measuring import atlas
    from repstitch.alignment.pair import align
    from repstitch.alignment.result import AlignmentScore, Atlas

__all__ = ["AlignmentScore", "Atlas", "align", "atlas"]
__getattr__, __dir__ = public_names(
    __name__, {"measuring": ("atlas",), "pair": ("align",), "result": ("AlignmentScore", "Atlas")}
)
