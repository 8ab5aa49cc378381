"""Ids in whatever a column or a batch may hold them: the same mask, or an error with a name and the row's number."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from support.fuzzing.ids import Setting, conversation_row, random_rows, setting, trained_by_ids
from support.fuzzing.outcome import IGNORED, Outcome, Subject

Rows = list[list[Any]]

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
OUTSIDE = (-1, -5, -100, -101, 90, 120, 127, 200, 32_000, 10**6, 2**24 + 3, -(10**6), 2**31 + 9, 2**40, 2**63 + 1)
"""Ids that no vocabulary here has."""
JUNK: Rows = [[1, 2], [], [3]]


def fits(rows: Rows, dtype: str) -> bool:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return all(low <= token <= high for row in rows for token in row)


def array(rng: random.Random, rows: Rows, dtype: str) -> pa.Array:
    """A list array of one of the kinds that Arrow has, which may begin in the middle of its buffers."""
    number = getattr(pa, dtype)()
    same = len({len(row) for row in rows}) == 1 and len(rows[0]) > 0
    kind = rng.choice(
        [pa.list_(number), pa.large_list(number), *([pa.list_(number, len(rows[0]))] * 3 if same else [])]
    )
    if pa.types.is_fixed_size_list(kind):
        return pa.array(rows, kind)
    if rng.random() < 0.5:
        before, after = rng.choices(JUNK, k=rng.randint(0, 3)), rng.choices(JUNK, k=rng.randint(0, 3))
        return pa.array([*before, *rows, *after, None], kind).slice(len(before), len(rows))
    lengths = [0, *np.cumsum([len(row) for row in rows]).tolist()]
    values = pa.array([0, 0, *(token for row in rows for token in row)], number)
    made = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
    offsets = pa.array([length + 2 for length in lengths], pa.int64() if made is pa.LargeListArray else pa.int32())
    return made.from_arrays(offsets, values)


def chunked(rng: random.Random, made: pa.Array) -> pa.ChunkedArray:
    """The array in up to four chunks, some of them empty."""
    cuts = sorted(rng.randint(0, len(made)) for _ in range(rng.randint(0, 3)))
    bounds = [0, *cuts, len(made)]
    return pa.chunked_array([made.slice(low, high - low) for low, high in pairwise(bounds)])


def ids_rows(rng: random.Random, made: Setting) -> Rows:
    """Rows, some with ids that the vocabulary does not have; sometimes all of one length."""
    rows: Rows = [conversation_row(rng, made), *random_rows(rng, made, rng.choice((0, 1, 5, 200)))]
    if rng.random() < 0.3:
        size = len(rows[0])
        rows = [(row * size)[:size] for row in rows if row]
    elif rng.random() < 0.3:
        for row in rng.choices(rows, k=3):
            row.insert(rng.randint(0, len(row)), rng.choice(OUTSIDE))
    rng.shuffle(rows)
    return rows


def wanted_of(rows: Rows, made: Setting) -> list[list[bool]]:
    return [trained_by_ids(row, made) for row in rows]


def parts_of(made: Setting) -> tuple[list[list[int]], list[list[int]]]:
    return [list(marker) for marker in made.user], [list(marker) for marker in made.model]


def small_setting(rng: random.Random) -> Setting:
    """A vocabulary that fits into every type of integer."""
    while True:
        made = setting(rng, control=False)
        if len(made.tokenizer) < 120 and max(map(len, (*made.user, *made.model))) < 20:
            return made


# columns


def columns(rng: random.Random, subject: Subject) -> Outcome:
    """A column of any type of integer, in any kind of list, in any number of chunks; with labels or without."""
    made = small_setting(rng)
    rows, outcome = ids_rows(rng, made), Outcome()
    types = [dtype for dtype in INTEGERS if fits(rows, dtype)]
    if not types:
        types, rows = list(INTEGERS), [conversation_row(rng, made)]
    table: dict[str, Any] = {"input_ids": chunked(rng, array(rng, rows, rng.choice(types)))}
    table["n"] = pa.array(range(len(rows)))
    masked_before = [[rng.random() < 0.1 for _ in row] for row in rows]
    if has_labels := rng.random() < 0.3:
        own = [[IGNORED if hidden else 7 for hidden in row] for row in masked_before]
        table["labels"] = chunked(rng, pa.array(own, pa.list_(rng.choice([pa.int8(), pa.int32(), pa.int64()]))))
    dataset = Dataset(pa.table(table))
    order = rng.choices(range(len(rows)), k=rng.randint(1, len(rows))) if rng.random() < 0.3 else None
    dataset = dataset if order is None else dataset.select(order)
    dataset = dataset.with_format(rng.choice([None, None, "numpy", "torch", "arrow"]))
    before = packed(dataset)
    try:
        masked = subject.mask(dataset, made.tokenizer, *parts_of(made)).with_format(None)
    except subject.refusal as error:
        outcome.named(error)
        return outcome
    if packed(dataset) != before:
        outcome.wrong.append(f"the dataset was changed: {dataset}")
    wanted = wanted_of(rows, made)
    if has_labels:
        wanted = [[a and not b for a, b in zip(*pair, strict=True)] for pair in zip(wanted, masked_before, strict=True)]
    kept = [at for at in (range(len(rows)) if order is None else order) if any(wanted[at])]
    if list(masked["n"]) != kept:
        outcome.wrong.append(f"{made.user} → {made.model}: kept rows {list(masked['n'])[:50]}, not {kept[:50]}")
        return outcome
    kind = f"{dataset.data.schema.field('input_ids').type}, {made.user} → {made.model}, stop {made.stop}"
    for at, labels in zip(kept, masked["labels"], strict=True):
        outcome.compare(kind, rows[at], wanted[at], labels)
    return outcome


def packed(dataset: Any) -> bytes:
    """Everything that a dataset holds."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, dataset.data.table.schema) as writer:
        writer.write_table(dataset.data.table)
    return bytes(sink.getvalue()) + str((dataset.format, dataset.features, dataset._fingerprint)).encode()


