"""The decoder-only transformer, its position encodings and its key-value cache."""
