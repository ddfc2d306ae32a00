"""Convert request bodies to rows, and rows to response bodies. Input is never coerced, padded or reshaped to fit."""
