"""Labels for whole datasets: every table that ``datasets`` can hold, files that are whole or not there, streams."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, IterableDataset, concatenate_datasets, load_from_disk
from support.tiny import ASSISTANT, USER, chats, expected, messages_dataset, tokenized, tokenizer
from support.tiny_chat import CHATML, prepared
from support.tiny_tokenizers import byte_level

import sft_mask.data.dataset
from sft_mask import Policy, mask_dataset
from sft_mask.data import cache as labelfile
from sft_mask.data.dataset import fingerprint_of, label_dataset
from sft_mask.data.masker import Masker
from sft_mask.data.setup import MaskSettings, build_masker, read_tokenizer
from sft_mask.data.stream import LabelBatch, label_stream
from sft_mask.errors import AmbiguousRowError, DataError, SftMaskError, UnsupportedError

CHATS = chats(40, seed=3)


def made_masker(**settings: Any) -> Masker:
    return build_masker(read_tokenizer(tokenizer()), [], MaskSettings(**settings))


def tokenized_dataset(conversations: Any = CHATS, **columns: Any) -> Dataset:
    rows = {"n": list(range(len(conversations))), "input_ids": [tokenized(messages) for messages in conversations]}
    return Dataset.from_dict({**rows, **columns})


def on_disk(dataset: Dataset, folder: Path) -> Dataset:
    dataset.save_to_disk(str(folder))
    return load_from_disk(str(folder))


def labelled(dataset: Dataset, **settings: Any) -> Dataset:
    return label_dataset(dataset, made_masker(**settings))[0]


def agrees(dataset: Any, conversations: Any = CHATS) -> None:
    """Every row holds the labels of the conversation that its column ``n`` names."""
    for row in dataset:
        assert list(map(int, row["labels"])) == expected(conversations[int(row["n"])])


# tables


def test_a_dataset_in_memory_is_labelled_and_writes_no_file() -> None:
    dataset = tokenized_dataset()
    assert dataset.cache_files == []
    made = labelled(dataset)
    assert len(made) == 40
    agrees(made)
    assert made.cache_files == []


def test_a_dataset_on_disk_gets_one_label_file_beside_it(tmp_path: Path) -> None:
    dataset = on_disk(tokenized_dataset(), tmp_path / "data")
    made = labelled(dataset)
    agrees(made)
    assert len(list((tmp_path / "data").glob("cache-sft-mask-*.arrow"))) == 1
    assert not list((tmp_path / "data").glob("*.partial"))
    assert "labels" not in dataset.column_names


def test_the_side_file_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    sizes = []
    for count in (4, 40):
        made = on_disk(tokenized_dataset(CHATS[:count]), tmp_path / str(count))
        labelled(made)
        (side,) = (tmp_path / str(count)).glob("cache-sft-mask-*.json")
        sizes.append(len(side.read_text()))
    assert abs(sizes[0] - sizes[1]) < 20


def test_the_count_column_is_not_taken_over(tmp_path: Path) -> None:
    made = labelled(on_disk(tokenized_dataset(), tmp_path / "data"))
    assert made.column_names == ["n", "input_ids", "labels"]


def test_labels_are_int32_lists() -> None:
    made = labelled(tokenized_dataset())
    assert made.features["labels"] == datasets.List(datasets.Value("int32"))
    assert made.data.schema.field("labels").type == pa.list_(pa.int32())


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_shuffled_rows_keep_their_order_and_their_index_mapping(where: str, tmp_path: Path) -> None:
    dataset = tokenized_dataset()
    dataset = on_disk(dataset, tmp_path / "data") if where == "disk" else dataset
    shuffled = dataset.shuffle(seed=1)
    made = labelled(shuffled)
    assert made["n"] == shuffled["n"]
    assert made._indices is not None
    agrees(made)


def test_sliced_tables_start_where_they_start() -> None:
    made = labelled(tokenized_dataset().select(range(7, 29)))
    assert list(made["n"]) == list(range(7, 29))
    agrees(made)


def test_a_slice_of_a_slice_of_a_shuffle_is_right() -> None:
    dataset = tokenized_dataset().select(range(5, 35)).shuffle(seed=2).select(range(3, 20)).select([4, 2, 9])
    made = labelled(dataset)
    assert made["n"] == dataset["n"]
    agrees(made)


def test_concatenated_datasets_are_right(tmp_path: Path) -> None:
    parts = [on_disk(tokenized_dataset().select(range(12)), tmp_path / "a"), tokenized_dataset().select(range(12, 40))]
    made = labelled(concatenate_datasets(parts))
    assert list(made["n"]) == list(range(40))
    agrees(made)


def test_rows_that_occur_twice_are_counted_twice() -> None:
    masker = made_masker()
    once, stats_once = label_dataset(tokenized_dataset().select([3, 5]), masker)
    twice, stats_twice = label_dataset(tokenized_dataset().select([3, 5, 3, 5]), masker)
    assert [*once["labels"], *once["labels"]] == list(twice["labels"])
    assert stats_twice.report == stats_once.report + stats_once.report


def test_rows_that_are_filtered_out_are_neither_checked_nor_counted() -> None:
    conversations = [tokenized(messages) for messages in CHATS[:3]]
    dataset = Dataset.from_dict({"input_ids": [conversations[0], None, [], conversations[2]], "n": [0, 1, 1, 2]})
    kept = dataset.filter(lambda row: bool(row["input_ids"]))
    made, stats = label_dataset(kept, made_masker())
    agrees(made, CHATS)
    assert stats.report.rows == 2
    assert stats.report.rows_dropped == 0


def test_a_null_among_labels_is_named_with_its_row() -> None:
    rows = [tokenized(messages) for messages in CHATS[:3]]
    labels = [rows[0], [*rows[1][:-1], None], rows[2]]
    with pytest.raises(DataError, match=rf"row 1: labels is malformed: it holds a null at position {len(rows[1]) - 1}"):
        labelled(Dataset.from_dict({"input_ids": rows, "labels": labels}))


def test_batches_of_any_size_give_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    shuffled = tokenized_dataset().shuffle(seed=5).select(range(31))
    whole, stats = label_dataset(shuffled, made_masker())
    for rows, tokens in ((1, 1 << 20), (7, 1 << 20), (1000, 90), (1000, 1)):
        monkeypatch.setattr(sft_mask.data.dataset, "_ROWS_AT_ONCE", rows)
        monkeypatch.setattr(sft_mask.data.dataset, "_TOKENS_AT_ONCE", tokens)
        again, stats_again = label_dataset(shuffled, made_masker())
        assert list(again["labels"]) == list(whole["labels"])
        assert stats_again.report == stats.report


def test_a_batch_holds_no_more_tokens_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_mask.data.dataset, "_TOKENS_AT_ONCE", 200)
    dataset = tokenized_dataset()
    sizes = [
        batch.table["input_ids"].combine_chunks().flatten() for batch in sft_mask.data.dataset._batches(dataset, None)
    ]
    assert sum(map(len, sizes)) == sum(map(len, dataset["input_ids"]))
    assert len(sizes) > 5
    assert max(map(len, sizes)) <= 200


def test_batches_take_every_row_once_and_end_where_a_chunk_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sft_mask.data.dataset, "_TOKENS_AT_ONCE", 100)
    monkeypatch.setattr(sft_mask.data.dataset, "_ROWS_AT_ONCE", 6)
    tokens = [[30, 30, 30], [], [250, 10], [9] * 20, [20, 20], [70, 0, 30]]
    chunks = [pa.array([[7] * length for length in chunk], pa.list_(pa.int64())) for chunk in tokens]
    lengths = [length for chunk in tokens for length in chunk]
    bounds = list(sft_mask.data.dataset._row_ranges(pa.chunked_array(chunks)))
    assert [row for first, last in bounds for row in range(first, last)] == list(range(len(lengths)))
    assert bounds[:3] == [(0, 3), (3, 4), (4, 10)]
    assert all(last - first == 1 or sum(lengths[first:last]) <= 100 for first, last in bounds)
    assert max(last - first for first, last in bounds) == 6


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5], [1, 1, 2, 3, 4, 5], [0, 2, 4], [3], []])
def test_rows_are_taken_by_runs_or_one_by_one(places: list[int]) -> None:
    table = pa.table({"n": pa.chunked_array([[0, 1], [2, 3, 4, 5]]), "input_ids": [[n] * n for n in range(6)]})
    taken = sft_mask.data.dataset._taken(table, np.array(places, np.int64))
    assert taken["n"].to_pylist() == places
    assert taken["input_ids"].to_pylist() == [[n] * n for n in places]


def test_rows_without_an_answer_are_dropped_and_counted() -> None:
    conversations = [*CHATS[:3], [{"role": "user", "content": "red"}], *CHATS[3:5]]
    made, stats = label_dataset(tokenized_dataset(conversations), made_masker())
    assert list(made["n"]) == [0, 1, 2, 4, 5]
    agrees(made, conversations)
    assert (stats.report.rows, stats.report.rows_dropped) == (5, 1)


def test_keep_all_rows_keeps_rows_that_train_nothing_in_place() -> None:
    conversations = [[{"role": "user", "content": "red"}], *CHATS[:2]]
    masker = made_masker()
    made, _ = label_dataset(tokenized_dataset(conversations), masker, keep_all_rows=True)
    assert list(made["n"]) == [0, 1, 2]
    assert set(made[0]["labels"]) == {-100}


def test_labels_that_were_masked_stay_masked() -> None:
    before = [[-100] * 12 + tokenized(messages)[12:] for messages in CHATS]
    made = labelled(tokenized_dataset(labels=before))
    for row in made:
        assert row["labels"] == [-100] * 12 + expected(CHATS[row["n"]])[12:]


def test_labelling_twice_is_labelling_once() -> None:
    once = labelled(tokenized_dataset())
    twice = labelled(once)
    assert list(once["labels"]) == list(twice["labels"])
    assert twice.column_names.count("labels") == 1


def test_packed_rows_are_read_document_by_document() -> None:
    ids = [token for messages in CHATS[:3] for token in tokenized(messages)]
    lengths = [len(tokenized(messages)) for messages in CHATS[:3]]
    dataset = Dataset.from_dict({"input_ids": [ids], "seq_lengths": [lengths]})
    made, stats = label_dataset(dataset, made_masker())
    assert made[0]["labels"] == [label for messages in CHATS[:3] for label in expected(messages)]
    assert stats.report.documents == 3


def test_large_lists_and_fixed_size_lists_of_int64_are_read() -> None:
    ids = [tokenized(CHATS[0])]
    for kind in (pa.large_list(pa.int64()), pa.list_(pa.int64(), len(ids[0])), pa.list_(pa.uint16())):
        table = pa.table({"input_ids": pa.array(ids, kind)})
        assert labelled(Dataset(table))[0]["labels"] == expected(CHATS[0])


# formats and columns


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas"])
def test_the_format_is_kept(kind: str) -> None:
    made = labelled(tokenized_dataset().with_format(kind))
    assert made.format["type"] == kind
    assert set(made.format["columns"]) == {"n", "input_ids", "labels"}
    agrees(made.with_format(None))


def test_a_column_subset_is_kept_and_shows_the_labels() -> None:
    dataset = tokenized_dataset(extra=["x"] * 40).with_format("numpy", columns=["input_ids", "n"])
    made = labelled(dataset)
    assert set(made[0]) == {"input_ids", "n", "labels"}
    assert isinstance(made[0]["labels"], np.ndarray)
    agrees(made)


def test_format_arguments_are_kept() -> None:
    import torch

    made = labelled(tokenized_dataset().with_format("torch", dtype=torch.int16))
    assert made.format["format_kwargs"] == {"dtype": torch.int16}
    assert made[0]["labels"].dtype == torch.int16


def test_output_all_columns_is_kept() -> None:
    dataset = tokenized_dataset(extra=["x"] * 40)
    dataset.set_format("numpy", ["input_ids"], output_all_columns=True)
    made = labelled(dataset)
    assert made.format["output_all_columns"]
    assert made[0]["extra"] == "x"


def test_other_columns_features_and_the_split_are_kept() -> None:
    kind = datasets.ClassLabel(names=["a", "b"])
    dataset = tokenized_dataset(kind=[0, 1] * 20).cast_column("kind", kind)
    dataset = Dataset(dataset._data, info=dataset.info, split=datasets.Split.TEST)
    made = labelled(dataset)
    assert made.features["kind"] == kind
    assert made.split == "test"


def test_a_transform_is_refused_by_name() -> None:
    dataset = tokenized_dataset().with_transform(lambda batch: batch)
    with pytest.raises(UnsupportedError, match="computed when they are read"):
        labelled(dataset)


# bad rows


def test_a_dataset_without_input_ids_is_refused_with_its_columns() -> None:
    with pytest.raises(DataError, match=r"no input_ids column in the train dataset \(it has text\)"):
        labelled(Dataset.from_dict({"text": ["a"]}))


def test_input_ids_that_are_no_lists_are_refused() -> None:
    with pytest.raises(DataError, match="holds string, not a list of token ids"):
        labelled(Dataset.from_dict({"input_ids": ["a"]}))


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(DataError, match="no rows in the train dataset"):
        labelled(tokenized_dataset().select([]))


def test_a_null_row_is_named_by_its_number_in_the_dataset() -> None:
    rows = [tokenized(messages) for messages in CHATS]
    with pytest.raises(DataError, match=r"In the train dataset: row 17: "):
        labelled(Dataset.from_dict({"input_ids": [*rows[:17], None, *rows[17:]]}))


def test_a_row_of_a_shuffled_dataset_is_named_by_its_number_in_the_shuffle() -> None:
    rows: list[Any] = [tokenized(messages) for messages in CHATS]
    rows[30] = None
    order = np.random.default_rng(0).permutation(40)
    at = int(np.flatnonzero(order == 30)[0])
    assert at != 30
    with pytest.raises(DataError, match=rf"row {at}: "):
        labelled(Dataset.from_dict({"input_ids": rows}).select(order))


def test_labels_of_another_length_are_named() -> None:
    labels = [tokenized(messages) for messages in CHATS]
    labels[9] = labels[9][:-1]
    with pytest.raises(DataError, match=r"row 9: there are \d+ labels for \d+ input_ids"):
        labelled(tokenized_dataset(labels=labels))


def test_lengths_that_balance_out_over_two_rows_are_not_missed() -> None:
    labels = [tokenized(messages) for messages in CHATS]
    labels[4], labels[5] = labels[4][:-1], [*labels[5], 1]
    with pytest.raises(DataError, match=r"row 4: there are"):
        labelled(tokenized_dataset(labels=labels))


def test_null_labels_are_named() -> None:
    labels: list[Any] = [tokenized(messages) for messages in CHATS]
    labels[6] = None
    with pytest.raises(DataError, match=r"row 6: there are no labels"):
        labelled(tokenized_dataset(labels=labels))
    labels[6] = [None] * len(tokenized(CHATS[6]))
    with pytest.raises(DataError, match=r"row 6: "):
        labelled(tokenized_dataset(labels=labels))


def test_an_undecidable_row_is_named_with_its_class_of_error() -> None:
    quoting = [{"role": "user", "content": f"a {ASSISTANT} b"}, {"role": "assistant", "content": "red"}]
    messages = [*CHATS[:20], quoting, *CHATS[20:]]
    rows = [tokenized(chat) for chat in messages]
    rows[20] = tokenized([{"role": "user", "content": f"b {ASSISTANT} a"}, {"role": "assistant", "content": "blue"}])
    dataset = Dataset.from_dict({"input_ids": rows, "messages": messages})
    with pytest.raises(AmbiguousRowError, match=r"In the train dataset: Row 20 "):
        labelled(dataset)
    made, stats = label_dataset(dataset, made_masker(on_ambiguous="drop"))
    assert len(made) == 40
    assert stats.report.rows_ambiguous == 1


# files


def test_a_second_run_reads_what_the_first_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = on_disk(tokenized_dataset(), tmp_path / "data").shuffle(seed=1)
    first, stats = label_dataset(dataset, made_masker())

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("masked again")

    monkeypatch.setattr(Masker, "mask", never)
    second, stats_again = label_dataset(dataset, made_masker())
    assert second._fingerprint == first._fingerprint
    assert list(second["labels"]) == list(first["labels"])
    assert stats_again.report == stats.report


def test_another_policy_marker_or_dataset_has_another_file(tmp_path: Path) -> None:
    dataset = on_disk(tokenized_dataset(), tmp_path / "data")
    keys = [
        made_masker().key,
        made_masker(policy=Policy(turns="last")).key,
        made_masker(policy=Policy(stop="never")).key,
        made_masker(on_ambiguous="drop").key,
        made_masker(instruction_part="<|im_start|>user\n", response_part=("<|im_start|>assistant\n", "### A:")).key,
    ]
    names = {fingerprint_of(data, key) for data in (dataset, dataset.select([1, 2])) for key in keys}
    assert len(names) == 10


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    on_disk(tokenized_dataset(), tmp_path / "data")
    script = """
        import sys
        from datasets import load_from_disk
        from data.test_dataset import made_masker
        from sft_mask.data.dataset import label_dataset
        made, _ = label_dataset(load_from_disk(sys.argv[1]).select(range(3, 30)).shuffle(seed=1), made_masker())
        print("name", made._fingerprint)
    """
    paths = f"import sys; sys.path[:0] = {[str(Path(__file__).parents[1]), *sys.path]!r}"
    command = [sys.executable, "-c", f"{paths}\n{textwrap.dedent(script)}", str(tmp_path / "data")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    made = labelled(load_from_disk(str(tmp_path / "data")).select(range(3, 30)).shuffle(seed=1))
    assert f"name {made._fingerprint}" in out
    assert len(list((tmp_path / "data").glob("cache-sft-mask-*.arrow"))) == 1


class Interrupted(BaseException):
    """As Ctrl-C, or a signal, in mid-map."""


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = on_disk(tokenized_dataset(), tmp_path / "data")
    before = {path.name for path in (tmp_path / "data").iterdir()}
    whole = Masker.mask

    def stops(self: Masker, *arguments: Any, **named: Any) -> Any:
        if named["first_row"] > 20:
            raise Interrupted
        return whole(self, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(sft_mask.data.dataset, "_ROWS_AT_ONCE", 8)
        patched.setattr(Masker, "mask", stops)
        with pytest.raises(Interrupted):
            labelled(dataset)
    assert {path.name for path in (tmp_path / "data").iterdir()} == before
    agrees(labelled(dataset))


def test_a_killed_run_leaves_no_file_that_is_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = on_disk(tokenized_dataset(), tmp_path / "data")
    whole = Masker.mask

    def dies(self: Masker, *arguments: Any, **named: Any) -> Any:
        if named["first_row"] > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(self, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(sft_mask.data.dataset, "_ROWS_AT_ONCE", 8)
        patched.setattr(Masker, "mask", dies)
        run = multiprocessing.get_context("fork").Process(target=labelled, args=[dataset])
        run.start()
        run.join(60)
    assert run.exitcode == -signal.SIGKILL
    assert list((tmp_path / "data").glob("*.partial"))
    assert not list((tmp_path / "data").glob("cache-sft-mask-*.json"))
    agrees(labelled(dataset))
    assert len(labelled(dataset)) == 40


@pytest.mark.parametrize("lost", ["arrow", "json"])
def test_half_a_pair_of_files_is_written_again(lost: str, tmp_path: Path) -> None:
    dataset = on_disk(tokenized_dataset(), tmp_path / "data")
    labelled(dataset)
    (path,) = (tmp_path / "data").glob(f"cache-sft-mask-*.{lost}")
    path.unlink()
    agrees(labelled(dataset))
    assert path.exists()


def test_labels_of_another_number_of_rows_are_not_taken(tmp_path: Path) -> None:
    labelled(on_disk(tokenized_dataset(), tmp_path / "data"))
    (path,) = (tmp_path / "data").glob("cache-sft-mask-*.arrow")
    assert labelfile.stored(path, 40) is not None
    assert labelfile.stored(path, 39) is None


def test_with_caching_off_nothing_is_written_beside_the_data(tmp_path: Path) -> None:
    dataset = on_disk(tokenized_dataset(), tmp_path / "data")
    datasets.disable_caching()
    try:
        made = labelled(dataset)
    finally:
        datasets.enable_caching()
    agrees(made)
    assert not list((tmp_path / "data").glob("cache-sft-mask-*"))


def test_a_folder_that_may_not_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = on_disk(tokenized_dataset(), tmp_path / "data")
    monkeypatch.setattr(sft_mask.data.dataset.os, "access", lambda *_: False)
    agrees(labelled(dataset))
    assert not list((tmp_path / "data").glob("cache-sft-mask-*"))


def test_the_labelled_dataset_can_be_pickled_for_spawned_workers(tmp_path: Path) -> None:
    made = labelled(on_disk(tokenized_dataset(), tmp_path / "data").shuffle(seed=1))
    again = pickle.loads(pickle.dumps(made))
    assert list(again["labels"]) == list(made["labels"])


def test_the_labelled_dataset_goes_on_through_map_filter_and_disk(tmp_path: Path) -> None:
    made = labelled(on_disk(tokenized_dataset(), tmp_path / "data").shuffle(seed=1))
    agrees(made.filter(lambda row: row["n"] % 2).map(lambda row: {"twice": 2 * row["n"]}))
    made.save_to_disk(str(tmp_path / "again"))
    agrees(load_from_disk(str(tmp_path / "again")))


# streams


def stream(conversations: Any = CHATS, **more: Any) -> IterableDataset:
    rows = [{"n": at, "input_ids": tokenized(chat), "messages": chat} for at, chat in enumerate(conversations)]
    return Dataset.from_list(rows).to_iterable_dataset(**more)


def generated(conversations: Any) -> IterableDataset:
    def rows() -> Any:
        for at, chat in enumerate(conversations):
            yield {"n": at, "input_ids": tokenized(chat), "messages": chat}

    return IterableDataset.from_generator(rows)


def test_a_stream_is_labelled_and_keeps_its_columns() -> None:
    made, _ = label_stream(stream(), made_masker())
    rows = list(made)
    assert len(rows) == 40
    assert set(rows[0]) == {"n", "input_ids", "messages", "labels"}
    agrees(rows)


def test_a_stream_counts_its_first_batch_now_and_each_row_once() -> None:
    conversations = chats(200, seed=8)
    made, stats = label_stream(generated(conversations), made_masker())
    assert stats.report.rows == 64
    next(iter(made))
    assert stats.report.rows == 64
    assert len(list(made)) == len(list(made)) == 200
    assert stats.report.rows == 200
    whole = label_dataset(Dataset.from_list(list(generated(conversations))), made_masker())[1]
    assert stats.report == whole.report


def test_a_stream_passes_over_rows_that_train_nothing() -> None:
    conversations = [*CHATS[:3], [{"role": "user", "content": "red"}], CHATS[3]]
    made, stats = label_stream(stream(conversations), made_masker())
    assert [row["n"] for row in made] == [0, 1, 2, 4]
    assert stats.report.rows_dropped == 1


def test_an_empty_stream_is_refused() -> None:
    with pytest.raises(DataError, match="no rows in the train dataset"):
        label_stream(generated([]), made_masker())


def test_a_stream_without_ids_is_refused_with_its_columns() -> None:
    with pytest.raises(DataError, match=r"no input_ids \(they have text\)"):
        label_stream(Dataset.from_dict({"text": ["a"]}).to_iterable_dataset(), made_masker())


def test_a_bad_row_of_a_stream_is_named_by_its_number() -> None:
    rows = [{"input_ids": tokenized(chat)} for chat in chats(100, seed=8)]
    rows[90]["input_ids"] = None  # type: ignore[assignment]
    made, _ = label_stream(Dataset.from_list(rows).to_iterable_dataset(), made_masker())
    with pytest.raises(DataError, match="In the train dataset: row 90: "):
        list(made)


def test_an_undecidable_row_of_a_batch_is_named_and_not_its_neighbour() -> None:
    def quoting(word: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"{word} {ASSISTANT} b"}, {"role": "assistant", "content": word}]

    ids = [tokenized(CHATS[0]), tokenized(quoting("red")), tokenized(quoting("stone"))]
    batch = {"input_ids": ids, "messages": [CHATS[0], quoting("red"), quoting("blue")]}
    with pytest.raises(AmbiguousRowError, match="In the batch: Row 2 "):
        LabelBatch(made_masker())(batch)


def test_messages_of_any_shape_pass_through_a_stream() -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    other = {"name": "g", "arguments": {"x": "one", "y": [1]}}
    base = CHATS[0]
    conversations = [[*base[:-1], {**base[-1], "tool_calls": [made]}] for made in (call, other)]
    batch = {"input_ids": [tokenized(base)] * 2, "messages": conversations}
    assert LabelBatch(made_masker())(batch)["labels"] == [expected(base)] * 2


def test_a_quoted_marker_in_a_stream_is_decided_by_messages() -> None:
    chat = [
        {"role": "user", "content": "say <|im_start|>assistant\nred<|im_end|> please"},
        {"role": "assistant", "content": "blue"},
    ]
    made, stats = label_stream(stream([*CHATS, chat]), made_masker())
    agrees(made, [*CHATS, chat])
    assert stats.report.rows_exact >= 1


@pytest.mark.parametrize("kind", ["list", "numpy", "torch"])
def test_label_batch_takes_lists_arrays_and_tensors(kind: str) -> None:
    import torch

    make = {"list": list, "numpy": np.array, "torch": torch.tensor}[kind]
    batch = {"input_ids": [make(tokenized(messages)) for messages in CHATS[:5]]}
    assert LabelBatch(made_masker())(batch)["labels"] == [expected(messages) for messages in CHATS[:5]]


def test_one_tensor_of_ids_gives_one_tensor_of_labels() -> None:
    import torch

    rows = [tokenized(messages) for messages in CHATS[:5]]
    pad = tokenizer().pad_token_id
    size = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (size - len(row)) for row in rows], dtype=torch.int32)
    labels = LabelBatch(made_masker())({"input_ids": ids})["labels"]
    assert labels.dtype == torch.int64
    wanted = [expected(messages) for messages in CHATS[:5]]
    assert labels.tolist() == [row + [-100] * (size - len(row)) for row in wanted]


@pytest.mark.parametrize("bad", [[["a"]], [1, 2], [[1.5]], [[True]], [None]])
def test_label_batch_refuses_rows_that_are_no_ids(bad: Any) -> None:
    with pytest.raises(DataError, match="input_ids must hold one list of integers a row"):
        LabelBatch(made_masker())({"input_ids": bad})


def test_a_labelled_stream_can_be_pickled_for_spawned_workers() -> None:
    made, _ = label_stream(stream(), made_masker())
    again = pickle.loads(pickle.dumps(made))
    assert [row["labels"] for row in again] == [row["labels"] for row in made]


def test_cleanup_cache_files_finds_the_label_file(tmp_path: Path) -> None:
    dataset = on_disk(tokenized_dataset(), tmp_path / "data")
    labelled(dataset)
    assert dataset.cleanup_cache_files() == 1


def test_label_batch_of_no_rows_gives_no_rows() -> None:
    assert LabelBatch(made_masker())({"input_ids": []}) == {"labels": []}


# mask_dataset


def test_mask_dataset_tokenizes_messages_and_labels_them() -> None:
    made, report = mask_dataset(messages_dataset(20, seed=3), tokenizer(), return_report=True)
    agrees(made)
    assert made.column_names == ["messages", "n", "input_ids", "labels"]
    assert report.splits["train"].rows == 20
    assert report.markers.detected


def test_mask_dataset_masks_a_dict_split_by_split() -> None:
    both = datasets.DatasetDict(train=messages_dataset(9, seed=3), test=messages_dataset(4, seed=3))
    made, report = mask_dataset(both, tokenizer(), return_report=True)
    assert isinstance(made, datasets.DatasetDict)
    assert list(report.splits) == ["train", "test"]
    agrees(made["train"])
    agrees(made["test"])


def test_mask_dataset_masks_streams() -> None:
    agrees(mask_dataset(messages_dataset(20, seed=3).to_iterable_dataset(), tokenizer()))


def test_mask_dataset_says_what_it_needs() -> None:
    with pytest.raises(DataError, match=r"no input_ids, messages, .* \(it has a\)"):
        mask_dataset(Dataset.from_dict({"a": [1]}), tokenizer())
    with pytest.raises(DataError, match="no rows in the train dataset"):
        mask_dataset(messages_dataset(3).select([]), tokenizer())


def test_mask_dataset_names_the_row_that_its_chat_template_refuses() -> None:
    rows = [{"messages": messages} for messages in CHATS[:4]]
    rows[2] = {"messages": [{"role": "user", "content": "bad"}]}
    source = "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    with pytest.raises(DataError, match=r"Row 2: The chat template refuses a conversation of 1 messages \(user\)"):
        mask_dataset(Dataset.from_list(rows), tokenizer(), chat_template=source)


def test_mask_dataset_is_cached_under_the_same_name(tmp_path: Path) -> None:
    dataset = on_disk(messages_dataset(20, seed=3), tmp_path / "data")
    assert mask_dataset(dataset, tokenizer())._fingerprint == mask_dataset(dataset, tokenizer())._fingerprint


def test_rows_of_numbers_that_are_no_ids_and_no_answer_are_refused_by_name() -> None:
    """Such a row cannot be shown either."""
    rows = pa.array([[tokenized(chats(1)[0])[0], 2**63 + 1]], pa.list_(pa.uint64()))
    with pytest.raises(SftMaskError):
        mask_dataset(Dataset(pa.table({"input_ids": rows})), tokenizer(), USER, ASSISTANT)


def masker_settings(
    using: Any, chat_template: str | None = None, instruction: str | None = None, response: str | None = None
) -> Masker:
    return build_masker(read_tokenizer(using, chat_template), [], MaskSettings(instruction, response))


def dataset_of(conversations: list[Any], **columns: Any) -> Dataset:
    lists = {"input_ids": [tokenized(one) for one in conversations], "n": list(range(len(conversations)))}
    return Dataset.from_dict({**lists, **columns})


def test_rows_without_an_answer_are_dropped_from_the_middle_of_a_shuffle() -> None:
    silent = [{"role": "user", "content": "red"}]
    conversations = [CHATS[0], silent, CHATS[1], CHATS[2], silent, CHATS[3]]
    shuffled = dataset_of(conversations).select([4, 0, 3, 1, 5, 2])
    made, _ = label_dataset(shuffled, masker_settings(tokenizer()))
    assert made["n"] == [0, 3, 5, 2]
    assert list(made["labels"]) == [expected(conversations[at]) for at in (0, 3, 5, 2)]


def test_two_parts_of_one_file_have_labels_of_their_own(tmp_path: Path) -> None:
    dataset_of(CHATS).save_to_disk(str(tmp_path / "data"))
    whole = load_from_disk(str(tmp_path / "data"))
    for part in ([0, 1], [2, 3]):
        made, _ = label_dataset(whole.select(part[::-1]), masker_settings(tokenizer()))
        assert list(made["labels"]) == [expected(CHATS[at]) for at in part[::-1]]


def test_labels_that_are_too_many_are_counted_in_the_error() -> None:
    labels = [tokenized(one) for one in CHATS]
    labels[7] = [*labels[7], 1]
    size = len(tokenized(CHATS[7]))
    with pytest.raises(DataError, match=rf"row 7: there are {size + 1} labels for {size} input_ids"):
        label_dataset(dataset_of(CHATS, labels=labels), masker_settings(tokenizer()))


def test_the_name_of_a_label_file_knows_the_template_and_the_tokens() -> None:
    data, plain = dataset_of(CHATS), prepared(CHATML)[0]
    other = byte_level([" the", "\n\n", "er", "京"], ["<|im_start|>", "<|im_end|>", "<s>", "</s>"])
    other.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    assert len(other) == len(plain)
    keys = [
        masker_settings(plain),
        masker_settings(plain, "{# for the same rows #}" + CHATML),
        masker_settings(other, CHATML),
    ]
    names = [fingerprint_of(data, masker.key) for masker in keys]
    assert len(set(names)) == len(names)
    assert fingerprint_of(data, masker_settings(prepared(CHATML)[0]).key) == names[0]


def test_the_name_of_a_label_file_knows_the_padding() -> None:
    names = set()
    for pad in ("<|pad|>", "<|im_end|>"):
        made = byte_level()
        made.pad_token = pad
        names.add(fingerprint_of(dataset_of(CHATS), masker_settings(made, None, "User: ", "Model: ").key))
    assert len(names) == 2