# batches


def as_numpy(rows: Rows, dtype: str) -> Any:
    return [np.array(row, dtype) for row in rows]


def as_torch(rows: Rows, dtype: str) -> Any:
    return [torch.tensor(row, dtype=getattr(torch, dtype)) for row in rows]


def as_one(make: Callable[[Rows, str], Any], stack: Callable[[Any], Any]) -> Callable[[Rows, str], Any]:
    """One rectangle of ids, where all rows are of one length; else rows by themselves."""

    def made(rows: Rows, dtype: str) -> Any:
        return stack(make(rows, dtype)) if len({len(row) for row in rows}) == 1 else make(rows, dtype)

    return made


BATCHES: dict[str, Callable[[Rows, str], Any]] = {
    "lists": lambda rows, _: rows,
    "tuples": lambda rows, _: tuple(map(tuple, rows)),
    "arrays": as_numpy,
    "tensors": as_torch,
    "one array": as_one(as_numpy, np.stack),
    "one tensor": as_one(as_torch, torch.stack),
}


def batches(rng: random.Random, subject: Subject) -> Outcome:
    """A batch of lists, tuples, arrays or tensors; labels come back in kind."""
    made = small_setting(rng)
    rows, outcome = ids_rows(rng, made), Outcome()
    types = [dtype for dtype in INTEGERS if fits(rows, dtype)] or [""]
    name = rng.choice(list(BATCHES)) if types != [""] else "lists"
    batch = BATCHES[name](rows, rng.choice(types))
    before = copy.deepcopy(batch)
    users, models = parts_of(made)
    try:
        label = subject.train(
            tokenizer=made.tokenizer, instruction_part=users, response_part=models, return_function=True
        )
        labels = label({"input_ids": batch})["labels"]
    except subject.refusal as error:
        outcome.named(error)
        return outcome
    if as_lists(before) != as_lists(batch):
        outcome.wrong.append(f"{name}: the batch was changed")
    if isinstance(batch, torch.Tensor) and not (isinstance(labels, torch.Tensor) and labels.dtype == torch.int64):
        outcome.wrong.append(f"{name}: labels are {type(labels)}")
    for row, wanted, given in zip(rows, wanted_of(rows, made), as_lists(labels), strict=True):
        outcome.compare(f"{name} {types}, {made.user} → {made.model}, stop {made.stop}", row, wanted, given)
    return outcome


