"""A golden snapshot: which tokens of some rows are trained, in a small file to commit and to check after an upgrade.

One JSON object per line. The first says how the snapshot was made; each further one is a row, as runs of tokens of the
same weight: ``[weight, [ids], [texts]]``. So a change of the mask is a readable change of the file, and a check can
show the old tokens next to the new ones although the old tokenizer is gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.policy import Policy
from sft_mask.core.regions import Region
from sft_mask.data.formats.detect import Columns
from sft_mask.data.formats.read import Roles
from sft_mask.errors import DataError, MaskChangedError
from sft_mask.preview.diff import MaskDiff, diff_rows
from sft_mask.preview.html import check_folder
from sft_mask.preview.rows import PreviewRow, Run, Segment
from sft_mask.preview.source import PreviewRows, preview_rows

_FORMAT = 1
_ROWS = 32
_LIBRARIES = ("transformers", "tokenizers")
_LINES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Settings:
    """What a mask is made with, besides data and tokenizer; kept in the snapshot and used again by a check."""

    instruction_part: object = None
    response_part: object = None
    policy: Policy | None = None
    columns: Columns | None = None
    roles: Roles | None = None

    def to_dict(self) -> dict[str, object]:
        """For ``json.dumps``."""
        return {
            "instruction_part": self.instruction_part,
            "response_part": self.response_part,
            "policy": asdict(self.policy) if self.policy is not None else None,
            **({"columns": dict(self.columns)} if self.columns else {}),
            **({"roles": {str(name): role for name, role in self.roles.items()}} if self.roles else {}),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Settings:
        """The inverse of :meth:`to_dict`."""
        policy = stored.get("policy")
        if policy is not None:
            regions = tuple(Region(**region) for region in policy.get("regions", ()))
            policy = Policy(**{**policy, "regions": regions})
        names = ("instruction_part", "response_part", "columns", "roles")
        return cls(policy=policy, **{name: stored.get(name) for name in names})


@dataclass(frozen=True, slots=True)
class SnapshotCheck:
    """How the current mask compares with a snapshot.

    Attributes:
        diff: on the left the snapshot, on the right the current mask.
        notes: what else changed (versions of libraries).
    """

    diff: MaskDiff
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether every row is unchanged."""
        return not self.diff.different

    def __str__(self) -> str:
        """The verdict, and the token diff of the first rows that changed."""
        if self.is_equal:
            return f"The mask equals the snapshot in all {self.diff.rows:,} rows."
        lines = [f"The mask differs from the snapshot: {self.diff}"]
        for row in self.diff.shown:
            lines.extend([f"{row.left.name}:", *(f"  {line}" for line in row.lines()[:_LINES_SHOWN])])
        return "\n".join([*lines, *self.notes])


def write_snapshot(
    path: str | Path,
    data: object,
    tokenizer: object = None,
    instruction_part: object = None,
    response_part: object = None,
    *,
    rows: int = _ROWS,
    split: str | None = None,
    policy: Policy | None = None,
    chat_template: str | None = None,
    columns: Columns | None = None,
    roles: Roles | None = None,
) -> int:
    """Writes a snapshot of the mask of ``rows`` rows, spread evenly over the data, and returns how many it holds.

    Args:
        path: the file to write; small enough to commit (about 15 bytes per token).
        data: as in :func:`sft_mask.preview.preview_rows`, like the other arguments.
        rows: how many rows at most.

    Raises:
        DataError: the folder of ``path`` does not exist, or ``rows`` is not positive.
    """
    path = Path(path)
    check_folder(path)
    if rows < 1:
        raise DataError(f"rows={rows}: a snapshot needs at least one row.")
    settings = Settings(instruction_part, response_part, policy, columns, roles)
    masked = _masked(data, tokenizer, settings, split, chat_template)
    numbers = np.unique(np.linspace(0, len(masked) - 1, min(rows, len(masked))).astype(np.int64)).tolist()
    head = {"format": _FORMAT, "libraries": _versions(), "split": split, "settings": settings.to_dict()}
    lines = [head, *(_stored(number, row) for number, row in zip(numbers, masked.pick(numbers), strict=True))]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_bytes(text.encode("utf-8", "backslashreplace"))  # half a character becomes a JSON escape
    return len(numbers)


