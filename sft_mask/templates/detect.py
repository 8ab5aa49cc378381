"""Markers, read from any chat template by watching what it writes.

Short conversations of known words are rendered with :mod:`sft_mask.templates.render`; what stands between two people's
words is the template's. From these gaps come the response header (what the generation prompt adds), the headers of the
others, the stop (what follows an answer) and what a generation prompt prefills. No template is known by name, and no
result is used before it is proven (:mod:`sft_mask.templates.verify`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar
from weakref import WeakKeyDictionary

from sft_mask.core.markers import Markers, MarkerText
from sft_mask.errors import DetectionError, UnsupportedError
from sft_mask.templates.chat_template import EMPTY_BLOCK, ChatTemplate
from sft_mask.templates.other_headers import roles_like_assistant, system_headers, tool_markers, tool_probe
from sft_mask.templates.probes import Gaps, read_gaps, text_between, try_render, two_turns, why_refused
from sft_mask.templates.verify import prove

if TYPE_CHECKING:
    from sft_mask.core.vocabulary import Vocabulary
    from sft_mask.templates.render import Rendered

_Text = TypeVar("_Text", str, MarkerText)


def _one_token(template: ChatTemplate, close: str) -> str:
    """The text up to the first control token, with the blanks after it."""
    found = template.first_special(close)
    if found is None:
        return close
    end = found[0] + len(found[1])
    return close[: end + len(close[end:]) - len(close[end:].lstrip())]


def _first_opener(template: ChatTemplate, gaps: Gaps) -> str:
    """The control token that opens a conversation's first turn; in later ones, what stands before it closes a turn."""
    found = template.first_special(gaps.opening.removeprefix(str(template.variables.get("bos_token") or "")))
    return found[1] if found is not None else "\0"


def _response_core(template: ChatTemplate, gaps: Gaps) -> str:
    """The part of the response header that every generation prompt and every rendered answer share."""
    silent, asked = gaps.after_user
    close = template.whole_tokens_prefix(silent, asked) if silent != asked else ""
    if not close and gaps.ending:
        close = _one_token(template, template.whole_tokens_prefix(gaps.ending, gaps.to_user, asked))
    header = asked[len(close) :]
    if not header.strip():
        header = asked
    if silent == asked:
        header = header[max(header.rfind(_first_opener(template, gaps)), 0) :]
    cut = len(asked) - len(header)
    core = header if template.lead(header) is None else header.lstrip()
    for gap in (*gaps.to_model, *gaps.prompts):
        core = _shared_with(template, core, gap, cut)
    return core


def _shared_with(template: ChatTemplate, core: str, gap: str, cut: int) -> str:
    """What a response header shares with another that stands in a gap; all of it where that is nothing."""
    lead = template.lead(core)
    starts = [cut] if lead is None else [found.start() for found in re.finditer(re.escape(lead), gap)]
    shared = (template.whole_tokens_prefix(core, gap[at:]) for at in starts)
    return core if core in gap else max((text for text in shared if text.strip()), key=len, default=core)


def _instruction_header(template: ChatTemplate, gaps: Gaps, core: str) -> str:
    lead = template.lead(core)
    if lead is not None and lead in gaps.to_user:
        return gaps.to_user[gaps.to_user.rindex(lead) :]
    ending = gaps.ending[: gaps.ending.index(core)] if core in gaps.ending else gaps.ending
    header = gaps.to_user[len(template.whole_tokens_prefix(ending, gaps.to_user)) :]
    if not header.strip() or (header == gaps.to_user and header.strip() == header and lead is not None):
        shared = template.whole_tokens_suffix(gaps.opening, gaps.to_user)
        header = shared if shared.strip() else header
    return header.lstrip()


def _stops(template: ChatTemplate, close: str, ending: str, user_close: str) -> tuple[str, ...]:
    """What the model has to sample after an answer, inside a conversation and at its end.

    Inside, it is what the template writes before the next header, but for blanks. At the end a template may add more
    (Phi-3 writes ``<|endoftext|>`` after ``<|end|>``), which nobody samples, or use another token (gpt-oss writes
    ``<|return|>`` for ``<|end|>``).
    """
    bos = str(template.variables.get("bos_token") or "")
    inside = _first_stop(template, (close.removesuffix(bos) if bos else close).strip(), user_close)
    if inside and ending.strip().startswith(inside):
        return (inside,)
    found = template.first_special(ending)
    last = ending.strip() if found is None else found[1]
    return unique((inside, last))


