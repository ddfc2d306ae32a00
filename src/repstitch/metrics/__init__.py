"""How alike two spaces are, and how well one retrieves the other."""
