"""Stitchers: their maps, how they are saved and loaded, and how a registry selects one for two spaces."""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.stitchers.confidence import Calibration, Confidence
    from repstitch.stitchers.maps import AffineMap, Map, ResidualMLP
    from repstitch.stitchers.pipeline import Pipeline
    from repstitch.stitchers.registry import Registry
    from repstitch.stitchers.routing import Route
    from repstitch.stitchers.stitcher import Stitcher, load

__all__ = [
    "AffineMap",
    "Calibration",
    "Confidence",
    "Map",
    "Pipeline",
    "Registry",
    "ResidualMLP",
    "Route",
    "Stitcher",
    "load",
]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "confidence": ("Calibration", "Confidence"),
        "maps": ("AffineMap", "Map", "ResidualMLP"),
        "pipeline": ("Pipeline",),
        "registry": ("Registry",),
        "routing": ("Route",),
        "stitcher": ("Stitcher", "load"),
    },
)
