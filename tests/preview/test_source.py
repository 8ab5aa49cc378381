"""Rows to be shown, from every kind of data and from a trainer: what was dropped, cut or ambiguous is still there."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from support.tiny import build, chats, expected, messages_dataset, tokenized, tokenizer

from sft_mask import Policy, explain, mask_dataset, preview_rows, train_on_responses_only
from sft_mask.errors import DataError, MarkerError, UnsupportedError
from sft_mask.preview import build_row, write_html


def labels_of(rows: Any) -> list[list[int]]:
    return [list(row.labels) for row in rows]


def test_rows_of_a_dataset_are_masked_as_character_offsets_say() -> None:
    data = messages_dataset(12)
    rows = preview_rows(data, tokenizer())
    assert len(rows) == 12
    assert labels_of(rows) == [expected(messages) for messages in data["messages"]]
    assert [row.name for row in rows][:2] == ["train 0", "train 1"]


def test_rows_can_be_picked_sliced_and_read_again() -> None:
    data = messages_dataset(9)
    rows = preview_rows(data, tokenizer())
    assert rows[4].name == rows[-5].name == "train 4"
    assert [row.name for row in rows[2:8:2]] == ["train 2", "train 4", "train 6"]
    assert [row.name for row in rows[5:][1:]] == ["train 6", "train 7", "train 8"]
    assert [row.name for row in rows.pick([7, 0])] == ["train 7", "train 0"]
    assert labels_of(rows) == labels_of(rows)
    with pytest.raises(IndexError):
        rows[9]


def test_a_list_a_stream_and_a_dict_of_splits_are_shown_alike() -> None:
    data = messages_dataset(5)
    wanted = labels_of(preview_rows(data, tokenizer()))
    assert labels_of(preview_rows(data.to_list(), tokenizer())) == wanted
    assert labels_of(preview_rows(data.to_iterable_dataset(), tokenizer())) == wanted
    splits = DatasetDict({"train": data, "test": messages_dataset(3, seed=8)})
    assert labels_of(preview_rows(splits, tokenizer())) == wanted
    assert [row.name for row in preview_rows(splits, tokenizer(), split="test")] == ["test 0", "test 1", "test 2"]


def test_dropped_cut_and_ambiguous_rows_are_there_and_say_so() -> None:
    answered, other = chats(2, seed=4)
    silent = [{"role": "user", "content": "quick?"}]
    whole = tokenized(answered)
    data = [
        {"messages": answered, "input_ids": whole},
        {"messages": silent, "input_ids": tokenized(silent)},
        {"messages": answered, "input_ids": whole[:-3]},
        {"messages": other, "input_ids": tokenized([*other, {"role": "assistant", "content": "more"}])},
    ]
    flags = [[flag.split(":")[0] for flag in row.status] for row in preview_rows(data, tokenizer())]
    assert flags == [[], ["dropped"], ["cut"], ["dropped", "ambiguous"]]


def test_documents_of_a_packed_row_stand_apart() -> None:
    parts = [tokenized(messages) for messages in chats(3)]
    data = Dataset.from_list([{"input_ids": list(chain(*parts)), "seq_lengths": [len(part) for part in parts]}])
    row = preview_rows(data, tokenizer())[0]
    assert row.documents == tuple(map(len, parts))
    assert list(row.labels) == list(chain(*(expected(messages) for messages in chats(3))))


def test_weights_are_shown() -> None:
    data = messages_dataset(3)
    row = preview_rows(data, tokenizer(), policy=Policy(prompt_weight=0.25))[0]
    trained = [label != -100 for label in expected(data["messages"][0])]
    assert [weight == 1 for weight in row.weights] == trained
    assert {weight for weight, is_trained in zip(row.weights, trained, strict=True) if not is_trained} == {0.25}
    assert explain(row, 0).endswith("; the policy trains it, with weight 0.25")


def test_labels_that_are_done_are_shown_as_they_are() -> None:
    data = messages_dataset(4)
    masked = mask_dataset(data, tokenizer(), policy=Policy(turns="last"))
    rows = preview_rows(masked, tokenizer())
    assert labels_of(rows) == [list(labels) for labels in masked["labels"]]


def test_labels_that_were_cut_since_are_shown_as_they_are() -> None:
    masked = mask_dataset(messages_dataset(4), tokenizer()).remove_columns("messages")
    inside = [next(at for at, label in enumerate(row) if label != -100) + 1 for row in masked["labels"]]
    cut = masked.map(
        lambda row, at: {name: row[name][inside[at] :] for name in ("input_ids", "labels")}, with_indices=True
    )
    assert all(labels[0] != -100 for labels in cut["labels"])
    assert labels_of(preview_rows(cut, tokenizer())) == [list(labels) for labels in cut["labels"]]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    silent = {"messages": [{"role": "user", "content": "quick?"}], "n": 99}
    train = Dataset.from_list([*messages_dataset(6).to_list(), silent])
    made = build(tmp_path_factory.mktemp("out"), train, {"one": messages_dataset(2), "two": messages_dataset(3)})
    return train_on_responses_only(made, policy=Policy(turns="last"))


def test_a_trainer_shows_what_it_trains_and_what_it_dropped(trainer: Any) -> None:
    rows = list(preview_rows(trainer))
    assert len(trainer.train_dataset) == 6
    assert [bool(row.status) for row in rows] == [False] * 6 + [True]
    kept = [list(row.labels) for row in rows if not row.status]
    assert kept == [list(map(int, row["labels"])) for row in trainer.train_dataset]
    assert [row.name for row in preview_rows(trainer, split="eval:two")] == [f"eval:two {at}" for at in range(3)]
    assert len(trainer.train_dataset) == 6


def test_a_trainer_that_was_not_masked_and_settings_for_one_that_was_are_refused(trainer: Any, tmp_path: Any) -> None:
    with pytest.raises(UnsupportedError, match="was not masked"):
        preview_rows(build(tmp_path))
    with pytest.raises(UnsupportedError, match="shown as it was masked"):
        preview_rows(trainer, tokenizer())
    with pytest.raises(DataError, match="no split 'test': there are 'train', 'eval:one', 'eval:two'"):
        preview_rows(trainer, split="test")


def test_what_is_no_data_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="needs its tokenizer"):
        preview_rows(messages_dataset(2))
    with pytest.raises(DataError, match="str is not a dataset"):
        preview_rows("chats.jsonl", tokenizer())
    with pytest.raises(DataError, match="must be dicts"):
        preview_rows([[1, 2]], tokenizer())
    with pytest.raises(DataError, match="has no splits"):
        preview_rows(messages_dataset(2), tokenizer(), split="test")
    with pytest.raises(MarkerError, match="Only one marker"):
        preview_rows(messages_dataset(2), tokenizer(), "USER:")


# ---- into a page -----------------------------------------------------------------------------------------------------


def test_a_page_of_one_row_of_a_dataset_or_of_nothing_that_is_a_row_is_refused(tmp_path: Any) -> None:
    row, path = build_row(tokenizer(), [1], [1]), tmp_path / "page.html"
    with pytest.raises(DataError, match=r"write_html\(\[row\], path\)"):
        write_html(row, path)  # type: ignore[arg-type]
    for wrong in (messages_dataset(2), [{"input_ids": [1]}], 7, "page.html", {"row": row}):
        with pytest.raises(DataError, match=r"preview_rows\(dataset, tokenizer\)"):
            write_html(wrong, path)  # type: ignore[arg-type]
    assert not path.exists()


def test_a_page_in_a_folder_that_is_not_there_is_refused(tmp_path: Any) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        write_html([build_row(tokenizer(), [1], [1])], tmp_path / "none" / "page.html")


def test_a_page_is_written_from_preview_rows(tmp_path: Any) -> None:
    page = write_html(preview_rows(messages_dataset(3), tokenizer()), tmp_path / "page.html").read_text("utf-8")
    assert "the model must learn to stop" in page
    assert "train 2" in page
