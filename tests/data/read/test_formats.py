"""What is read of a dataset before it is masked."""

from __future__ import annotations

from datasets import Dataset

from sft_mask.data.read.formats import sample_rows


def test_sampled_rows_are_spread_over_the_dataset() -> None:
    rows = sample_rows(Dataset.from_dict({"input_ids": [[number] for number in range(1000)]}), 5)
    assert [int(row[0]) for row in rows] == [0, 249, 499, 749, 999]
