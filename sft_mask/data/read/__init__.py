"""Rows and conversations out of Arrow tables and datasets."""
