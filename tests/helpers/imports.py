"""The packages that a piece of code imports in a fresh interpreter."""

import subprocess
import sys

HEAVY = (
    "bentoml",
    "lightning",
    "matplotlib",
    "numpy",
    "pyarrow",
    "scipy",
    "sklearn",
    "starlette",
    "timm",
    "torch",
    "torchvision",
    "transformers",
    "uvicorn",
)


def loaded_after(code: str) -> set[str]:
    """Return the heavy packages that are loaded after running `code` in a fresh interpreter."""
    ending = f"\nprint('loaded:', *(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", "import sys\n" + code + ending], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())
