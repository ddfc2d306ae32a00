"""Do models converge? Whether alignment rises with size, whether lineage explains it, and what one space lacks."""
