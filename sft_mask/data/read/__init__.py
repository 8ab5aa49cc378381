"""Rows and conversations out of Arrow tables and datasets."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
"""A row of a dataset, or a batch of columns: values by name."""
