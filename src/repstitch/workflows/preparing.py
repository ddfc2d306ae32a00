"""TODO workflows.preparing."""

import os
from pathlib import Path


def group_name(group) -> str | None:
    if group is None:
        return None
    return Path(group).name if isinstance(group, str | os.PathLike) else "array"
