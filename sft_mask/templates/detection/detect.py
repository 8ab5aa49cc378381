"""Markers, read from any chat template by what it writes around known words.

Short conversations are rendered (:mod:`sft_mask.templates.probes`); what lies between the words of two messages is the
template's. From these gaps come the response header (what the generation prompt adds), the headers of other roles, the
end-of-turn token (what follows an answer), and what a generation prompt prefills. No template is known by name, and no
result is used before it is proven (:mod:`sft_mask.templates.detection.verify`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from sft_mask.core.arrays import common_prefix_length
from sft_mask.core.markers import Markers, MarkerText
from sft_mask.core.vocabulary import read_vocabulary, tokenizer_and_processor
from sft_mask.errors import DetectionError, UnsupportedError
from sft_mask.templates.chat_template import ChatTemplate
from sft_mask.templates.detection.other_headers import roles_like_assistant, system_headers, tool_markers, tool_probe
from sft_mask.templates.detection.verify import prove
from sft_mask.templates.probes import Gaps, read_gaps, try_render, two_turns, why_refused

if TYPE_CHECKING:
    from sft_mask.core.vocabulary import Vocabulary

_Text = TypeVar("_Text", str, MarkerText)


def unique(texts: Iterable[_Text]) -> tuple[_Text, ...]:
    """The texts without repetitions and empty ones, in order."""
    return tuple(dict.fromkeys(text for text in texts if text))


# the headers of a plain conversation


def _headers(template: ChatTemplate, gaps: Gaps) -> Iterator[tuple[str, str]]:
    """Response and instruction headers that the gaps suggest, the most likely first."""
    by_prompt = partial(_headers_of_prompt, template, gaps)
    by_turns = partial(_headers_of_turns, template, gaps)
    has_prompt = gaps.after_user[0] != gaps.after_user[1]
    for read in (by_prompt, by_turns) if has_prompt else (by_turns, by_prompt):
        found = read()
        if found is not None and _can_open(gaps, found[0]):
            yield found


def _headers_of_prompt(template: ChatTemplate, gaps: Gaps) -> tuple[str, str]:
    """The headers of a template whose generation prompt shows the response header."""
    core = _response_core(template, gaps)
    instruction = _instruction_header(template, gaps, core) if core.strip() else ""
    longer = _user_header(template, gaps)  # with the text before a control token, which ends no answer
    is_longer = longer.endswith(instruction) and template.first_special(longer.removesuffix(instruction)) is None
    return core, longer if is_longer else instruction


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
    for gap in (*gaps.to_assistant, *gaps.prompts):
        core = _shared_with(template, core, gap, cut)
    return core


def _one_token(template: ChatTemplate, close: str) -> str:
    """The text up to the first control token, with the whitespace after it."""
    found = template.first_special(close)
    if found is None:
        return close
    end = found[0] + len(found[1])
    return close[: end + len(close[end:]) - len(close[end:].lstrip())]


def _first_opener(template: ChatTemplate, gaps: Gaps) -> str:
    """The control token that opens a conversation's first turn; in later ones, text before it closes a turn."""
    found = template.first_special(gaps.opening.removeprefix(template.bos))
    return found[1] if found is not None else "\0"


def _shared_with(template: ChatTemplate, core: str, gap: str, cut: int) -> str:
    """What a response header shares with the one in a gap; all of it where that is nothing."""
    lead = template.lead(core)
    starts = [cut] if lead is None else [found.start() for found in re.finditer(re.escape(lead), gap)]
    shared = (template.whole_tokens_prefix(core, gap[at:]) for at in starts)
    return core if core in gap else max((text for text in shared if text.strip()), key=len, default=core)


def _instruction_header(template: ChatTemplate, gaps: Gaps, core: str) -> str:
    lead = template.lead(core)
    if lead is not None and lead in gaps.to_user:
        return gaps.to_user[gaps.to_user.rindex(lead) :]
    ending = gaps.ending.partition(core)[0]
    header = gaps.to_user[len(template.whole_tokens_prefix(ending, gaps.to_user)) :]
    if not header.strip() or (header == gaps.to_user and header.strip() == header and lead is not None):
        shared = template.whole_tokens_suffix(gaps.opening, gaps.to_user)
        header = shared if shared.strip() else header
    return header.lstrip()


def _headers_of_turns(template: ChatTemplate, gaps: Gaps) -> tuple[str, str] | None:
    """The headers of a template that has no generation prompt, from its turns alone.

    The user's header is what the first and a later user turn have before their words; what a template writes before it
    closes an answer. What closes the user's words is what it writes after them where nothing follows, or else what
    closes an answer; the rest up to the answer's words is the response header::

        opening        <s>User: ...
        to_user        ...⏎User: ...        instruction header "User: ", an answer is closed by the newline ⏎
        to_assistant   ...⏎Assistant: ...   response header "Assistant: "
    """
    instruction = _user_header(template, gaps)
    if not instruction:
        return None
    opener = template.lead(instruction)
    closes_answer = gaps.to_user.removesuffix(instruction)
    for close in (gaps.after_user[0], closes_answer):
        if (opener is not None and opener in close) or not all(gap.startswith(close) for gap in gaps.to_assistant):
            continue
        header = template.whole_tokens_prefix(*(gap[len(close) :] for gap in gaps.to_assistant))
        if header.strip():
            return header if template.lead(header) is None else header.lstrip(), instruction
    return None


