"""The header of every table: what it was measured on."""

import os
import platform
from importlib.metadata import version

PACKAGES = ("repstitch", "torch", "numpy", "scikit-learn", "lightning", "bentoml")


def header(title: str, command: str) -> str:
    """A Markdown title with the command, the machine and the versions."""
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"# {title}\n\n`{command}`\n\n{platform.machine()}, {os.cpu_count()} cores, {where}, "
        f"Python {platform.python_version()}, {versions}\n"
    )


def markdown(columns: list[str], rows: list[list]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in lines) + "\n"
