"""Encoders: embed images with timm or torchvision and texts with transformers, in memory or into files."""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.encoders.encoder import Encoder, embed, from_module, load_encoder, save

__all__ = ["Encoder", "embed", "from_module", "load_encoder", "save"]
__getattr__, __dir__ = public_names(__name__, {"encoder": tuple(__all__)})
