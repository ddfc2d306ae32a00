"""Transfer directions, linear probes and sparse dictionaries from one model's embedding space to another's."""

from typing import TYPE_CHECKING

from repstitch.lazy import public_names

if TYPE_CHECKING:
    from repstitch.transfer.context import TransferContext, build_context
    from repstitch.transfer.files import read, write
    from repstitch.transfer.kinds import Dictionary, Directions, Probe
    from repstitch.transfer.proof import DictionaryProof, Proof, ZeroShotProof
    from repstitch.transfer.rules import carry
    from repstitch.transfer.run import evaluate, transfer

__all__ = [
    "Dictionary",
    "DictionaryProof",
    "Directions",
    "Probe",
    "Proof",
    "TransferContext",
    "ZeroShotProof",
    "build_context",
    "carry",
    "evaluate",
    "read",
    "transfer",
    "write",
]
__getattr__, __dir__ = public_names(
    __name__,
    {
        "context": ("TransferContext", "build_context"),
        "files": ("read", "write"),
        "kinds": ("Dictionary", "Directions", "Probe"),
        "proof": ("DictionaryProof", "Proof", "ZeroShotProof"),
        "rules": ("carry",),
        "run": ("evaluate", "transfer"),
    },
)
