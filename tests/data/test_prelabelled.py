"""Datasets that came labelled."""

from __future__ import annotations

from datasets import Dataset

from sft_mask.constants import IGNORE_INDEX
from sft_mask.data.prelabelled import keep_labels


def test_rows_of_a_masked_dataset_that_lost_their_answer_go_unless_all_stay() -> None:
    labels = [[IGNORE_INDEX, 5], [IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX, 6]]
    data = Dataset.from_dict({"input_ids": [[4, 5], [4, 5], [4, 6]], "labels": labels})
    assert keep_labels(data, 9)[0]["labels"] == [labels[0], labels[2]]
    assert keep_labels(data, 9, keep_all_rows=True)[0]["labels"] == labels