def _first_stop(template: ChatTemplate, close: str, user_close: str) -> str:
    """What closes an answer, up to the first control token at which the model's turn is over.

    That is the eos, or a token that closes the user's words too: of ``<|eot_id|><|end_of_text|>`` the first, but all of
    ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>``, where only the second stands after a user's words.
    """
    at = 0
    while (found := template.first_special(close[at:])) is not None:
        at += found[0] + len(found[1])
        if found[1] == template.variables.get("eos_token") or found[1] in user_close:
            return close[:at]
    return close


def _prefills(core: str, gaps: Gaps) -> list[str]:
    """Response headers longer than the core: prefilled tags, and empty blocks that stand before an answer."""
    found = [prompt[prompt.rindex(core) :] for prompt in gaps.prompts if core in prompt]
    for gap in gaps.to_model:
        more = gap[gap.rindex(core) + len(core) :] if core in gap else ""
        block = EMPTY_BLOCK.fullmatch(more)
        if block is not None and not any((core + more).startswith(prompt) for prompt in found if prompt != core):
            found.append(core + more)
    return [text for text in dict.fromkeys(found) if text != core and text.startswith(core)]


def _barer_headers(template: ChatTemplate, markers: Markers) -> list[str]:
    """The response header without its last words, where an empty answer or a tool call follows another beginning."""
    core, instruction = str(markers.response[0]), str(markers.instruction[0])
    lead = template.lead(core)
    said = two_turns()
    silent = try_render(template, [said[0], {**said[1], "content": ""}, *said[2:]])
    probed = tool_probe(template)
    called = None if probed is None else probed[0]
    gaps = [text_between(rendered, 0, to) for rendered, to in ((silent, 2), (called, 1)) if _heard(rendered, 0, to)]
    found = []
    for gap in gaps:
        if lead is not None and lead in gap and core not in gap:
            shared = template.whole_tokens_prefix(core, gap[gap.index(lead) :])
            found.extend([shared] if shared != lead and not instruction.startswith(shared) else [])
    return found


def _heard(rendered: Rendered | None, *messages: int) -> TypeGuard[Rendered]:
    return rendered is not None and {*messages} <= set(rendered.message_of().tolist())


def _headers(template: ChatTemplate, gaps: Gaps) -> Iterator[tuple[str, str]]:
    """Response and instruction headers that the gaps suggest, the most likely first."""
    by_prompt = partial(_headers_of_prompt, template, gaps)
    by_turns = partial(_headers_of_turns, template, gaps)
    asks_nothing = gaps.after_user[0] == gaps.after_user[1]
    for read in (by_turns, by_prompt) if asks_nothing else (by_prompt, by_turns):
        found = read()
        if found is not None and _can_open(gaps, found[0]):
            yield found


def _headers_of_prompt(template: ChatTemplate, gaps: Gaps) -> tuple[str, str]:
    core = _response_core(template, gaps)
    instruction = _instruction_header(template, gaps, core) if core.strip() else ""
    longer = _user_header(template, gaps)  # the words before a control token, which are no stop
    is_longer = longer.endswith(instruction) and template.first_special(longer.removesuffix(instruction)) is None
    return core, longer if is_longer else instruction


def _headers_of_turns(template: ChatTemplate, gaps: Gaps) -> tuple[str, str] | None:
    """The headers of a template that has no generation prompt, from its turns alone.

    The user's header is what the first and a later user turn have in front of their words; what a template writes
    before it closes an answer. What closes the user's words is what it writes after them where nothing follows, or else
    what closes an answer; the rest up to the answer's words is the response header::

        opening    <s>User: ...
        to_user    ...\nUser: ...        instruction header "User: ", an answer is closed by "\n"
        to_model   ...\nAssistant: ...   response header "Assistant: "
    """
    instruction = _user_header(template, gaps)
    if not instruction:
        return None
    opener = template.lead(instruction)
    closes_answer = gaps.to_user.removesuffix(instruction)
    for close in (gaps.after_user[0], closes_answer):
        if (opener is not None and opener in close) or not all(gap.startswith(close) for gap in gaps.to_model):
            continue
        header = template.whole_tokens_prefix(*(gap[len(close) :] for gap in gaps.to_model))
        if header.strip():
            return header if template.lead(header) is None else header.lstrip(), instruction
    return None


