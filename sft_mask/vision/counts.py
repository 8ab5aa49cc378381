"""Counts of collated rows that survive worker processes: a block of shared memory, a line for each worker."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sft_mask.data.accounting.totals import FIELD_NAMES
from sft_mask.errors import extra
from sft_mask.report import SplitReport

if TYPE_CHECKING:
    from torch import Tensor

_MOST_WORKERS = 256
_REASONS = (
    "without an answer",
    "without an answer that the policy trains",
    "with answers that were masked before",
    "ambiguous, masked",
)
_BY_NAME = {
    "dropped_reasons": _REASONS,
    **dict.fromkeys(("fields", "fields_trained", "fields_cut", "not_rendered"), FIELD_NAMES),
}
"""What a report counts by name, and the names."""
_COUNTS = tuple(each.name for each in fields(SplitReport) if each.type == "int")
_LINE = len(_COUNTS) + sum(map(len, _BY_NAME.values()))


class CollatedCounts:
    """What was collated so far, in this process and in its workers.

    A worker that is forked or spawned writes into the same memory, each into a line of its own, so none waits.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def add(self, report: SplitReport, tokens: int) -> None:
        """Adds the counts of a batch; ``tokens`` counts those of masked rows too, since they stay in the batch."""
        with extra("train", "A collator"):
            from torch.utils.data import get_worker_info
        worker = get_worker_info()
        line = self.shared()[0 if worker is None else 1 + worker.id % (_MOST_WORKERS - 1)]
        added = [tokens if name == "tokens" else getattr(report, name) for name in _COUNTS]
        named = [getattr(report, field).get(name, 0) for field, names in _BY_NAME.items() for name in names]
        line += _tensor([*added, *named])

    def shared(self) -> Any:
        """``(workers, counts)`` the memory; made before the first worker starts."""
        if self._memory is None:
            self._memory = _tensor([[0] * _LINE] * _MOST_WORKERS).share_memory_()
        return self._memory

    def report(self) -> SplitReport:
        """The sum of all lines."""
        if self._memory is None:
            return SplitReport()
        sums = self._memory.sum(0).tolist()
        named: dict[str, Any] = {}
        at = len(_COUNTS)
        for kind, names in _BY_NAME.items():
            found = zip(names, sums[at : at + len(names)], strict=True)
            named[kind] = {name: count for name, count in found if count}
            at += len(names)
        return SplitReport(**named, **dict(zip(_COUNTS, sums, strict=False)))


def _tensor(values: Any) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.int64)