def as_lists(batch: Any) -> Rows:
    return [list(map(int, row)) for row in batch]


# what must be refused


def null_row(rows: Rows, at: int) -> Any:
    return pa.array([None if index == at else row for index, row in enumerate(rows)], pa.list_(pa.int64()))


def null_id(rows: Rows, at: int) -> Any:
    return pa.array([[*row, None] if index == at else row for index, row in enumerate(rows)], pa.list_(pa.int64()))


BROKEN: dict[str, Callable[[Rows, int], Any]] = {
    "null row": null_row,
    "null id": null_id,
    "floats": lambda rows, _: pa.array([[float(token) for token in row] for row in rows], pa.list_(pa.float64())),
    "bools": lambda rows, _: pa.array([[bool(token) for token in row] for row in rows], pa.list_(pa.bool_())),
    "texts": lambda rows, _: pa.array([[str(token) for token in row] for row in rows], pa.list_(pa.string())),
    "lists of lists": lambda rows, _: pa.array([[row] for row in rows], pa.list_(pa.list_(pa.int64()))),
    "numbers": lambda rows, _: pa.array([len(row) for row in rows]),
    "nulls": lambda rows, _: pa.nulls(len(rows)),
    "lists of nulls": lambda rows, _: pa.array([[None] * len(row) for row in rows], pa.list_(pa.null())),
    "lists of nothing": lambda rows, _: pa.array([[] for _ in rows], pa.list_(pa.null())),
    "structs": lambda rows, _: pa.array([[{"id": token} for token in row] for row in rows]),
    "text": lambda rows, _: pa.array([str(row) for row in rows]),
}


def broken(rng: random.Random, subject: Subject) -> Outcome:
    """A column or a batch that holds no ids is refused by name, and a bad row by its number."""
    made = small_setting(rng)
    rows = [conversation_row(rng, made) for _ in range(rng.choice((1, 2, 30)))]
    name, at, outcome = rng.choice(list(BROKEN)), rng.randrange(len(rows)), Outcome(rows=len(rows))
    column = BROKEN[name](rows, at)
    users, models = parts_of(made)
    in_batch = rng.random() < 0.5
    try:
        if in_batch:
            label = subject.train(
                tokenizer=made.tokenizer, instruction_part=users, response_part=models, return_function=True
            )
            made_of = label({"input_ids": column.to_pylist()})
        else:
            made_of = subject.mask(
                Dataset(pa.table({"input_ids": chunked(rng, column)})), made.tokenizer, users, models
            )
    except subject.refusal as error:
        outcome.named(error)
        if name.startswith("null ") and not names_row(str(error), at, len(rows)):
            outcome.wrong.append(f"{name} {at} of {len(rows)}, batch {in_batch}: the error names no such row: {error}")
        return outcome
    if not (in_batch and name == "lists of nothing"):  # a batch may train nothing
        outcome.wrong.append(f"{name}, batch {in_batch}: not refused but {shown_labels(made_of)}")
    return outcome


def names_row(text: str, at: int, rows: int) -> bool:
    return f"row {at}:" in text.lower() or f"row {at} " in text.lower() or rows == 1


def shown_labels(made: Any) -> Sequence[Any]:
    return list(made["labels"])[:3]
