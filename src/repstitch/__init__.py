"""Learn, prove and serve translations between the embedding spaces of two models.

The modules are the namespace: `from repstitch.train import train`, `from repstitch.stitcher import load`.
Importing this package imports nothing else.
"""

__version__ = "0.1.0"
