"""Token ids and markers in, labels out: NumPy only."""
