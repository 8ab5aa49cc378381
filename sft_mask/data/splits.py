"""The splits of one call, masked alike: a ``Dataset`` at once, a stream while it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sft_mask._compat import main_process_first
from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.core.packing import RowCutting
from sft_mask.data.accounting.stats import SplitStats
from sft_mask.data.dataset import label_dataset
from sft_mask.data.faults.roles import without_answers, without_roles
from sft_mask.data.masker import Masker
from sft_mask.data.prelabelled import is_masked, is_weighted, keep_labels
from sft_mask.data.read.formats import column_names, sample_rows
from sft_mask.data.setup import marker_summary
from sft_mask.data.stream import label_stream
from sft_mask.errors import DataError, MarkerError, NothingToTrainError
from sft_mask.report import MaskReport, SplitReport, spelled_losses

_SAMPLED_ROWS = 64


@dataclass(slots=True)
class SplitMasker:
    """Masks the splits of one call alike, and knows whether their labels carry weights.

    Attributes:
        masker: decides labels; or the error that kept it from being built, if no split has needed it yet.
        max_length: where the trainer truncated the rows, for errors.
        cutting: how the trainer cut the train rows.
        eval_cutting: how it cut the others.
        weighted: whether labels of any split carry weights.
    """

    masker: Masker | MarkerError | DataError
    max_length: int | None = None
    cutting: RowCutting | None = None
    eval_cutting: RowCutting | None = None
    weighted: bool = False

    def report(self, stats: Mapping[str, SplitStats]) -> MaskReport:
        """What the splits train, as far as they have been read."""
        reports = {name: counts.report for name, counts in stats.items()}
        if not isinstance(self.masker, Masker):
            return MaskReport(reports)
        return MaskReport(reports, marker_summary(self.masker), stops_expected=self.masker.policy.every_turn_stops)

    def mask(self, split: object, name: str) -> tuple[object, SplitStats]:
        """Masks a split that was there at the call; labels that :func:`mask_dataset` made stay as they are."""
        cutting = self.cutting if name == "train" else self.eval_cutting
        if is_masked(split):
            is_truncated = cutting is None or cutting.kind == "tail"  # packing that cuts rows loses nothing of them
            return self._keep(split, name, keep_all_rows=False, max_length=self.max_length if is_truncated else None)
        return self.label(split, name, cutting)

    def mask_later(self, split: object, name: str, *, keep_all_rows: bool) -> tuple[object, SplitStats]:
        """Masks a dataset that ``evaluate`` or ``predict`` was given later.

        With ``keep_all_rows`` (``predict``) nothing was packed or truncated, and row ``i`` stays row ``i``.
        """
        if is_masked(split) or is_weighted(split):
            return self._keep(split, name, keep_all_rows=keep_all_rows)
        return self.label(split, name, None if keep_all_rows else self.eval_cutting, keep_all_rows=keep_all_rows)

    def _keep(
        self, split: Any, name: str, *, keep_all_rows: bool, max_length: int | None = None
    ) -> tuple[object, SplitStats]:
        kept, stats, weighted = keep_labels(split, keep_all_rows=keep_all_rows, max_length=max_length)
        if not stats.report.trained_tokens:
            raise NothingToTrainError(
                f"All {len(split)} rows of the {name} dataset, which mask_dataset made, have nothing left to train: "
                "truncation removed the answers. Raise max_length, or use truncation_mode='keep_end'."
            )
        self.weighted |= weighted
        return kept, stats

    def label(
        self,
        split: object,
        name: str,
        cutting: RowCutting | None = None,
        *,
        keep_all_rows: bool = False,
        source: object = None,
        expand: bool = False,
    ) -> tuple[object, SplitStats]:
        """Labels a split, whether it came masked or not.

        Args:
            split: has ``input_ids``.
            name: of the split.
            cutting: how a trainer cut its rows.
            keep_all_rows: keep rows that train nothing too.
            source: the dataset that it was made from, where that is another one: errors name its columns.
            expand: expand the conversations of a stream; those of a dataset were expanded before.

        Raises:
            NothingToTrainError: no row of the split (or of the first batch of a stream) would train anything.
        """
        if not isinstance(self.masker, Masker):
            raise self.masker
        masker = self.masker.for_rows_cut(cutting)
        self.weighted |= masker.carries_weights(column_names(split))
        if hasattr(split, "__len__"):
            with main_process_first():  # the other processes of a node read what it wrote
                labelled, stats = label_dataset(split, masker, name=name, keep_all_rows=keep_all_rows)
        else:
            labelled, stats = label_stream(split, masker, name, keep_all_rows=keep_all_rows, expand=expand)
        if not stats.report.trained_tokens:
            raise _nothing(split, name, stats.report, masker, self.max_length, split if source is None else source)
        return labelled, stats


def _nothing(
    dataset: object, name: str, report: SplitReport, masker: Masker, max_length: int | None, source: object
) -> NothingToTrainError:
    rows = sample_rows(dataset, _SAMPLED_ROWS)
    first = rows[0] if rows else np.zeros(0, np.int64)
    full = sum(len(row) >= max_length for row in rows) if max_length else 0
    text = masker.finder.vocabulary.text(first[:120].tolist())[:400]
    count = f"{report.rows_seen} row{'' if report.rows_seen == 1 else 's'}"
    of = f"All {count}" if hasattr(dataset, "__len__") else f"The first {count}"
    seen = f"{of} of the {name} dataset would be masked completely: nothing would be trained."
    wanted = {role for role, weight in masker.policy.role_weights.items() if weight}
    found = without_answers(source, f"the {name} dataset")
    if found is None and not wanted & ASSISTANT_ROLES:
        found = without_roles(source, f"the {name} dataset", wanted)
    if found is not None:
        return NothingToTrainError(f"{seen} {found}")
    if full * 2 > len(rows):
        why = (
            f"{full} of {len(rows)} rows looked at are {max_length} tokens long, the trainer's max_length: truncation "
            "removed the answers. Raise max_length, shorten the prompts, or use truncation_mode='keep_end'."
        )
    elif report.rows_ambiguous * 2 > report.rows_seen:
        why = (
            f"{report.rows_ambiguous} of them are ambiguous, and on_ambiguous={masker.on_ambiguous!r} leaves them out. "
            "Call again with on_ambiguous='error' to read why."
        )
        if report.not_rendered:
            why += f" The chat template leaves out words: not rendered: {spelled_losses(report)}."
    else:
        why = (
            "No row holds an answer that is not masked already (labels that were IGNORE_INDEX stay so). Compare the "
            f"markers {', '.join(map(repr, masker.markers.response))} with the first row, and with its labels."
        )
    return NothingToTrainError(f"{seen} {why} The first row begins\n    {text!r}\nwith ids {first[:24].tolist()}.")
