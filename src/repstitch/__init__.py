# pyright: strict
"""Learn, evaluate and serve translations between the embedding spaces of two models.

    import repstitch as rs

    stitcher = rs.train(old_vectors, new_vectors)
    translated = stitcher.translate(old_vectors)

Public names are imported on first use, so `import repstitch` loads neither NumPy nor torch.
"""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.alignment.measuring import atlas
    from repstitch.alignment.pair import align
    from repstitch.alignment.result import AlignmentScore, Atlas
    from repstitch.client import AsyncClient, Client
    from repstitch.embeddings.reading import read
    from repstitch.embeddings.rows import Embeddings
    from repstitch.encoders.encoder import embed
    from repstitch.errors import ConflictError, InputError, NotFoundError
    from repstitch.evaluation.scorecard import Scorecard
    from repstitch.spaces import Space
    from repstitch.stitchers.registry import Registry
    from repstitch.stitchers.stitcher import Stitcher, load
    from repstitch.workflows.scoring import score
    from repstitch.workflows.training import train
    from repstitch.workflows.translating import translate_file

__version__ = "0.1.0"

HOMES = {
    "alignment.measuring": ("atlas",),
    "alignment.pair": ("align",),
    "alignment.result": ("AlignmentScore", "Atlas"),
    "client": ("AsyncClient", "Client"),
    "embeddings.reading": ("read",),
    "embeddings.rows": ("Embeddings",),
    "encoders.encoder": ("embed",),
    "errors": ("ConflictError", "InputError", "NotFoundError"),
    "evaluation.scorecard": ("Scorecard",),
    "spaces": ("Space",),
    "stitchers.registry": ("Registry",),
    "stitchers.stitcher": ("Stitcher", "load"),
    "workflows.scoring": ("score",),
    "workflows.training": ("train",),
    "workflows.translating": ("translate_file",),
}
__all__ = [
    "AlignmentScore",
    "AsyncClient",
    "Atlas",
    "Client",
    "ConflictError",
    "Embeddings",
    "InputError",
    "NotFoundError",
    "Registry",
    "Scorecard",
    "Space",
    "Stitcher",
    "__version__",
    "align",
    "atlas",
    "embed",
    "load",
    "read",
    "score",
    "train",
    "translate_file",
]
__getattr__, __dir__ = public_names(__name__, HOMES)
