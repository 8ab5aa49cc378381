"""The ids of a whole dataset: shards of rows, each written to an Arrow file of its own, by one process or several.

The shards depend on the dataset alone, and the name of a file is a fingerprint of the dataset, the tokenizer and the
chat template. So a run that was interrupted goes on with the first shard that has no file, whatever ``num_proc``.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_mask.core.arrays import Ints, offsets_of
from sft_mask.data.cache import replacing, write_stream
from sft_mask.data.dataset import beside, cache_folder, used_rows
from sft_mask.data.faults.wellformed import PAIR
from sft_mask.data.tokenize.rows import RowIds, RowTokenizer
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = "1"
"""Part of every fingerprint; changes when ids can change."""
_READ = ("messages", "conversations", *PAIR, "text", "tools", "chat_template_kwargs")
"""Columns that decide ids."""
_SHARD_BYTES, _MOST_SHARDS = 4 << 20, 256
"""Bytes of a shard's rows, and how many shards there are at most: a file each."""
_BATCH_BYTES, _BATCH_ROWS = 1 << 20, 256
"""A batch of rows that are read at once ends at whichever comes first."""
_KEPT_IN_MEMORY = 64 << 20
"""Bytes of a dataset in memory whose ids are kept in memory too; those of larger ones are kept in a temporary file."""


@dataclass(frozen=True)
class _Job:
    """What is tokenized.

    Attributes:
        dataset: with the columns that decide ids only.
        tokenizer: tokenizes rows.
        order: ``(used,)`` numbers of the dataset's rows in the order of its table; ``None`` if that is their order.
        places: ``(used,)`` the rows of the table that these are.
    """

    dataset: Any
    tokenizer: RowTokenizer
    order: Ints | None = None
    places: Ints | None = None

    @property
    def has_labels(self) -> bool:
        """Whether rows are a prompt and a completion, whose labels are made too."""
        return {*PAIR} <= {*self.dataset.column_names}

    @property
    def schema(self) -> pa.Schema:
        """Columns of the files."""
        names = ("input_ids", "labels") if self.has_labels else ("input_ids",)
        return pa.schema({name: pa.list_(pa.int32()) for name in names})

    def batches(self, first: int, last: int, step: int, advance: Callable[[int], object]) -> Iterator[pa.RecordBatch]:
        """The ids of some rows of the table; while a thread encodes a batch, the next one is rendered."""
        waiting: deque[tuple[Future[list[RowIds]], Ints | None, int]] = deque()
        with ThreadPoolExecutor(1) as thread:
            for at in range(first, last, step):
                end = min(at + step, last)
                numbers, places = self._rows_between(at, end)
                waiting.append((self._encoded(numbers, thread), places, end - at))
                while waiting and (len(waiting) > 1 or waiting[0][0].done()):
                    yield self._record(*waiting[0])
                    advance(waiting.popleft()[2])
            for encoded, places, count in waiting:
                yield self._record(encoded, places, count)
                advance(count)

    def _encoded(self, numbers: Sequence[int], thread: ThreadPoolExecutor) -> Future[list[RowIds]]:
        """The ids of some rows; an error comes with them, so that of the first row comes first."""
        rows = zip(self._read(numbers), numbers, strict=True)
        try:
            texts = [self.tokenizer.parts(row, number) for row, number in rows]
        except DataError as error:
            failed: Future[list[RowIds]] = Future()
            failed.set_exception(error)
            return failed
        encoded = thread.submit(self.tokenizer.encode, texts, numbers)
        if self.tokenizer.cuts_words:
            wait([encoded])  # it is Python that works there, and two threads of it take longer than one
        return encoded

    def _rows_between(self, first: int, last: int) -> tuple[Sequence[int], Ints | None]:
        """Numbers of the dataset's rows that lie in some rows of the table, and their places among these."""
        if self.order is None or self.places is None:
            return range(first, last), None
        low, high = np.searchsorted(self.places, [first, last])
        places, at = np.unique(self.places[low:high] - first, return_index=True)
        return self.order[low:high][at].tolist(), places

    def _read(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        if not numbers:
            return
        key = slice(numbers.start, numbers.stop) if isinstance(numbers, range) else numbers
        columns = self.dataset[key]
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))

    def _record(self, encoded: Future[list[RowIds]], places: Ints | None, count: int) -> pa.RecordBatch:
        rows = encoded.result()
        lengths = np.zeros(count, np.int64)
        lengths[slice(None) if places is None else places] = [len(row.ids) for row in rows]
        offsets = pa.array(offsets_of(lengths).astype(np.int32))
        ids = np.concatenate([np.zeros(0, np.int32), *(row.ids for row in rows)])
        columns = [pa.ListArray.from_arrays(offsets, pa.array(ids))]
        if self.has_labels:
            labels = np.concatenate([np.zeros(0, np.int32), *(row.labels() for row in rows)])
            columns.append(pa.ListArray.from_arrays(offsets, pa.array(labels)))
        return pa.record_batch(columns, schema=self.schema)


