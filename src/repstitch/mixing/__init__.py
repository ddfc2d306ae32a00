"""Native and translated rows together: search them in one index, choose which to embed anew, and merge result lists."""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.mixing.merging import best_offset, merge_results
    from repstitch.mixing.mixed_index import MixedIndex
    from repstitch.mixing.reembedding import choose_rows, density

__all__ = ["MixedIndex", "best_offset", "choose_rows", "density", "merge_results"]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "merging": ("best_offset", "merge_results"),
        "mixed_index": ("MixedIndex",),
        "reembedding": ("choose_rows", "density"),
    },
)
