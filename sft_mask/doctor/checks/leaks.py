"""Are tokens trained that the model never has to sample?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sft_mask.doctor.symptoms as symptoms
from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Sample, SampledRow
from sft_mask.explanations.reasons import Part

_MOST_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class _Leak:
    symptom: str
    tokens: str


_LEAKS = {
    "user": _Leak(symptoms.ECHOES, "of the user"),
    "system": _Leak(symptoms.SYSTEM, "of system prompts"),
    "developer": _Leak(symptoms.SYSTEM, "of system prompts"),
    "tool": _Leak(symptoms.IMITATES, "of tool results"),
    "header": _Leak(symptoms.POOR, "of headers, which the generation prompt already contains at inference"),
    "prefilled": _Leak(
        symptoms.POOR, "that the template prefills (an empty reasoning block, a tag), which the model never samples"
    ),
    "media": _Leak(symptoms.POOR, "of images and of their frames (the model never samples them)"),
    "after": _Leak(symptoms.POOR, "that the template writes after an end-of-turn token, which the model never samples"),
}


def check_leaks(sample: Sample) -> Iterator[Finding]:
    """Finds trained tokens of users, system prompts, tools, headers, and of the template around answers."""
    if sample.policy.prompt_weight or sample.is_final:
        return
    counts: dict[str, int] = {}
    first: dict[str, tuple[SampledRow, Part]] = {}
    for sampled in sample.rows:
        for part in sampled.parts:
            cause = _cause(part)
            leaked = int((sampled.trained & sampled.stored)[part.start : part.end].sum())
            if cause and leaked and not (part.kind == "other" and sample.policy.role_weights.get(part.role)):
                counts[cause] = counts.get(cause, 0) + leaked
                first.setdefault(cause, (sampled, part))
    for cause, count in counts.items():
        leak, (sampled, part) = _LEAKS[cause], first[cause]
        text = sample.vocabulary.text(sampled.row.ids[part.start : part.end].tolist())[:_MOST_CHARACTERS]
        place = f"row {sampled.row.number}, tokens {part.start} to {part.end - 1}: {text!r}"
        yield Finding(leak.symptom, f"{count} tokens {leak.tokens} are trained.", sample.cure, sample.name, place)


def _cause(part: Part) -> str | None:
    """The leak that a trained token of this part is; ``None`` if it is not one."""
    if part.kind in ("answer", "eot", "padding"):
        return None
    if part.kind != "other":
        return part.kind
    if not part.role:
        return None  # before the first header of a row that begins mid-conversation, the speaker is unknown
    return part.role if part.role in _LEAKS else "header" if part.role in ASSISTANT_ROLES else "user"
