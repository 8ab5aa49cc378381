"""Markers out of a chat template: found in what it writes around known words, and verified on probes."""
