"""What is wrong with labels, by who says the tokens they train; and with what they leave out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

import sft_mask.doctor.findings as symptom
from sft_mask.constants import ASSISTANT_ROLES, IGNORE_INDEX
from sft_mask.core.policy import Policy
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Sample, Seen
from sft_mask.explanations.reasons import Part

_FEW = 0.5
"""Below this share of the answers' tokens the mask is taken for wrong, and not for somebody's choice."""
_MANY_CUT = 0.2
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class _Leak:
    symptom: str
    who: str
    cure: str


_RESPONSES = "Call train_on_responses_only(trainer) between building the trainer and .train()."
_LEAKS = {
    "user": _Leak(symptom.ECHOES, "of the user", _RESPONSES),
    "system": _Leak(symptom.SYSTEM, "of system prompts", _RESPONSES),
    "developer": _Leak(symptom.SYSTEM, "of system prompts", _RESPONSES),
    "tool": _Leak(symptom.IMITATES, "of tool results", _RESPONSES),
    "header": _Leak(
        symptom.POOR,
        "of headers, which the generation prompt holds at inference",
        "Give the whole header as response_part, with its newline, or leave both markers out.",
    ),
    "prefilled": _Leak(
        symptom.POOR,
        "that the template prefills (an empty reasoning block, a tag), which the model never samples",
        _RESPONSES,
    ),
    "after": _Leak(
        symptom.POOR,
        "that the template writes after a stop, which nobody samples",
        _RESPONSES,
    ),
}


def examine_labels(sample: Sample, policy: Policy, text: object) -> Iterator[Finding]:
    """Faults of the labels of a split."""
    yield from _reach(sample)
    if sample.other_ids:
        return  # where rows are not found in their batches, nothing can be said of their labels
    if sample.trained_padding:
        yield Finding(
            symptom.ENDLESS,
            f"{sample.trained_padding} padded places are trained.",
            "Use a data collator that leaves padding out of the labels, such as TRL's default.",
            sample.name,
        )
    trained = sum(int(seen.trained.sum()) for seen in sample.rows)
    if not trained:
        yield Finding(
            symptom.NOTHING,
            f"none of {sum(len(seen.trained) for seen in sample.rows)} tokens of {len(sample.rows)} rows is trained.",
            "Compare the markers with a row, and see whether max_length cut the answers off.",
            sample.name,
        )
        return
    yield from _empty_rows(sample)
    if not policy.prompt_weight:
        yield from _leaks(sample, policy, text)
    yield from _missing(sample, policy)


def _reach(sample: Sample) -> Iterator[Finding]:
    cure = "Use a data collator that keeps input_ids and labels as they are, such as TRL's default."
    if sample.other_ids:
        why = f"the data collator changes the tokens: {sample.other_ids}."
        yield Finding(symptom.BROKEN, why, cure, sample.name)
    wrong = sum(seen.wrong_ids for seen in sample.rows)
    if wrong:
        why = f"{wrong} labels are not the token they stand on: labels must not be shifted, the model does that."
        yield Finding(symptom.BROKEN, why, cure, sample.name)
    more = sum(int((seen.trained & ~seen.stored).sum()) for seen in sample.rows)
    if more:
        why = f"{more} tokens are trained in the batches that the dataset masks: the data collator rebuilds labels."
        yield Finding(symptom.BROKEN, why, cure, sample.name)


def _empty_rows(sample: Sample) -> Iterator[Finding]:
    empty = [seen.row.number for seen in sample.rows if not seen.trained.any()]
    if empty:
        yield Finding(
            symptom.NOTHING,
            f"{len(empty)} of {len(sample.rows)} rows train nothing; a batch of such rows has the loss 0.",
            "Drop them (train_on_responses_only does), or raise max_length if it cut the answers off.",
            sample.name,
            f"row {empty[0]}",
        )


def _leaks(sample: Sample, policy: Policy, text: object) -> Iterator[Finding]:
    counts: dict[str, int] = {}
    first: dict[str, tuple[Seen, Part]] = {}
    for seen in sample.rows:
        for part in seen.parts:
            cause = _cause(part)
            if cause is None or (part.kind == "other" and policy.role_weights.get(part.role)):
                continue
            leaked = int(seen.trained[part.start : part.end].sum())
            if leaked:
                counts[cause] = counts.get(cause, 0) + leaked
                first.setdefault(cause, (seen, part))
    for cause, count in counts.items():
        leak, (seen, part) = _LEAKS[cause], first[cause]
        yield Finding(
            leak.symptom, f"{count} tokens {leak.who} are trained.", leak.cure, sample.name, _place(seen, part, text)
        )


def _cause(part: Part) -> str | None:
    """Under what a trained token of this part is a leak; ``None`` where it is none."""
    if part.kind in ("answer", "stop", "padding"):
        return None
    if part.kind != "other":
        return part.kind
    if not part.role:
        return None  # before the first header of a row that begins in mid-conversation nobody can say who speaks
    return part.role if part.role in _LEAKS else "header" if part.role in ASSISTANT_ROLES else "user"


def _place(seen: Seen, part: Part, text: object) -> str:
    assert callable(text)
    shown = repr(text(seen.row.ids[part.start : part.end].tolist())[:_SHOWN])
    return f"row {seen.row.number}, tokens {part.start} to {part.end - 1}: {shown}"


def _missing(sample: Sample, policy: Policy) -> Iterator[Finding]:
    answered, answers = _counts(sample.rows, "answer")
    if answers and answered < _FEW * answers:
        yield Finding(
            symptom.DEAF,
            f"only {answered} of {answers} tokens of the model's answers are trained.",
            "See whether instruction_part and response_part are swapped, and whether labels were masked before.",
            sample.name,
        )
    stopped, stops = _counts(sample.rows, "stop")
    if stops and not stopped and policy.stop == "always":
        in_data = sum(int(seen.stored[part.start : part.end].sum()) for seen, part in _parts(sample.rows, "stop"))
        cause = (
            "the dataset trains them, so the data collator masks them: it takes the padding token, which is also the "
            "stop, for padding. "
            if in_data
            else ""
        )
        yield Finding(
            symptom.ENDLESS,
            f"none of the {stops} stops that end the model's turns is trained; {cause}"
            "the loss looks healthy all the same.",
            "Use TRL's default collator, which pads by length." if in_data else _RESPONSES,
            sample.name,
        )
    cut = [seen.row.number for seen in sample.rows if bool(seen.row.turns.cut.any())]
    if len(cut) > _MANY_CUT * len(sample.rows):
        yield Finding(
            symptom.POOR,
            f"{len(cut)} of {len(sample.rows)} rows end in the middle of an answer: the model learns half sentences.",
            "Raise max_length, or leave such answers out with Policy(cut_answers='mask').",
            sample.name,
            f"row {cut[0]}",
        )


def _parts(rows: Sequence[Seen], kind: str) -> Iterator[tuple[Seen, Part]]:
    return ((seen, part) for seen in rows for part in seen.parts if part.kind == kind)


def _counts(rows: Sequence[Seen], kind: str) -> tuple[int, int]:
    """Tokens of a kind of part that should be trained: how many are, and how many there are."""
    trained = wanted = 0
    for seen, part in _parts(rows, kind):
        inside = slice(part.start, part.end)
        should = seen.row.labels[inside] != IGNORE_INDEX
        wanted += int(should.sum())
        trained += int((seen.trained[inside] & should).sum())
    return trained, wanted


def share(sample: Sample) -> float:
    """Trained tokens of all."""
    total = sum(len(seen.trained) for seen in sample.rows)
    return sum(int(seen.trained.sum()) for seen in sample.rows) / max(total, 1)


def measure(sample: Sample) -> dict[str, float]:
    """What the loss will count."""
    stops, of = _counts(sample.rows, "stop")
    predicted = sum(int((np.asarray(batch["labels"].cpu())[..., 1:] != IGNORE_INDEX).sum()) for batch in sample.batches)
    return {
        "rows": len(sample.rows),
        "tokens": sum(len(seen.trained) for seen in sample.rows),
        "share trained": share(sample),
        "stops trained": stops,
        "stops": of,
        "tokens in the loss": predicted,
    }
