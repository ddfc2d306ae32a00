"""Bodies of requests to rows and rows to bodies of replies. Nothing is coerced, padded or reshaped to make it fit."""
