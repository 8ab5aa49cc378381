"""A tracker that keeps what it is given, in place of the trainer's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sft_mask.tracking.trackers import Table, Tracker


class KeptTables(Tracker):
    """``run`` is a list of ``(what, name, content, step)``."""

    def settings(self, values: Mapping[str, object], numbers: Mapping[str, float], text: str) -> None:
        self.run.append(("settings", text, {**values, **numbers}, None))

    def table(self, name: str, rows: Table, page: str, step: int) -> None:
        self.run.append(("table", name, list(rows), step))

    def tables(self, name: str) -> list[tuple[int, list[dict[str, Any]]]]:
        """(step, rows) of each table of a name."""
        return [(step, rows) for what, named, rows, step in self.run if (what, named) == ("table", name)]

    @property
    def all_settings(self) -> list[dict[str, Any]]:
        return [values for what, _, values, _ in self.run if what == "settings"]


def keep_tables(monkeypatch: pytest.MonkeyPatch) -> KeptTables:
    """Every trainer reports to it, on its main process."""
    kept = KeptTables([])

    def trackers_of(trainer: Any) -> list[Tracker]:
        return [kept] if trainer.is_world_process_zero() else []

    for module in ("log_mask", "sample_answers"):
        monkeypatch.setattr(f"sft_mask.tracking.{module}.trackers_of", trackers_of)
    return kept
