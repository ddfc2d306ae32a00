"""Bodies to rows and back, strictly: nothing is coerced, padded or reshaped to make it fit."""
