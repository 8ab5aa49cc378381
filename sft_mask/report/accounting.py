"""What a report says of fields that are not in the rows, of answers that were cut off, and of the forms of answers."""

from __future__ import annotations

from collections.abc import Iterator

from sft_mask.report.counts import OF_ASSISTANT, SplitReport, counted, percent

EXPAND = "mask_dataset(..., expand=True)"


def account_lines(split: SplitReport) -> Iterator[str]:
    """Lines about one split; what is zero takes no line.

    >>> print(*account_lines(SplitReport(fields={"tool calls": 4, "assistant contents": 9}, not_rendered={"tool calls":
    ...     4}, turns=9, answers_cut_off=3, tokens_cut_off=120)), sep=chr(10))
      not rendered: 4 of 4 tool calls, 0 of 9 assistant contents
      cut off whole: 3 of 12 answers (120 tokens)
    """
    if split.not_rendered:
        lost = ", ".join(
            f"{split.not_rendered.get(name, 0):,} of {split.fields[name]:,} {name}" for name in _named(split)
        )
        yield f"  not rendered: {lost}"
    if split.answers_cut_off:
        answers = split.turns + split.answers_cut_off
        yield f"  cut off whole: {split.answers_cut_off:,} of {answers:,} answers ({split.tokens_cut_off:,} tokens)"
    if split.rows_at_max_length:
        rows = counted(split.rows_at_max_length, "row")
        yield f"  possibly cut: {rows} of exactly max_length tokens, whose last answer may be cut off"
    if split.turns_in_other_form:
        yield f"  forms: {_forms(split)}: {_cure(split)}"
    yield from _prompt_lines(split)
    if split.rows_before:
        yield (
            f"  expanded: {counted(split.rows_before, 'conversation')} of {split.tokens_before:,} tokens into "
            f"{counted(split.rows_seen, 'row')}"
        )


def spelled_losses(split: SplitReport) -> str:
    """What is not rendered, of how much, kind by kind."""
    counts = ((split.not_rendered.get(name, 0), split.fields[name], name) for name in _named(split))
    return ", ".join(f"{lost:,} of {there:,} {name}" for lost, there, name in counts)


def _named(split: SplitReport) -> list[str]:
    """Kinds of fields to show: those that are lost, and those of the assistant."""
    return sorted({*split.not_rendered, *(set(OF_ASSISTANT) & set(split.fields))}, key=_order)


def _order(name: str) -> tuple[int, str]:
    return (OF_ASSISTANT.index(name) if name in OF_ASSISTANT else len(OF_ASSISTANT), name)


def _cure(split: SplitReport) -> str:
    """What shows each answer as inference does; rows with images cannot be expanded."""
    return "a row that ends with it, for each answer" if split.images else EXPAND


def _forms(split: SplitReport) -> str:
    lost = f"; {split.turns_without_reasoning:,} lost their reasoning" if split.turns_without_reasoning else ""
    return (
        f"{split.turns_in_other_form:,} of {split.turns_compared:,} trained turns are in a form that inference never "
        f"shows{lost}"
    )


def _prompt_lines(split: SplitReport) -> Iterator[str]:
    """After which generation prompt the answers come, unless it is always the plain one."""
    named = {name: count for name, count in split.prompts.items() if "=" in name}
    if named:
        plain = split.prompts.get("no arguments", 0)
        more = [f"{count:,} after that of {name}" for name, count in list(named.items())[1:]]
        first = next(iter(named.items()))
        rest = [f"{plain:,} after the plain one"] if plain else []
        yield f"  prompt: {', '.join([f'{first[1]:,} answers after the prompt of {first[0]}', *more, *rest])}"
    if split.turns_after_no_prompt:
        answers = counted(split.turns_after_no_prompt, "answer")
        yield f"  prompt: {answers} after none of the template's generation prompts"


def loss_warnings(split: SplitReport) -> Iterator[str]:
    """What the chat template leaves out, each kind with its first row; reasoning that expansion shows is not named."""
    lost = dict(split.not_rendered)
    lost["reasoning"] = lost.get("reasoning", 0) - split.turns_without_reasoning
    own = {name: count for name, count in lost.items() if name in OF_ASSISTANT and count > 0}
    if own:
        yield (
            f"the chat template does not write {_spelled(own, split)}: the model learns to answer without them. Give "
            "one that writes them as chat_template=, or write them into the contents."
        )
    others = {name: count for name, count in lost.items() if name not in OF_ASSISTANT and count > 0}
    if others:
        yield (
            f"the chat template does not write {_spelled(others, split)}: the model answers without having seen them. "
            "Give one that writes them as chat_template=."
        )


def account_warnings(split: SplitReport) -> Iterator[str]:
    """Warnings about cut answers and forms."""
    if split.answers_cut_off:
        share = percent(split.answers_cut_off / (split.turns + split.answers_cut_off))
        yield (
            f"{counted(split.answers_cut_off, 'answer')} ({share}) of {split.tokens_cut_off:,} tokens are cut off "
            "whole: long conversations lose their last answers. Raise max_length, or split such conversations."
        )
    if split.turns_in_other_form:
        yield (
            f"{_forms(split)}: the model is asked with another context, or learns to answer otherwise than it is "
            f"asked to. Show each answer as inference does: {_cure(split)}."
        )
    if split.turns_after_no_prompt:
        yield (
            f"{split.turns_after_no_prompt:,} of {split.turns_compared:,} trained turns come after none of the "
            "template's generation prompts: nothing is asked before them, or they are in another thinking mode than "
            "any prompt asks for. Give the chat_template_kwargs that the data were made for, or a template whose "
            "prompt is a beginning of its own finished answer."
        )


def _spelled(lost: dict[str, int], split: SplitReport) -> str:
    first = {name: f" (first in row {row:,})" for name, row in split.first_not_rendered.items()}
    return ", ".join(
        f"{lost[name]:,} of {split.fields[name]:,} {name}{first.get(name, '')}" for name in sorted(lost, key=_order)
    )