def _user_header(template: ChatTemplate, gaps: Gaps) -> str:
    """What the first and a later user turn have before their words, without what closes the turn before."""
    header = template.whole_tokens_suffix(gaps.opening, gaps.to_user)
    if gaps.ending.strip() and gaps.to_user.startswith(gaps.ending):
        header = min(header, gaps.to_user[len(gaps.ending) :], key=len)
    opener = _first_opener(template, gaps)
    at = max(header.rfind(opener) if opener not in gaps.ending else 0, 0)
    closes = template.first_special(header[:at]) is not None  # plain text before a control token is the header's own
    return header[at if closes else 0 :].lstrip()


def _can_open(gaps: Gaps, core: str) -> bool:
    """Whether a header comes before the answers of a conversation, and does not begin with what ends them."""
    bare = core.strip()
    return bool(bare) and all(bare in gap for gap in gaps.to_assistant[:2]) and not _begins_with_eot(gaps, core)


def _begins_with_eot(gaps: Gaps, core: str) -> bool:
    """Whether a header begins with what ends an answer: all of the last gap, or what the gaps after answers share."""
    bare = core.strip()
    if gaps.ending.strip().startswith(bare) and gaps.to_user.strip().startswith(bare):
        return True
    ending = gaps.ending.partition(core)[0].strip()
    return bool(ending) and bare.startswith(ending)


# the markers of a plain conversation


def _plain_markers(template: ChatTemplate, gaps: Gaps, core: str, instruction: str) -> Markers:
    at = gaps.to_user.rfind(instruction)
    close = gaps.to_user[:at] if at >= 0 else gaps.to_user
    ending = gaps.ending.partition(core)[0]
    eots = _eots(template, close, ending, gaps.to_assistant[0].rpartition(core)[0])
    eot_headers: tuple[str, ...] = ()
    opener = template.lead(instruction)
    if not close.strip() and opener is not None and not eots:  # nothing else ends an answer
        eot_headers, eots = (instruction,), (opener,)
    return Markers(
        response=unique((core, *_prefills(core, gaps))),
        instruction=(instruction,),
        eots=eots,
        eot_headers=eot_headers,
        open_end=not ending.strip(),
        separator=close if not close.strip() and not eot_headers else "",
        detected=True,
        complete=True,
    )


def _eots(template: ChatTemplate, close: str, ending: str, user_close: str) -> tuple[str, ...]:
    """What the assistant has to sample after an answer, inside a conversation and at its end.

    Inside, it is what the template writes before the next header, without whitespace. At the end a template may add
    more (Phi-3 writes ``<|endoftext|>`` after ``<|end|>``), which is not sampled, or use another token (gpt-oss writes
    ``<|return|>`` for ``<|end|>``).
    """
    inside = _first_eot(template, close.removesuffix(template.bos).strip(), user_close)
    if inside and ending.strip().startswith(inside):
        return (inside,)
    found = template.first_special(ending)
    return unique((inside, ending.strip() if found is None else found[1]))


def _first_eot(template: ChatTemplate, close: str, user_close: str) -> str:
    """What closes an answer, up to the first control token that ends the assistant's turn.

    That is the eos, or a token that closes the user's words too: of ``<|eot_id|><|end_of_text|>`` the first, but all of
    ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>``, where only the second comes after a user's words.
    """
    at = 0
    while (found := template.first_special(close[at:])) is not None:
        at += found[0] + len(found[1])
        if found[1] == template.variables.get("eos_token") or found[1] in user_close:
            return close[:at]
    return close


def _prefills(core: str, gaps: Gaps) -> list[str]:
    """Response headers longer than the core: what a generation prompt holds after it, such as an opened tag."""
    parted = [prompt.rpartition(core) for prompt in gaps.prompts if core in prompt]
    found = []
    for before, _, more in parted:
        # A prompt may also change what is before its header: GLM's "/nothink<|assistant|>\n<think></think>".
        asked = before[common_prefix_length(before, parted[0][0]) :]
        found.append(asked + core + more if more else core)
    return [text for text in dict.fromkeys(found) if text != core]


# other roles


