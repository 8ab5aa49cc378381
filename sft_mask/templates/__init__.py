"""A chat template and a conversation in, exact turns out."""
