"""Open the store at an address."""

import importlib

from repstitch.addresses import Address
from repstitch.stores.store import Store

STORES = {
    "folder": ("parquet.folder", "ParquetFolder"),
    "lancedb": ("lancedb.table", "LanceTable"),
    "postgresql": ("postgresql.table", "PostgresTable"),
}


def open_store(address: Address) -> Store:
    """Open the table at an address. Its module, and so the driver, is imported only now.

    Raises InputError if there is no such store, table or column, and ModuleNotFoundError if the driver is missing.
    """
    module, name = STORES[address.scheme]
    return getattr(importlib.import_module(f"repstitch.stores.{module}"), name)(address)