def _user_header(template: ChatTemplate, gaps: Gaps) -> str:
    """What the first and a later user turn have in front of their words, without what closes the turn before."""
    header = template.whole_tokens_suffix(gaps.opening, gaps.to_user)
    if gaps.ending.strip() and gaps.to_user.startswith(gaps.ending):
        header = min(header, gaps.to_user[len(gaps.ending) :], key=len)
    opener = _first_opener(template, gaps)
    at = max(header.rfind(opener) if opener not in gaps.ending else 0, 0)
    closes = template.first_special(header[:at]) is not None  # plain text before a control token is the header's own
    return header[at if closes else 0 :].lstrip()


def _can_open(gaps: Gaps, core: str) -> bool:
    """Whether a header stands before the answers of a conversation, and does not begin with what ends them."""
    bare = core.strip()
    return bool(bare) and all(bare in gap for gap in gaps.to_model[:2]) and not _begins_with_stop(gaps, core)


def _begins_with_stop(gaps: Gaps, core: str) -> bool:
    """Whether a header begins with what ends an answer: all of the last gap, or what the gaps after answers share."""
    bare = core.strip()
    if gaps.ending.strip().startswith(bare) and gaps.to_user.strip().startswith(bare):
        return True
    ending = (gaps.ending[: gaps.ending.index(core)] if core in gaps.ending else gaps.ending).strip()
    return bool(ending) and bare.startswith(ending)


def _plain_markers(template: ChatTemplate, gaps: Gaps, core: str, instruction: str) -> Markers:
    at = gaps.to_user.rindex(instruction) if instruction in gaps.to_user else len(gaps.to_user)
    close = gaps.to_user[:at]
    ending = gaps.ending[: gaps.ending.index(core)] if core in gaps.ending else gaps.ending
    user_close = gaps.to_model[0][: gaps.to_model[0].rindex(core)] if core in gaps.to_model[0] else ""
    stops = _stops(template, close, ending, user_close)
    eot_headers: tuple[str, ...] = ()
    opener = template.lead(instruction)
    if not close.strip() and opener is not None and not stops:  # nothing else ends an answer
        eot_headers, stops = (instruction,), (opener,)
    return Markers(
        response=unique((core, *_prefills(core, gaps))),
        instruction=(instruction,),
        eots=stops,
        eot_headers=eot_headers,
        open_end=not ending.strip(),
        separator=close if not close.strip() and not eot_headers else "",
        detected=True,
        complete=True,
    )