def _masked(
    data: object, tokenizer: object, settings: Settings, split: str | None, chat_template: str | None
) -> PreviewRows:
    return preview_rows(
        data,
        tokenizer,
        settings.instruction_part,
        settings.response_part,
        split=split,
        policy=settings.policy,
        chat_template=chat_template,
        columns=settings.columns,
        roles=settings.roles,
    )


def check_snapshot(
    path: str | Path, data: object, tokenizer: object = None, *, chat_template: str | None = None
) -> SnapshotCheck:
    """Masks the rows of a snapshot again, with the settings it was written with, and compares token by token.

    Raises:
        DataError: the file is not a snapshot, or the data has fewer rows than it had.
    """
    head, stored = read_snapshot(path)
    settings = Settings.from_dict(head["settings"])
    masked = _masked(data, tokenizer, settings, head.get("split"), chat_template)
    return SnapshotCheck(_compared(stored, masked), tuple(_upgrades(head["libraries"])))


def verify_snapshot(
    path: str | Path, data: object, tokenizer: object = None, *, chat_template: str | None = None
) -> None:
    """:func:`check_snapshot` for a test: raises if the mask has changed.

    Raises:
        MaskChangedError: with the token diff.
    """
    found = check_snapshot(path, data, tokenizer, chat_template=chat_template)
    if not found.is_equal:
        raise MaskChangedError(f"{path}: {found}\nIf the change is intended, write the snapshot again and commit it.")


def read_snapshot(path: str | Path) -> tuple[dict[str, Any], list[dict[str, object]]]:
    """Returns the head and the rows of a snapshot.

    Raises:
        DataError: the file is not a snapshot, or has another format.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a snapshot: {error}") from error
    head = lines[0] if lines and isinstance(lines[0], dict) else {}
    if head.get("format") != _FORMAT:
        raise DataError(
            f"{path} is not a snapshot of this version: its first line has format {head.get('format')!r}, not "
            f"{_FORMAT}. Write it with write_snapshot, or `sft-mask snapshot write`."
        )
    return head, lines[1:]


def _compared(stored: Sequence[Mapping[str, Any]], masked: PreviewRows) -> MaskDiff:
    numbers = [row["row"] for row in stored]
    missing = [number for number in numbers if not 0 <= number < len(masked)]
    if missing:
        raise DataError(
            f"The snapshot has row {missing[0]}, but the data has {len(masked):,} rows: the snapshot was made from "
            "other data. Give that, or write the snapshot again."
        )
    diff = MaskDiff()
    for before, now in zip(stored, masked.pick(numbers), strict=True):
        diff.add(diff_rows(_restored(before), now, by_id=True))
    return diff


def _stored(number: int, row: PreviewRow) -> dict[str, object]:
    texts = [token_bytes.decode("utf-8", "surrogateescape") for token_bytes in row.token_bytes]
    runs = []
    for weight, group in groupby(range(len(texts)), key=row.weights.__getitem__):
        tokens = list(group)
        short = int(weight) if weight == int(weight) else round(weight, 6)
        runs.append([short, [row.input_ids[token] for token in tokens], [texts[token] for token in tokens]])
    return {"row": number, "runs": runs}


def _restored(stored: Mapping[str, Any]) -> PreviewRow:
    """A row of a snapshot, as far as it can be shown without its tokenizer."""
    ids: list[int] = []
    weights: list[float] = []
    token_bytes: list[bytes] = []
    runs: list[Run] = []
    for weight, run_ids, texts in stored["runs"]:
        start = len(ids)
        ids.extend(run_ids)
        weights.extend([float(weight)] * len(run_ids))
        token_bytes.extend(text.encode("utf-8", "surrogateescape") for text in texts)
        shown = b"".join(token_bytes[start:]).decode(errors="replace")
        runs.append(Run(start, len(ids), float(weight), 0, (Segment(shown),)))
    labels = tuple(token if weight else IGNORE_INDEX for token, weight in zip(ids, weights, strict=True))
    return PreviewRow(
        input_ids=tuple(ids),
        labels=labels,
        weights=tuple(weights),
        token_bytes=tuple(token_bytes),
        cells=(),
        runs=tuple(runs),
        notes=(),
        documents=(len(ids),),
        status=(),
        name=f"row {stored['row']}",
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


def _upgrades(before: Mapping[str, str]) -> Iterator[str]:
    for name, now in _versions().items():
        if before.get(name, now) != now:
            yield f"{name} is {now} here, and was {before[name]} when the snapshot was written."
