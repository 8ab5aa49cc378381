"""A golden snapshot: which tokens of some rows are trained, in a small file to commit and to check after an upgrade.

One JSON object a line. The first tells how the snapshot was made; each further one is a row, as runs of tokens that
count the same: ``[weight, [ids], [texts]]``. So a change of the mask is a readable change of the file, and a check can
show the old tokens beside the new ones although the tokenizer that made them is gone.
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
from sft_mask.errors import DataError, MaskChangedError
from sft_mask.preview.diff import MaskDiff, diff_rows
from sft_mask.preview.rows import PreviewRow, Run, Segment
from sft_mask.preview.source import PreviewRows, preview_rows

_FORMAT = 1
_ROWS = 32
_LIBRARIES = ("transformers", "tokenizers")
_LINES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Settings:
    """What a mask is made with, beside its data and its tokenizer; kept in the snapshot and used again by a check."""

    instruction_part: Any = None
    response_part: Any = None
    policy: Policy | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for ``json.dumps``."""
        return {
            "instruction_part": self.instruction_part,
            "response_part": self.response_part,
            "policy": asdict(self.policy) if self.policy is not None else None,
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Settings:
        """What :meth:`to_dict` gave."""
        policy = stored.get("policy")
        if policy is not None:
            regions = tuple(Region(**region) for region in policy.get("regions", ()))
            policy = Policy(**{**policy, "regions": regions})
        return cls(stored.get("instruction_part"), stored.get("response_part"), policy)


@dataclass(frozen=True, slots=True)
class SnapshotCheck:
    """How the mask of today compares with a snapshot.

    Attributes:
        diff: on the left the snapshot, on the right the mask of today.
        notes: what else is not as it was (versions of libraries).
    """

    diff: MaskDiff
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether every row is as it was."""
        return not self.diff.unlike

    def __str__(self) -> str:
        """The verdict, and the token diff of the first rows that changed."""
        if self.is_equal:
            return f"The mask is as in the snapshot, in all {self.diff.rows:,} rows."
        lines = [f"The mask is not as in the snapshot: {self.diff}"]
        for row in self.diff.shown:
            lines.extend([f"{row.left.name}:", *(f"  {line}" for line in row.lines()[:_LINES_SHOWN])])
        return "\n".join([*lines, *self.notes])


def write_snapshot(
    path: str | Path,
    data: Any,
    tokenizer: Any = None,
    instruction_part: object = None,
    response_part: object = None,
    *,
    rows: int = _ROWS,
    split: str | None = None,
    policy: Policy | None = None,
    chat_template: str | None = None,
) -> int:
    """Writes a snapshot of the mask of ``rows`` rows, spread evenly over the data, and returns how many they are.

    Args:
        path: the file to write; small enough to commit (about 15 bytes a token).
        data: as for :func:`sft_mask.preview.preview_rows`, as are the other arguments.
        rows: how many.

    Raises:
        DataError: the folder of ``path`` is not there, or ``rows`` is not positive.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError(f"{path} cannot be written: there is no folder {path.parent}. Make it, or choose another.")
    if rows < 1:
        raise DataError(f"rows={rows}: a snapshot needs at least one row.")
    settings = Settings(instruction_part, response_part, policy)
    masked = preview_rows(
        data, tokenizer, instruction_part, response_part, split=split, policy=policy, chat_template=chat_template
    )
    numbers = np.unique(np.linspace(0, len(masked) - 1, min(rows, len(masked))).astype(np.int64)).tolist()
    head = {"format": _FORMAT, "libraries": _versions(), "split": split, "settings": settings.to_dict()}
    lines = [head, *(_stored(number, row) for number, row in zip(numbers, masked.pick(numbers), strict=True))]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_bytes(text.encode("utf-8", "backslashreplace"))  # half a character becomes an escape that JSON knows
    return len(numbers)


def check_snapshot(
    path: str | Path, data: Any, tokenizer: Any = None, *, chat_template: str | None = None
) -> SnapshotCheck:
    """Masks the rows of a snapshot again, with the settings it was written with, and compares token by token.

    Raises:
        DataError: the file is no snapshot, or the data has fewer rows than it had.
    """
    head, stored = read_snapshot(path)
    settings = Settings.from_dict(head["settings"])
    masked = preview_rows(
        data,
        tokenizer,
        settings.instruction_part,
        settings.response_part,
        split=head.get("split"),
        policy=settings.policy,
        chat_template=chat_template,
    )
    return SnapshotCheck(_compared(stored, masked), tuple(_upgrades(head["libraries"])))


def verify_snapshot(path: str | Path, data: Any, tokenizer: Any = None, *, chat_template: str | None = None) -> None:
    """:func:`check_snapshot` for a test: raises where the mask is not as it was.

    Raises:
        MaskChangedError: with the token diff.
    """
    found = check_snapshot(path, data, tokenizer, chat_template=chat_template)
    if not found.is_equal:
        raise MaskChangedError(f"{path}: {found}\nIf the change is meant, write the snapshot again and commit it.")


def read_snapshot(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The head and the rows of a snapshot.

    Raises:
        DataError: it is none, or of another format.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a snapshot: {error}") from error
    head = lines[0] if lines and isinstance(lines[0], dict) else {}
    if head.get("format") != _FORMAT:
        raise DataError(
            f"{path} is no snapshot of this version (its first line has format {head.get('format')!r}, not {_FORMAT}). "
            "Write it with write_snapshot, or `sft-mask snapshot write`."
        )
    return head, lines[1:]


def _compared(stored: Sequence[Mapping[str, Any]], masked: PreviewRows) -> MaskDiff:
    numbers = [row["row"] for row in stored]
    missing = [number for number in numbers if not 0 <= number < len(masked)]
    if missing:
        raise DataError(
            f"The snapshot holds row {missing[0]}, but the data has {len(masked):,} rows: it is not the data that the "
            "snapshot was made of. Give that, or write the snapshot again."
        )
    diff = MaskDiff()
    for before, now in zip(stored, masked.pick(numbers), strict=True):
        diff.add(diff_rows(_restored(before), now, by_id=True))
    return diff


def _stored(number: int, row: PreviewRow) -> dict[str, Any]:
    keyed = groupby(range(len(row.input_ids)), key=lambda token: row.weights[token])
    runs = [_run(row, weight, list(tokens)) for weight, tokens in keyed]
    return {"row": number, "runs": runs}


def _run(row: PreviewRow, weight: float, tokens: Sequence[int]) -> list[Any]:
    texts = [row.pieces[token].decode("utf-8", "surrogateescape") for token in tokens]
    return [_number(weight), [row.input_ids[token] for token in tokens], texts]


def _number(weight: float) -> float | int:
    return int(weight) if weight == int(weight) else round(weight, 6)


def _restored(stored: Mapping[str, Any]) -> PreviewRow:
    """A row of a snapshot, as far as it can be shown without its tokenizer."""
    ids: list[int] = []
    weights: list[float] = []
    pieces: list[bytes] = []
    runs: list[Run] = []
    for weight, run_ids, texts in stored["runs"]:
        start = len(ids)
        ids.extend(run_ids)
        weights.extend([float(weight)] * len(run_ids))
        pieces.extend(text.encode("utf-8", "surrogateescape") for text in texts)
        shown = b"".join(pieces[start:]).decode(errors="replace")
        runs.append(Run(start, len(ids), float(weight), 0, (Segment(shown),)))
    labels = tuple(token if weight else IGNORE_INDEX for token, weight in zip(ids, weights, strict=True))
    return PreviewRow(
        input_ids=tuple(ids),
        labels=labels,
        weights=tuple(weights),
        pieces=tuple(pieces),
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
