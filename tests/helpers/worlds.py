"""The stores of which every test of migrations is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.lance_world import LanceWorld
from helpers.parquet_world import ParquetWorld
from helpers.postgresql_world import PostgresColumnWorld, PostgresSideWorld

WORLDS: dict[str, Callable[[Path], Any]] = {
    world.name: world for world in (LanceWorld, ParquetWorld, PostgresColumnWorld, PostgresSideWorld)
}
LIVE = [name for name in WORLDS if name != ParquetWorld.name]  # others may write during a whole job
