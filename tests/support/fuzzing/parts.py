"""Every part, by name."""

from __future__ import annotations

from support.fuzzing import containers, finder, ids, pieces, policies, texts
from support.fuzzing.outcome import Part

PARTS: dict[str, Part] = {
    "control-ids": ids.control_ids,
    "word-ids": ids.word_ids,
    "torn-markers": finder.torn_markers,
    "typed-markers": texts.typed_markers,
    "columns": containers.columns,
    "batches": containers.batches,
    "broken": containers.broken,
    "documents": pieces.documents,
    "truncated": pieces.truncated,
    "wrapped": pieces.wrapped,
    "bfd-split": pieces.split,
    "keep-end": pieces.ends,
    "policies": policies.weighted,
}
