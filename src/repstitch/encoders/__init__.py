"""Encoders: images through timm or torchvision, texts through transformers, to vectors and to embeddings on disk."""

from repstitch.encoders.encoder import Encoder, embed, from_module, load_encoder, save

__all__ = ["Encoder", "embed", "from_module", "load_encoder", "save"]
