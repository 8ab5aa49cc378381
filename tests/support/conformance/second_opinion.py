"""TRL's training templates mark the assistant's words with ``{% generation %}``: a second opinion on the oracle.

Where the two differ the reason is found in the text, not in a list of names, and there are four that are known:

header       TRL's block opens in front of the role header or inside it (DeepSeek, GLM, gpt-oss; the newline of Qwen2.5)
after stop   TRL's block closes behind the newline that follows the stop (Phi-3: behind the appended end of text too)
no stop      the stop is the next role's marker (GLM), which stands outside of TRL's block
prefill      the generation prompt already holds a tag that stands inside TRL's block
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any

from support.conformance.alignment import Vocabulary, read_vocabulary
from support.conformance.cases import conversations, shapes
from support.conformance.harness import RENDER_ERRORS, added_tokens
from support.conformance.oracle import Case, Judgement, UndecidedError, Verdict, judge
from support.conformance.templates import SHIPPED, Format, shipped_template


@dataclass(frozen=True, slots=True)
class Opinion:
    """How TRL's mask of one training template compares with the oracle, in tokens."""

    template: str
    tokenizer: str
    rows: int
    rows_agreed: int
    header: int
    after_stop: int
    no_stop: int
    prefill: int
    unexplained: int

    @property
    def is_explained(self) -> bool:
        return self.unexplained == 0

    @staticmethod
    def headings() -> list[str]:
        return [field.name.replace("_", " ") for field in fields(Opinion)]


def second_opinions(name: str, tokenizer: Any) -> Iterator[Opinion]:
    """One opinion for every training template that ``tokenizer`` has the tokens for."""
    vocabulary = read_vocabulary(tokenizer)
    own = tokenizer.chat_template
    folder = files("trl") / "chat_templates"
    for template, form in SHIPPED.items():
        if added_tokens(vocabulary).issuperset(form.needs) and (folder / f"{template}_training.jinja").is_file():
            tokenizer.chat_template = shipped_template(f"{template}_training")
            yield _opinion(template, name, tokenizer, vocabulary, form)
    tokenizer.chat_template = own


def _opinion(template: str, name: str, tokenizer: Any, vocabulary: Vocabulary, form: Format) -> Opinion:
    differences: Counter[str] = Counter()
    rows = agreed = 0
    for judgement, mask in _rows(tokenizer, vocabulary, form):
        found = Counter(_reason(judgement, form, i, tokenizer.eos_token) for i in _differing(judgement, mask))
        differences.update(found)
        rows += 1
        agreed += not found
    kinds = [differences[kind] for kind in ("header", "after stop", "no stop", "prefill", "unexplained")]
    return Opinion(template, name, rows, agreed, *kinds)


def _rows(tokenizer: Any, vocabulary: Vocabulary, form: Format) -> Iterator[tuple[Judgement, list[int]]]:
    for conversation in conversations(form):
        for shape in shapes(conversation, form):
            case = Case(shape.messages, shape.tools, shape.template_kwargs)
            try:
                judgement = judge(tokenizer, vocabulary, form, case)
            except (*RENDER_ERRORS, UndecidedError):
                continue
            marked = tokenizer.apply_chat_template(
                case.messages,
                tools=case.tools,
                return_dict=True,
                return_assistant_tokens_mask=True,
                **case.template_kwargs,
            )
            assert list(marked["input_ids"]) == judgement.ids, "both read the same tokens"
            yield judgement, list(marked["assistant_masks"])
            break


def _differing(judgement: Judgement, mask: list[int]) -> Iterator[int]:
    for i, verdict in enumerate(judgement.verdicts):
        if verdict is not Verdict.EITHER and bool(mask[i]) != (verdict is Verdict.MUST):
            yield i


def _reason(judgement: Judgement, form: Format, index: int, eos: str) -> str:
    if judgement.verdicts[index] is Verdict.MUST:
        is_stop = any(index in stop for stop in judgement.stops)
        return "no stop" if is_stop and form.next_role_stops else "unexplained"
    data = judgement.text.encode()
    start, stop = judgement.spans[index]
    if any(data.startswith(header, at) for header in _encoded(form) for at in _starts(data, header, start, stop)):
        return "header"
    if data[_end_of_last_stop(judgement, index) : stop].strip() in (b"", eos.encode()):
        return "after stop"
    return "prefill" if "think" in data[max(0, start - 12) : stop + 12].decode(errors="ignore") else "unexplained"


def _encoded(form: Format) -> list[bytes]:
    return [header.encode() for header in form.assistant]


def _starts(data: bytes, header: bytes, start: int, stop: int) -> range:
    """Where ``header`` would begin if the bytes ``start:stop`` were inside it."""
    return range(max(0, stop - len(header)), start + 1)


def _end_of_last_stop(judgement: Judgement, index: int) -> int:
    before = [stop[-1] for stop in judgement.stops if stop[-1] < index]
    return judgement.spans[before[-1]][1] if before else 0
