"""Datasets that came labelled."""

from __future__ import annotations

from datasets import Dataset

from sft_mask.constants import IGNORE_INDEX
from sft_mask.data.prelabelled import keep_labels


def test_rows_of_a_masked_dataset_that_lost_their_answer_go_unless_all_stay() -> None:
    labels = [[IGNORE_INDEX, 5], [IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX, 6]]
    data = Dataset.from_dict({"input_ids": [[4, 5], [4, 5], [4, 6]], "labels": labels})
    assert keep_labels(data)[0]["labels"] == [labels[0], labels[2]]
    assert keep_labels(data, keep_all_rows=True)[0]["labels"] == labels


def test_rows_that_the_trainer_may_have_cut_are_counted() -> None:
    """Of packed rows it is the documents that were cut."""
    data = Dataset.from_dict({"input_ids": [[4, 5], [4, 5, 6]], "labels": [[IGNORE_INDEX, 5], [IGNORE_INDEX, 5, 6]]})
    assert keep_labels(data)[1].report.rows_at_max_length == 0
    assert keep_labels(data, max_length=3)[1].report.rows_at_max_length == 1
    packed = data.add_column("seq_lengths", [[2], [2, 1]])
    assert keep_labels(packed, max_length=2)[1].report.rows_at_max_length == 2