def unique(texts: Iterable[_Text]) -> tuple[_Text, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


def candidate_markers(template: ChatTemplate) -> list[Markers]:
    """Markers as the template's gaps suggest them, not yet proven; the most likely first.

    Raises:
        DetectionError: the template renders no plain conversation, or writes nothing before an answer.
    """
    gaps = read_gaps(template, parts=False) or read_gaps(template, parts=True)
    if gaps is None:
        raise DetectionError(
            f"The chat template cannot be read: {why_refused(template)} Give both instruction_part and response_part."
        )
    found = [
        _with_other_roles(template, _plain_markers(template, gaps, *headers)) for headers in _headers(template, gaps)
    ]
    if not found:
        raise DetectionError(
            f"The chat template {_no_header(gaps)} Use a template that writes a header before an answer, or give both "
            "instruction_part and response_part."
        )
    return list(dict.fromkeys(found))


def _no_header(gaps: Gaps) -> str:
    if not gaps.to_model[0].strip():
        return "writes nothing between a user's words and the model's."
    return (
        "does not show where an answer begins: what it writes between a user's words and the model's, "
        f"{gaps.to_model[0]!r}, cannot be told from what it writes between an answer and the next user's words, "
        f"{gaps.to_user!r}, or after the last answer, {gaps.ending!r}."
    )


def _with_other_roles(template: ChatTemplate, markers: Markers) -> Markers:
    """Markers of a plain conversation, with what the template writes around system messages and tools."""
    markers = replace(markers, like_assistant=roles_like_assistant(template))
    tools = tool_markers(template, markers)
    bos = str(template.variables.get("bos_token") or "")
    system = system_headers(template, markers)
    response = unique((*map(str, markers.response), *_barer_headers(template, markers), *tools.resume))
    known = {*response, *map(str, markers.instruction), *map(str, markers.eots), *tools.stops}
    spoken = {text.strip() for text in (*response, *map(str, markers.instruction))}
    lead = template.lead(str(markers.response[0]))
    openers = [bos] if bos and bos != lead else []
    others = tuple(text for text in unique((*system, *tools.others, *openers)) if text not in known - set(tools.others))
    return replace(
        markers,
        response=response,
        others=tuple(text for text in others if text.strip() not in spoken),
        eots=unique((*map(str, markers.eots), *tools.stops)),
        eot_headers=unique((*map(str, markers.eot_headers), *tools.eot_headers)),
    )


def detect_markers(tokenizer: Any, chat_template: str | None = None) -> Markers:
    """The markers of a chat template, proven in rendered and tokenized conversations.

    Args:
        tokenizer: a fast tokenizer.
        chat_template: instead of the tokenizer's own.

    Raises:
        DetectionError: there is no template, it does not show where the model's turns begin, or what it shows does not
            hold every word of the model's and no word of anybody else's.
    """
    from sft_mask.core.vocabulary import read_vocabulary

    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedError(
            f"{tokenizer!r:.80} is no fast tokenizer. Load one: AutoTokenizer.from_pretrained(name or folder)."
        )
    vocabulary = read_vocabulary(tokenizer)
    return proven_markers(ChatTemplate.of(tokenizer, vocabulary, chat_template), vocabulary, tokenizer)


_PROVEN: WeakKeyDictionary[Any, dict[tuple[object, ...], Markers]] = WeakKeyDictionary()


def proven_markers(template: ChatTemplate | None, vocabulary: Vocabulary, tokenizer: Any) -> Markers:
    """As :func:`detect_markers`; known results are kept as long as the tokenizer lives and is not changed."""
    if template is None:
        raise DetectionError(
            f"{vocabulary.name} has no chat template, so the markers cannot be read from it. Give both: "
            "instruction_part, the text before the user's words, and response_part, the text before the model's."
        )
    kept = _PROVEN.setdefault(tokenizer, {})
    key = (template.source, template.tool_source, repr(template.variables), template.specials)
    if key not in kept:
        markers, *others = (_first_proven(candidate_markers(one), one, vocabulary, tokenizer) for one in template.each)
        kept[key] = reduce(_of_either, others, markers)
    return kept[key]


def _of_either(markers: Markers, more: Markers) -> Markers:
    """Markers of a template, with those of the one that the tokenizer has for conversations with tools."""
    stops = unique((*markers.eots, *more.eots))
    own = {*markers.others} & {*markers.eots} | {*more.others} & {*more.eots}  # a header that is a stop too
    others = (text for text in (*markers.others, *more.others) if text not in stops or text in own)
    return replace(
        markers,
        response=unique((*markers.response, *more.response)),
        instruction=unique((*markers.instruction, *more.instruction)),
        others=unique(others),
        eots=stops,
        eot_headers=unique((*markers.eot_headers, *more.eot_headers)),
        separator=markers.separator if markers.separator == more.separator else "",
        open_end=markers.open_end or more.open_end,
        complete=markers.complete and more.complete,
        like_assistant=unique((*markers.like_assistant, *more.like_assistant)),
    )


def _first_proven(
    candidates: Sequence[Markers], template: ChatTemplate, vocabulary: Vocabulary, tokenizer: Any
) -> Markers:
    first: DetectionError | None = None
    for markers in candidates:
        try:
            return prove(markers, template, vocabulary, tokenizer)
        except DetectionError as error:
            first = first or error
    assert first is not None, "a template without candidates is refused before"
    raise first
