"""Errors about data: malformed rows, and datasets without an assistant."""
