"""Label files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from sft_mask.data.accounting.stats import SplitStats
from sft_mask.data.cache import schema, store, stored


def test_a_label_file_with_fewer_or_more_rows_is_not_taken(tmp_path: Path) -> None:
    batch = pa.record_batch([pa.array([[1], [2]], pa.list_(pa.int32())), pa.array([1, 1], pa.int32())], schema(False))
    path = tmp_path / "labels.arrow"
    store(path, schema(False), [batch], SplitStats())
    assert [stored(path, rows) is not None for rows in (1, 2, 3)] == [False, True, False]
