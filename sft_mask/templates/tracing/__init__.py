"""A template run on strings that know the source of each character, within limits."""
