"""Work done on one model, carried to another: directions, probes and dictionaries through the maps between them."""
