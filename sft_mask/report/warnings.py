"""Warnings that follow from the counts, so that a sum of reports warns about the sum and not about its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sft_mask.constants import SPAN_FLAGS
from sft_mask.report.accounting import account_warnings, loss_warnings
from sft_mask.report.counts import SplitReport, counted, percent, spelled_reasons

MANY_CUT = 0.05
"""From this share of cut rows on, cut answers are worth a warning."""
MANY_DROPPED = 0.10
"""From this share of dropped rows on, the rest may no longer be the dataset that was meant."""
SHARE_LOW, SHARE_HIGH = 0.01, 0.95
"""A trained share outside these bounds is unusual for conversations."""
SHARE_FACTOR = 3.0
"""Two splits whose trained shares differ by more than this factor were probably masked differently."""


def all_warnings(
    splits: Mapping[str, SplitReport], stops_expected: bool = True, like_assistant: Sequence[str] = ()
) -> Iterator[str]:
    """Every warning about splits, each with its split's name in front.

    Args:
        splits: counts by name.
        stops_expected: whether every trained turn should end with a trained end-of-turn token.
        like_assistant: roles that the chat template writes exactly as it writes the assistant.
    """
    for name, split in splits.items():
        for warning in (*warnings_for(split, stops_expected), *_other_roles(split, like_assistant)):
            yield f"{name}: {warning}"
    yield from warnings_between(splits)


def _other_roles(split: SplitReport, like_assistant: Sequence[str]) -> Iterator[str]:
    if like_assistant and split.rows_unchecked:
        yield (
            f"the chat template writes {' and '.join(like_assistant)} messages exactly as it writes the assistant's, "
            f"and {counted(split.rows_unchecked, 'row')} have no messages to tell them apart: such words would be "
            "trained. Keep the messages column if there are any."
        )


def warnings_for(split: SplitReport, stops_expected: bool = True) -> tuple[str, ...]:
    """Failures of one split that look healthy in a loss curve, each with a way out.

    Args:
        split: the counts.
        stops_expected: whether every trained turn should end with a trained end-of-turn token.

    >>> healthy = SplitReport(rows=9, tokens=900, trained_tokens=300, turns=9, turns_trained=9, turns_with_stop=9,
    ...     stops_trained=9)
    >>> warnings_for(healthy)
    ()
    >>> from dataclasses import replace
    >>> print(*warnings_for(replace(healthy, stops_trained=0)))
    0 of 9 end-of-turn tokens are trained: the model never learns to stop. Train the end-of-turn token.
    """
    if not split.rows_seen:
        return ()
    if not split.trained_tokens:
        nothing = (
            f"0 of {split.tokens:,} tokens are trained: the loss would be 0 or NaN. "
            "Look at a row, and compare its text with the markers."
        )
        return (nothing,)
    stops = _stops(split) if stops_expected else ()
    return (*stops, *_rows(split), *_share(split), *loss_warnings(split), *account_warnings(split))


def _stops(split: SplitReport) -> Iterator[str]:
    if split.turns_with_stop and not split.stops_trained:
        yield (
            f"0 of {split.turns_with_stop:,} end-of-turn tokens are trained: the model never learns to stop. Train the "
            "end-of-turn token."
        )
    elif 0 < split.stops_trained < min(split.turns_trained, split.turns_with_stop):
        yield (
            f"only {split.stops_trained:,} end-of-turn tokens are trained for {split.turns_trained:,} trained answers: "
            "the model may run on. Check which token ends a turn, and whether its label was masked (pad equal to eos)."
        )
    elif split.turns_without_stop > split.turns_with_stop:
        yield (
            f"{split.turns_with_stop:,} of {split.turns:,} answers are followed by an end-of-turn token: after the "
            "others the model never learns to stop. End each answer with the eos token, or use a template that does."
        )


def _rows(split: SplitReport) -> Iterator[str]:
    if split.rows_cut > MANY_CUT * split.rows:
        yield (
            f"{split.rows_cut:,} of {split.rows:,} rows ({percent(split.rows_cut / split.rows)}) end in the middle of "
            "an answer: the model learns half sentences. Raise max_length, or drop the rows that are cut."
        )
    if split.rows_at_max_length > MANY_CUT * split.rows:
        share = percent(split.rows_at_max_length / split.rows)
        yield (
            f"{split.rows_at_max_length:,} of {split.rows:,} rows ({share}) are exactly max_length tokens long, so "
            "their last answers may be cut off. Raise max_length, or drop the rows that are longer."
        )
    if split.rows_dropped > MANY_DROPPED * split.rows_seen:
        reasons = f" ({spelled_reasons(split.dropped_reasons)})" if split.dropped_reasons else ""
        yield (
            f"{split.rows_dropped:,} of {split.rows_seen:,} rows ({percent(split.rows_dropped / split.rows_seen)}) "
            f"would train nothing and were dropped{reasons}. Look at one: it may hold no answer, or max_length may "
            "have cut it off."
        )
    if split.rows_with_unread_flags:
        yield (
            f"the messages of {counted(split.rows_with_unread_flags, 'row')} carry {_flags(split)}, which this policy "
            "does not read. Choose Policy(turns='flagged') to have them decide."
        )
    if split.unchecked_reasons:
        yield (
            f"{counted(sum(split.unchecked_reasons.values()), 'row')} of {split.rows_seen:,} have messages, but were "
            f"decided by markers alone ({spelled_reasons(split.unchecked_reasons)}): a marker quoted in a message "
            "could train wrong tokens there. Give the template that wrote the rows as chat_template=, or let "
            "mask_dataset tokenize the messages."
        )
    if split.rows_ambiguous:
        yield (
            f"neither markers nor messages could decide {split.rows_ambiguous:,} of {split.rows_seen:,} rows. "
            "Look at them in the preview; keep the messages column, or mask before packing."
        )
    if split.rows_mid_turn:
        yield (
            f"{split.rows_mid_turn:,} of {split.rows_seen:,} rows begin inside a turn; what comes before their first "
            "header is masked, since nothing shows who wrote it. Mask before packing with mask_dataset."
        )


def _flags(split: SplitReport) -> str:
    names = list(split.unread_flags) or ["train or weight"]
    spans = [name for name in names if name in SPAN_FLAGS]
    more = f" ({', '.join(spans)} cannot be read: name such parts in Policy(regions=...))" if spans else ""
    return " and ".join(names) + more


def _share(split: SplitReport) -> Iterator[str]:
    if split.share < SHARE_LOW:
        yield (
            f"only {percent(split.share)} of the tokens are trained: most of the compute reads prompts. "
            "Check that long prompts are meant, and that no answer was missed."
        )
    if split.share > SHARE_HIGH:
        yield (
            f"{percent(split.share)} of the tokens are trained: prompts are probably trained too. "
            "Check that the instruction marker occurs in the rows."
        )


def warnings_between(splits: Mapping[str, SplitReport], reference: str = "train") -> tuple[str, ...]:
    """Splits that were masked differently from ``reference``: their losses cannot be compared.

    >>> train = SplitReport(rows=1, tokens=100, trained_tokens=25)
    >>> print(*warnings_between({"train": train, "eval": SplitReport(rows=1, tokens=100, trained_tokens=100)}))
    eval: 100.0 % of the tokens are trained against 25.0 % of train: the two losses cannot be compared. \
Mask both splits with the same markers.
    """
    train = splits.get(reference)
    if train is None or not train.share:
        return ()
    others = ((name, split) for name, split in splits.items() if name != reference and split.share)
    return tuple(warning for name, split in others for warning in _differences(name, split, reference, train))


def _differences(name: str, split: SplitReport, reference: str, train: SplitReport) -> Iterator[str]:
    if max(split.share, train.share) > SHARE_FACTOR * min(split.share, train.share):
        yield (
            f"{name}: {percent(split.share)} of the tokens are trained against {percent(train.share)} "
            f"of {reference}: the two losses cannot be compared. Mask both splits with the same markers."
        )
    if split.turns_with_stop and train.turns_with_stop and (not split.stops_trained) != (not train.stops_trained):
        yield (
            f"{name}: {split.stops_trained:,} end-of-turn tokens are trained against {train.stops_trained:,} of "
            f"{reference}: the two losses cannot be compared. Mask both splits with the same policy."
        )
