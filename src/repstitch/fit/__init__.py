"""Ways to find a map from pairs."""
