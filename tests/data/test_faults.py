"""Full disks, killed and interrupted processes, two of them at once, and rows that are broken far behind.

What is killed in the middle of a map is in ``test_dataset.py`` and ``test_combinations.py``.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, load_from_disk
from support import tiny
from support.marks import slow_but
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

import sft_mask.data.dataset
from sft_mask import mask_dataset, train_on_responses_only
from sft_mask.data import cache as labelfile
from sft_mask.data.masker import Masker
from sft_mask.errors import DataError

CHATS = tiny.chats(60, seed=5)
FORK = multiprocessing.get_context("fork")
"""For processes that have what this one has imported."""


def prepared(folder: Path) -> Path:
    """A dataset on disk whose rows are tokenized, so that the labels are the only thing that is written."""
    rows = {"input_ids": [tiny.tokenized(chat) for chat in CHATS], "n": list(range(len(CHATS)))}
    Dataset.from_dict(rows).save_to_disk(str(folder))
    return folder


def before_row(row: int, action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ``action`` happen in the middle of a map, before the batch that begins with ``row``."""
    whole = Masker.mask

    def acts(self: Masker, *arguments: Any, **named: Any) -> Any:
        if named["first_row"] == row:
            action()
        return whole(self, *arguments, **named)

    monkeypatch.setattr(sft_mask.data.dataset, "_ROWS_AT_ONCE", 8)
    monkeypatch.setattr(Masker, "mask", acts)


def masked(folder: Path) -> Dataset:
    return mask_dataset(load_from_disk(str(folder)), tiny.tokenizer())


def is_right(dataset: Any) -> None:
    assert len(dataset) == len(CHATS)
    assert [row["labels"] for row in dataset] == [tiny.expected(CHATS[row["n"]]) for row in dataset]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# two at once


def test_two_processes_that_mask_the_same_data_at_once_are_both_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits in the middle of its own file until the other is there too."""
    folder = prepared(tmp_path / "data")
    meeting = FORK.Barrier(2)
    fingerprints = FORK.SimpleQueue()

    def mask() -> None:
        made = masked(folder)
        is_right(made)
        fingerprints.put(made._fingerprint)

    with monkeypatch.context() as patched:
        before_row(24, lambda: meeting.wait(60), patched)
        both = [FORK.Process(target=mask) for _ in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert fingerprints.get() == fingerprints.get()
    left = [name for name in names(folder) if "sft-mask" in name]
    assert len(left) == 2, left
    assert not [name for name in left if name.endswith(".partial")]
    is_right(masked(folder))


def test_a_file_that_is_half_written_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one process is in the middle, the name of the finished file is not there for another to find."""
    folder = prepared(tmp_path / "data")
    found: list[list[str]] = []
    whole = Masker.mask

    def looks(self: Masker, *arguments: Any, **named: Any) -> Any:
        found.append([path.suffix for path in folder.glob("cache-sft-mask-*")])
        return whole(self, *arguments, **named)

    monkeypatch.setattr(sft_mask.data.dataset, "_ROWS_AT_ONCE", 8)
    monkeypatch.setattr(Masker, "mask", looks)
    is_right(masked(folder))
    assert len(found) > 3
    assert {suffix for suffixes in found for suffix in suffixes} == {".partial"}


# disks


def test_a_disk_that_fills_up_in_the_middle_leaves_what_was_there(tmp_path: Path) -> None:
    """A file may grow to 12 kB in the other process; writing on is an error of the system, as on a full disk."""
    folder = prepared(tmp_path / "data")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def mask() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
        with pytest.raises(OSError, match="File too large") as caught:
            masked(folder)
        assert caught.value.errno == errno.EFBIG

    process = FORK.Process(target=mask)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    is_right(masked(folder))


@pytest.mark.parametrize("step", ["labels", "sums", "name"])
def test_a_full_disk_at_any_step_leaves_nothing_that_looks_finished(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared(tmp_path / "data")
    before = names(folder)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        where = {"labels": (labelfile.pa.ipc, "new_stream"), "sums": (Path, "write_text"), "name": (Path, "replace")}
        patched.setattr(*where[step], full)
        with pytest.raises(OSError, match="No space left on device"):
            masked(folder)
    assert names(folder) == before
    is_right(masked(folder))


def test_a_full_disk_leaves_a_trainer_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path / "data")
    trainer = tiny.build(tmp_path, load_from_disk(str(folder)), dataset_kwargs={"skip_prepare_dataset": True})
    before = (trainer.train_dataset, trainer.data_collator, type(trainer))

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            train_on_responses_only(trainer)
    assert (trainer.train_dataset, trainer.data_collator, type(trainer)) == before
    is_right(train_on_responses_only(trainer).train_dataset)