def _with_other_roles(template: ChatTemplate, markers: Markers) -> Markers:
    """Markers of a plain conversation, with what the template writes around system messages and tools."""
    markers = replace(markers, like_assistant=roles_like_assistant(template))
    tools = tool_markers(template, markers)
    headers = (*system_headers(template, markers), *tools.others)
    response = unique((*map(str, markers.response), *_barer_headers(template, markers), *tools.resume))
    known = {*response, *map(str, markers.instruction), *map(str, markers.eots), *tools.eots} - {*tools.others}
    spoken = {text.strip() for text in (*response, *map(str, markers.instruction))}
    openers = [template.bos] if template.bos != template.lead(str(markers.response[0])) else []
    others = (text for text in unique((*headers, *openers)) if text not in known and text.strip() not in spoken)
    return replace(
        markers,
        response=response,
        others=tuple(others),
        eots=unique((*map(str, markers.eots), *tools.eots)),
        eot_headers=unique((*map(str, markers.eot_headers), *tools.eot_headers)),
    )


def _barer_headers(template: ChatTemplate, markers: Markers) -> list[str]:
    """The response header without its last words, where an empty answer or a tool call follows a shorter one."""
    core, instruction = str(markers.response[0]), str(markers.instruction[0])
    lead = template.lead(core)
    question, answer, *rest = two_turns()
    silent = try_render(template, [question, {**answer, "content": ""}, *rest])
    called = tool_probe(template)
    probed = [(silent, 2), (called[0] if called is not None else None, 1)]
    gaps = [shown.between(0, to) for shown, to in probed if shown is not None and {0, to} <= shown.written()]
    found = []
    for gap in gaps:
        if lead is not None and lead in gap and core not in gap:
            shared = template.whole_tokens_prefix(core, gap[gap.index(lead) :])
            found.extend([shared] if shared != lead and not instruction.startswith(shared) else [])
    return found


# the public functions


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
    if not gaps.to_assistant[0].strip():
        return "writes nothing between a user's words and the assistant's."
    return (
        "does not show where an answer begins: what it writes between a user's words and the assistant's, "
        f"{gaps.to_assistant[0]!r}, cannot be told from what it writes between an answer and the next user's words, "
        f"{gaps.to_user!r}, or after the last answer, {gaps.ending!r}."
    )


def detect_markers(tokenizer: object, chat_template: str | None = None) -> Markers:
    """The markers of a chat template, proven in rendered and tokenized conversations.

    Args:
        tokenizer: a fast tokenizer, or a processor that has one.
        chat_template: instead of its own.

    Raises:
        DetectionError: there is no template, it does not show where the assistant's turns begin, or the markers that
            it shows would miss words of the assistant or train words of another role.
        UnsupportedError: the tokenizer is not a fast one.
    """
    tokenizer, processor = tokenizer_and_processor(tokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedError(
            f"{tokenizer!r:.80} is not a fast tokenizer. Load one: AutoTokenizer.from_pretrained(name or folder)."
        )
    vocabulary = read_vocabulary(tokenizer)
    template = ChatTemplate.of(tokenizer, vocabulary, chat_template, processor=processor)
    return proven_markers(template, vocabulary, tokenizer)


_PROVEN: WeakKeyDictionary[object, dict[tuple[object, ...], Markers]] = WeakKeyDictionary()


def proven_markers(template: ChatTemplate | None, vocabulary: Vocabulary, tokenizer: object) -> Markers:
    """As :func:`detect_markers`; results are kept as long as the tokenizer lives and is not changed."""
    if template is None:
        raise DetectionError(
            f"{vocabulary.name} has no chat template, so the markers cannot be read from it. Give both: "
            "instruction_part, the text before the user's words, and response_part, the text before the assistant's."
        )
    kept = _PROVEN.setdefault(tokenizer, {})
    key = (template.source, template.tool_source, repr(template.variables), template.specials, template.in_parts)
    if key not in kept:
        markers, *others = (_first_proven(candidate_markers(one), one, vocabulary, tokenizer) for one in template.each)
        kept[key] = reduce(_of_either, others, markers)
    return kept[key]


def _first_proven(
    candidates: Sequence[Markers], template: ChatTemplate, vocabulary: Vocabulary, tokenizer: object
) -> Markers:
    """The first candidate that is proven; raises the error of the first where none is."""
    first: DetectionError | None = None
    for markers in candidates:
        try:
            return prove(markers, template, vocabulary, tokenizer)
        except DetectionError as error:
            first = first or error
    assert first is not None, "a template without candidates was refused before"
    raise first


def _of_either(markers: Markers, more: Markers) -> Markers:
    """Markers of a template, with those of the one that the tokenizer has for conversations with tools."""
    eots = unique((*markers.eots, *more.eots))
    own = {*markers.others} & {*markers.eots} | {*more.others} & {*more.eots}  # a header that is an EOT too
    others = (text for text in (*markers.others, *more.others) if text not in eots or text in own)
    return replace(
        markers,
        response=unique((*markers.response, *more.response)),
        instruction=unique((*markers.instruction, *more.instruction)),
        others=unique(others),
        eots=eots,
        eot_headers=unique((*markers.eot_headers, *more.eot_headers)),
        separator=markers.separator if markers.separator == more.separator else "",
        open_end=markers.open_end or more.open_end,
        complete=markers.complete and more.complete,
        like_assistant=unique((*markers.like_assistant, *more.like_assistant)),
    )
