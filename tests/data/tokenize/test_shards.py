"""Tokenizing in batches, shards and processes: the ids of each row alone, whatever the batch, the shard or the run."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk
from support import tiny

from sft_mask import mask_dataset
from sft_mask.data.tokenize import shards
from sft_mask.data.tokenize.rows import RowTokenizer
from sft_mask.errors import DataError

CHATS = tiny.chats(90, seed=11)


@pytest.fixture
def on_disk(tmp_path: Path) -> Dataset:
    """Chats in a file, which ``datasets`` keeps as Arrow in a folder of its own."""
    return from_file(tmp_path, CHATS)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_SHARD_BYTES", 4000)
    monkeypatch.setattr(shards, "_BATCH_ROWS", 7)


def from_file(folder: Path, chats: list[tiny.Messages]) -> Dataset:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "cache"))


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("cache-sft-mask-ids-*")}


def is_right(dataset: Any, chats: list[tiny.Messages]) -> bool:
    rows = zip(dataset, chats, strict=True)
    return all(
        row["input_ids"] == tiny.tokenized(chat) and row["labels"] == tiny.expected(chat) and row["messages"] == chat
        for row, chat in rows
    )


@pytest.mark.parametrize("num_proc", [None, 1, 2])
def test_ids_are_those_of_each_row_alone_with_any_number_of_processes(on_disk: Dataset, num_proc: int | None) -> None:
    masked = mask_dataset(on_disk, tiny.tokenizer(), num_proc=num_proc)
    assert is_right(masked, CHATS)
    assert str(masked.features["input_ids"]) == "List(Value('int32'))"


def test_a_shuffled_part_is_tokenized_in_its_own_order(on_disk: Dataset) -> None:
    order = [70, 3, 3, 41, 88, 0, 41, 5]
    masked = mask_dataset(on_disk.select(order), tiny.tokenizer())
    assert is_right(masked, [CHATS[at] for at in order])


def test_an_interrupted_run_goes_on_where_it_was(
    on_disk: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = shards._write_shard, []

    def killed(*given: Any) -> int:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(given[4])
        return write(*given)

    monkeypatch.setattr(shards, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        mask_dataset(on_disk, tiny.tokenizer())
    before = files(tmp_path)
    assert sorted(before) == sorted(path.name for path in written), "three whole shards, nothing unfinished"
    monkeypatch.setattr(shards, "_write_shard", write)
    assert is_right(mask_dataset(on_disk, tiny.tokenizer(), num_proc=2), CHATS)
    after = files(tmp_path)
    assert len(after) > 3
    assert {name: after[name] for name in before} == before, "what was there is not written again"


def test_an_error_while_a_shard_is_written_leaves_no_part_of_it(
    on_disk: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = shards._Job.batches

    def failing(job: Any, *given: Any) -> Iterator[Any]:
        yield next(batches(job, *given))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards._Job, "batches", failing)
    with pytest.raises(OSError, match=r"No space left on device, while token ids were written\. Nothing was changed"):
        mask_dataset(on_disk, tiny.tokenizer())
    assert not files(tmp_path)


def test_a_damaged_shard_is_written_again(on_disk: Dataset, tmp_path: Path) -> None:
    mask_dataset(on_disk, tiny.tokenizer())
    victim = sorted(tmp_path.rglob("cache-sft-mask-ids-*"))[1]
    victim.unlink()
    victim.write_bytes(b"not Arrow")
    assert is_right(mask_dataset(on_disk, tiny.tokenizer()), CHATS)


def test_another_tokenizer_or_template_does_not_find_the_ids(on_disk: Dataset, tmp_path: Path) -> None:
    mask_dataset(on_disk, tiny.tokenizer())
    first = files(tmp_path)
    template = tiny.tokenizer().chat_template.replace("<|im_end|>", "<|im_end|> ")
    other = mask_dataset(on_disk, tiny.tokenizer(), chat_template=template)
    assert len(files(tmp_path)) == 2 * len(first)
    assert other["input_ids"][0] != tiny.tokenized(CHATS[0])


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize("row", [0, 6, 7, 55, 89])
def test_a_row_that_fails_names_itself_in_any_batch_and_process(tmp_path: Path, row: int, num_proc: int | None) -> None:
    chats = [list(chat) for chat in CHATS]
    chats[row] = []
    broken = from_file(tmp_path, chats)
    with pytest.raises(DataError, match=rf"^Row {row}: messages is an empty list"):
        mask_dataset(broken, tiny.tokenizer(), num_proc=num_proc)


def test_of_several_rows_that_fail_the_first_is_named(tmp_path: Path) -> None:
    chats = [list(chat) for chat in CHATS]
    chats[80] = chats[33] = []
    with pytest.raises(DataError, match=r"^Row 33: "):
        mask_dataset(from_file(tmp_path, chats), tiny.tokenizer(), num_proc=2)


def test_a_row_that_cannot_be_encoded_is_named_before_a_later_one_that_cannot_be_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: RowTokenizer, rows: Any, numbers: Any) -> Any:
        if 3 in numbers:
            raise DataError("Row 3: The tokenizer refuses its text")
        return known(self, rows, numbers)

    known = RowTokenizer.encode
    monkeypatch.setattr(RowTokenizer, "encode", encode)
    chats = [list(chat) for chat in CHATS]
    chats[8] = []  # in the next batch, which is rendered while the first one is encoded
    with pytest.raises(DataError, match=r"^Row 3: "):
        mask_dataset(from_file(tmp_path, chats), tiny.tokenizer())


def test_small_data_in_memory_leave_no_file_and_large_data_do_not_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Dataset.from_list([{"messages": chat} for chat in CHATS])
    assert not mask_dataset(data, tiny.tokenizer()).cache_files
    monkeypatch.setattr(shards, "_KEPT_IN_MEMORY", 1000)
    masked = mask_dataset(data, tiny.tokenizer())
    assert is_right(masked, CHATS)
    assert masked.cache_files, "mapped from a temporary folder of this process"


def test_prompt_and_completion_are_tokenized_alike_with_processes(tmp_path: Path) -> None:
    rows = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in CHATS]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    for num_proc in (None, 2):
        masked = mask_dataset(data, tiny.tokenizer(), num_proc=num_proc)
        for row, chat in zip(masked, CHATS, strict=True):
            assert row["input_ids"] == tiny.tokenized(chat)
            assert row["labels"] == tiny.expected(chat, only={len(chat) - 1})


# many machines


def prepare(folder: Path, number: int) -> None:
    """What one machine of four does."""
    data = load_dataset("json", data_files=str(folder / "chats.jsonl"), split="train", cache_dir=str(folder / "cache"))
    part = data.shard(num_shards=4, index=number)
    mask_dataset(part, tiny.tokenizer()).save_to_disk(folder / f"part-{number}")


def test_four_processes_that_share_nothing_but_files_give_what_one_gives(on_disk: Dataset, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    machines = [context.Process(target=prepare, args=(tmp_path, number)) for number in range(4)]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join(120)
    assert [machine.exitcode for machine in machines] == [0, 0, 0, 0]
    joined = concatenate_datasets([load_from_disk(tmp_path / f"part-{number}") for number in range(4)])
    alone = mask_dataset(on_disk, tiny.tokenizer())
    for name in ("input_ids", "labels", "messages"):
        assert joined[name][:] == alone[name][:]
    assert is_right(joined, CHATS)


def test_shards_of_a_stream_give_what_the_whole_gives(tmp_path: Path) -> None:
    for number in range(4):
        part = CHATS[number::4]
        text = "".join(json.dumps({"messages": chat}) + "\n" for chat in part)
        (tmp_path / f"chats-{number}.jsonl").write_text(text, encoding="utf-8")
    given = sorted(map(str, tmp_path.glob("chats-*.jsonl")))
    stream = load_dataset("json", data_files=given, split="train", streaming=True)
    for number in range(4):
        masked = list(mask_dataset(stream.shard(num_shards=4, index=number), tiny.tokenizer()))
        assert is_right(masked, CHATS[number::4])