def test_a_folder_that_only_looks_writable_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only file system, for root too: ``os.access`` may say yes."""
    folder = prepared(tmp_path / "data")

    def refused(path: str, *_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    with monkeypatch.context() as patched:
        patched.setattr(labelfile.pa, "OSFile", refused)
        with pytest.raises(OSError, match=r"Read-only file system, .* call again: '.*cache-sft-mask-"):
            masked(folder)
    is_right(masked(folder))


# interrupts


def test_ctrl_c_in_the_middle_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path / "data")
    before = names(folder)
    with monkeypatch.context() as patched:
        before_row(24, lambda: signal.raise_signal(signal.SIGINT), patched)
        with pytest.raises(KeyboardInterrupt):
            masked(folder)
    assert names(folder) == before
    is_right(masked(folder))


# worker processes of datasets.map


class DiesInAWorker:
    """Our batch function, in a worker that the system kills (out of memory, say)."""

    def __init__(self, label: Any, parent: int) -> None:
        self.label, self.parent = label, parent

    def __call__(self, batch: dict[str, Any]) -> Any:
        if os.getpid() != self.parent and 40 in batch["n"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.label(batch)


def test_a_killed_worker_of_a_map_is_an_error_and_leaves_no_finished_file(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "data")
    before = names(folder)
    label = train_on_responses_only(tokenizer=tiny.tokenizer(), return_function=True)
    dataset = load_from_disk(str(folder))
    with pytest.raises(RuntimeError, match="subprocess"):
        dataset.map(DiesInAWorker(label, os.getpid()), batched=True, batch_size=10, num_proc=2)
    assert [name for name in names(folder) if name not in before and name.endswith(".arrow")] in (
        [],
        [name for name in names(folder) if "_00000_of_" in name],  # the worker that lived; datasets wants all of them
    )
    is_right(load_from_disk(str(folder)).map(label, batched=True, batch_size=10, num_proc=2))


@pytest.mark.parametrize("processes", slow_but([1, 2], [1, 2, 64]))
def test_any_number_of_processes_gives_the_same_labels(processes: int, tmp_path: Path) -> None:
    label = train_on_responses_only(tokenizer=tiny.tokenizer(), return_function=True)
    dataset = load_from_disk(str(prepared(tmp_path / "data")))
    is_right(dataset.map(label, batched=True, batch_size=7, num_proc=processes))


# rows


def test_a_broken_row_behind_a_million_good_ones_is_named() -> None:
    row = tiny.tokenized([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    good = 1_000_000
    values = pa.array(np.concatenate([np.tile(np.array(row, np.int32), good)]))
    offsets = np.append(np.arange(good + 1) * len(row), good * len(row)).astype(np.int32)
    valid = np.append(np.zeros(good, bool), True)
    rows = pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(valid))
    with pytest.raises(DataError, match=r"In the train dataset: row 1000000: "):
        mask_dataset(Dataset(pa.table({"input_ids": rows})), tiny.tokenizer())


# another tokenizer under the same data


def copied(folder: Path) -> PreTrainedTokenizerFast:
    tiny.tokenizer().save_pretrained(folder)
    made = PreTrainedTokenizerFast.from_pretrained(folder)
    made.chat_template = tiny.TEMPLATE
    return made


def with_added_token(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens([AddedToken("river", normalized=False)])


def with_another_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = tiny.TEMPLATE.replace("<|im_end|>\n", "<|im_end|>\n\n")


def with_another_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    import json

    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    table = state["model"]["vocab"]
    table["Q"], table["Z"] = table["Z"], table["Q"]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


CHANGES = [with_added_token, with_another_template, with_another_vocabulary]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_labels_of_another_tokenizer_are_not_used_again(change: Any, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "data")

    def files(tokenizer: PreTrainedTokenizerFast) -> int:
        mask_dataset(load_from_disk(str(folder)), tokenizer)
        return len(list(folder.glob("cache-sft-mask-*.arrow")))

    assert files(copied(tmp_path / "one")) == 1
    assert files(copied(tmp_path / "two")) == 1, "an equal tokenizer finds the labels"
    changed = copied(tmp_path / "three")
    change(changed)
    assert files(changed) == 2


# label files of somebody else


DAMAGE = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "other bytes": lambda data: b"\x80\x04cos\nsystem\n(S'id'\ntR." * 50,
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("suffix", [".arrow", ".json"])
def test_a_label_file_with_wrong_bytes_is_never_taken_for_labels(suffix: str, kind: str, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "data")
    masked(folder)
    (file,) = folder.glob(f"cache-sft-mask-*{suffix}")
    file.write_bytes(DAMAGE[kind](file.read_bytes()))
    is_right(masked(folder))