def with_ids(dataset: Dataset, tokenizer: RowTokenizer, name: str, num_proc: int | None = None) -> Dataset:
    """The dataset with a column of ``input_ids``; of prompt and completion also ``labels``.

    Nothing else is written: the new columns are put next to the old ones.

    Args:
        dataset: without a format.
        tokenizer: tokenizes rows.
        name: of the split, for the progress bar.
        num_proc: how many processes tokenize; without it this one does, and the tokenizer uses its own threads.

    Raises:
        DataError: a row is malformed, or the chat template refuses it; with its number.
        OSError: the ids could not be written.
    """
    from datasets.table import InMemoryTable, MemoryMappedTable, concat_tables

    fingerprint = _fingerprint(dataset, tokenizer)
    with _folder_for(dataset) as (folder, is_kept):
        paths = _write(dataset, tokenizer, name, num_proc, folder / f"cache-sft-mask-ids-{fingerprint}")
        kind = MemoryMappedTable if is_kept else InMemoryTable
        ids = concat_tables([kind.from_file(str(path)) for path in paths])
    return beside(dataset, ids, fingerprint)


@contextmanager
def _folder_for(dataset: Any) -> Iterator[tuple[Path, bool]]:
    """Where the files are written, and whether they stay there; those of a small dataset in memory do not."""
    from datasets.fingerprint import get_temporary_cache_files_directory

    folder = cache_folder(dataset)
    if folder is None and dataset._data.nbytes > _KEPT_IN_MEMORY:
        folder = Path(get_temporary_cache_files_directory())
    if folder is not None:
        yield folder, True
        return
    made = Path(tempfile.mkdtemp(prefix="sft-mask-"))
    try:
        yield made, False
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _fingerprint(dataset: Any, tokenizer: RowTokenizer) -> str:
    """A name for the ids of one dataset; equal on every rank and from run to run."""
    from datasets.fingerprint import Hasher

    held = tokenizer.tokenizer
    template = (tokenizer.chat_template, tokenizer.speaker.chat_template, held.special_tokens_map)
    state = (
        type(tokenizer.speaker).__qualname__,
        type(held).__qualname__,
        held.backend_tokenizer.to_str(),
        getattr(held, "split_special_tokens", False),
    )
    return str(Hasher.hash((_VERSION, dataset._fingerprint, repr(template), repr(state))))


def _write(dataset: Any, tokenizer: RowTokenizer, name: str, num_proc: int | None, stem: Path) -> list[Path]:
    """Writes the shards that have no file yet, and returns the paths of all."""
    from datasets.utils import tqdm  # disable_progress_bars() switches it off

    total = dataset._data.num_rows
    row_bytes = max(1, dataset._data.nbytes // max(1, total))
    shard = max(1, _SHARD_BYTES // row_bytes, -(-total // _MOST_SHARDS))
    step = max(1, min(_BATCH_ROWS, _BATCH_BYTES // row_bytes))
    ranges = [(first, min(first + shard, total)) for first in range(0, total, shard)]
    paths = [stem.with_name(f"{stem.name}-{at:05d}-of-{len(ranges):05d}.arrow") for at in range(len(ranges))]
    files = zip(ranges, paths, strict=True)
    missing = [(*rows, step, path) for rows, path in files if _rows_in(path) != rows[1] - rows[0]]
    if missing:
        job = _job(dataset, tokenizer)
        left = sum(last - first for first, last, _, _ in missing)
        with tqdm(total=total, initial=total - left, desc=f"Tokenizing {name}", unit=" rows") as bar:
            if (num_proc or 1) > 1 and len(missing) > 1:
                _in_processes(job, missing, min(num_proc or 1, len(missing)), bar.update)
            else:
                for one in missing:
                    _write_shard(job, *one, bar.update)
    return paths


def _rows_in(path: Path) -> int:
    """Rows of a file that was written before; ``-1`` if there is none, or if it is damaged."""
    try:
        with pa.memory_map(str(path)) as source:
            return int(pa.ipc.open_stream(source).read_all().num_rows)
    except (pa.ArrowException, OSError, ValueError):
        return -1


def _job(dataset: Any, tokenizer: RowTokenizer) -> _Job:
    read = dataset.select_columns([name for name in _READ if name in dataset.column_names])
    used = used_rows(dataset)
    if used is None:
        return _Job(read, tokenizer)
    order = np.argsort(used, kind="stable")
    return _Job(read, tokenizer, order, used[order])


def _write_shard(
    job: _Job, first: int, last: int, step: int, path: Path, advance: Callable[[int], object] = lambda _: None
) -> int:
    with replacing(path, "token ids") as partial:
        write_stream(partial, job.schema, job.batches(first, last, step, advance))
    return last - first


# processes


_own_job: list[_Job] = []
"""The job of a worker process."""


def _in_processes(
    job: _Job, shards: Sequence[tuple[int, int, int, Path]], num_proc: int, advance: Callable[[int], object]
) -> None:
    """Writes shards in several processes; of several errors it raises that of the first row."""
    with ProcessPoolExecutor(num_proc, initializer=_start_worker, initargs=(job,)) as pool:
        futures = [pool.submit(_write_own_shard, *shard) for shard in shards]
        try:
            for future in futures:
                advance(future.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(job: _Job) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _own_job.append(job)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_own_shard(first: int, last: int, step: int, path: Path) -> int:
    return _write_shard(_own_job[0], first, last, step, path)
