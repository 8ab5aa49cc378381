"""Random chat templates and conversations, and an oracle that writes their text itself, piece by piece.

A :class:`Spec` says what a template writes. It is written twice: as Jinja for the library and for ``transformers``
(:func:`source_of`), and as pieces of text that each have an owner (:func:`pieces_of`). The two must be equal,
and then the owners say of every token whether the model has to write it. Nothing here imports ``sft_mask``.

plain      headers and stops as in ChatML, or of plain text, with and without a generation prompt
stops      no stop at all, one after the last message only, one after everybody, two in a row
next-role  nothing closes an answer but the next header, a control token
spelled    roles with other names; the system's words in front of everything, inside the first user turn, or dropped
named      two templates, of which transformers takes the second where a row has tools
text       text that was rendered beforehand, and TRL's end of text behind it
prompt     prompt and completion; answers inside the prompt are nobody's to learn
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from support.conformance.alignment import NotAlignedError, Vocabulary, align

Messages = list[dict[str, str]]

KINDS: Final = ("plain", "stops", "next-role", "spelled", "named", "text", "prompt")
TOOLS: Final = [{"type": "function", "function": {"name": "look_up", "description": "Finds it.", "parameters": {}}}]
DEFAULT_SYSTEM: Final = "Be brief."


class Owner(Enum):
    """Whose a piece of text is."""

    WORDS = "an answer"
    STOP = "its stop"
    BLANK = "blanks of an answer"
    SEPARATOR = "a separator without a stop"
    OPENER = "the opener behind an answer without a stop"
    HEADER = "a header"
    OTHERS = "somebody else"
    SYSTEM = "a system prompt"
    BEHIND = "what follows a stop"
    BOS = "the beginning"
    NOBODY = "no text"


class Verdict(Enum):
    """What the rule says about a token."""

    MUST = "must"
    MUST_NOT = "must not"
    EITHER = "either"


MUST: Final = frozenset({Owner.WORDS, Owner.STOP})
EITHER: Final = frozenset({Owner.BLANK, Owner.SEPARATOR, Owner.OPENER, Owner.NOBODY})

Piece = tuple[str, Owner]


@dataclass(frozen=True, slots=True)
class Spec:
    """What one template writes.

    Attributes:
        headers: by role, as a person would copy them.
        lead: the control token that each header begins with; by role, empty where it is text.
        bos: in front of everything.
        stop: what ends an answer, if anything does.
        second: what follows the stop of an answer.
        first_stops: whether it can be told that the first of two ends the turn: it is the eos, or closes everybody's
            words. Else the two may be one stop (cohere's ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>``).
        last_only: whether the stop stands behind the last message only.
        everybody: whether the words of others end with the stop too.
        gap: blanks behind every message.
        gap_first: whether they stand in front of the stop.
        gap_between: whether they are left out behind the last message.
        next_role_stops: whether the next header's control token is what ends an answer.
        system: ``turn``, ``opening`` (in front of everything), ``inside`` the first user turn, or ``dropped``.
        default_system: written where there is no system message.
        prompt: ``header``, ``cut`` (without its last blanks) or ``none``.
        trims: whether words are trimmed.
        alternates: whether two turns in a row of one role are refused.
        shows_tools: whether the names of tools are written.
        dispatch: how the Jinja tells roles apart: ``branches``, ``lookup`` or ``role``.
        join: how the Jinja puts text together: ``+``, ``~``, ``separate`` or ``raw``.
    """

    headers: dict[str, str]
    lead: dict[str, str]
    bos: str = ""
    stop: str = ""
    second: str = ""
    first_stops: bool = True
    last_only: bool = False
    everybody: bool = False
    gap: str = "\n"
    gap_first: bool = False
    gap_between: bool = False
    next_role_stops: bool = False
    system: str = "turn"
    default_system: str = ""
    prompt: str = "header"
    trims: bool = False
    alternates: bool = False
    shows_tools: bool = False
    dispatch: str = "branches"
    join: str = "+"

    @property
    def user(self) -> str:
        return self.headers["user"]

    @property
    def answer(self) -> str:
        return self.headers["assistant"]

    @property
    def asked(self) -> str:
        """The generation prompt."""
        return {"header": self.answer, "cut": self.answer.rstrip(), "none": ""}[self.prompt]

    def has_eot(self, is_last: bool) -> bool:
        return bool(self.stop) and (is_last or not self.last_only)


# --- the text, with an owner for every character ----------------------------------------------------------------


def pieces_of(spec: Spec, messages: Messages, tools: object = None, prompts: int = 0) -> list[Piece]:
    """The text of a conversation; nothing of its first ``prompts`` messages is to be learnt."""
    rest, pieces = _opening(spec, messages, tools)
    dropped = len(messages) - len(rest)
    for index in range(len(rest)):
        made = [*_header(spec, rest, index), *_said(spec, rest, index, messages)]
        pieces += [(text, Owner.OTHERS) for text, _ in made] if dropped + index < prompts else made
    return [(text, owner) for text, owner in pieces if text]


def _opening(spec: Spec, messages: Messages, tools: object) -> tuple[Messages, list[Piece]]:
    """The messages that the loop sees, and what stands in front of it."""
    pieces = [(spec.bos, Owner.BOS)]
    if tools and spec.shows_tools:
        pieces.append(("Tools: look_up\n\n", Owner.SYSTEM))
    if messages[0]["role"] == "system" and spec.system != "turn":
        words = _trimmed(spec, messages[0]["content"])
        pieces += [(words + "\n\n", Owner.SYSTEM)] if spec.system == "opening" else []
        return messages[1:], pieces
    if messages[0]["role"] != "system" and spec.default_system:
        pieces += [(spec.headers["system"], Owner.HEADER), (DEFAULT_SYSTEM, Owner.SYSTEM)]
        pieces += [(_after_others(spec, False), Owner.BEHIND)]
    return messages, pieces


def _trimmed(spec: Spec, words: str) -> str:
    return words.strip() if spec.trims else words


def _after_others(spec: Spec, is_last: bool) -> str:
    stop = spec.stop if spec.everybody and spec.has_eot(is_last) else ""
    gap = "" if is_last and spec.gap_between else spec.gap
    return gap + stop if spec.gap_first else stop + gap


def _header(spec: Spec, messages: Messages, index: int) -> Iterator[Piece]:
    """The header of a message; its control token is a stop, or may be one, behind an answer that nothing closed."""
    role = messages[index]["role"]
    header, lead = spec.headers[role], spec.lead[role]
    is_open = index > 0 and messages[index - 1]["role"] == "assistant" and not spec.has_eot(False)
    if is_open and lead:
        stops = spec.next_role_stops and role == "user"  # whether the system's is one, nobody can say
        yield lead, Owner.STOP if stops else Owner.OPENER
        header = header.removeprefix(lead)
    elif is_open:
        yield header[: len(header) - len(header.lstrip())], Owner.SEPARATOR
        header = header.lstrip()
    blanks = len(header) - len(header.rstrip()) if spec.prompt == "cut" and role == "assistant" else 0
    yield header[: len(header) - blanks], Owner.HEADER
    yield header[len(header) - blanks :], Owner.BLANK


def _said(spec: Spec, rest: Messages, index: int, messages: Messages) -> Iterator[Piece]:
    message, is_last = rest[index], index == len(rest) - 1
    words = _trimmed(spec, message["content"])
    if message["role"] != "assistant":
        if index == 0 and spec.system == "inside" and messages[0]["role"] == "system":
            yield _trimmed(spec, messages[0]["content"]) + "\n\n", Owner.SYSTEM
        yield words, Owner.OTHERS
        yield _after_others(spec, is_last), Owner.BEHIND
        return
    yield from _edged(words)
    gap = "" if is_last and spec.gap_between else spec.gap
    if not spec.has_eot(is_last):
        stands_before_token = not is_last and spec.lead[rest[index + 1]["role"]]
        yield gap, Owner.BLANK if stands_before_token else Owner.SEPARATOR
        yield spec.second, Owner.BEHIND
        return
    yield gap if spec.gap_first else "", Owner.BLANK
    yield spec.stop, Owner.STOP
    yield spec.second, Owner.BEHIND if spec.first_stops else Owner.BLANK
    yield "" if spec.gap_first else gap, Owner.BEHIND


def _edged(words: str) -> Iterator[Piece]:
    """The words of an answer, the blanks at their edges apart."""
    bare = words.strip()
    start = words.index(bare) if bare else len(words)
    yield words[:start], Owner.BLANK
    yield bare, Owner.WORDS
    yield words[start + len(bare) :], Owner.BLANK


# --- the same as Jinja ------------------------------------------------------------------------------------------


def source_of(spec: Spec) -> str:
    """The chat template."""
    loop = _branches(spec) if spec.dispatch == "branches" else _lookup(spec)
    prompt = f"{{% if add_generation_prompt %}}{_out(spec, repr(spec.asked))}{{% endif %}}"
    if spec.prompt == "none":
        prompt = ""
    return f"{_before(spec)}{{% for m in rest %}}{_refusal(spec)}{_content(spec)}{loop}{{% endfor %}}{prompt}"


def _before(spec: Spec) -> str:
    made = _out(spec, "bos_token" if spec.join == "separate" and spec.bos else repr(spec.bos)) if spec.bos else ""
    if spec.shows_tools:
        made += "{% if tools %}{{ 'Tools: ' + tools[0]['function']['name'] + '\\n\\n' }}{% endif %}"
    is_system, first = "messages[0]['role'] == 'system'", f"messages[0]['content']{_trim(spec)}"
    if spec.system == "turn":
        default = spec.headers["system"] + DEFAULT_SYSTEM + _after_others(spec, False)
        shown = f"{{% if not {is_system} %}}{_out(spec, repr(default))}{{% endif %}}" if spec.default_system else ""
        return f"{made}{shown}{{% set rest = messages %}}"
    opening = _out(spec, first, repr("\n\n")) if spec.system == "opening" else ""
    kept = f"{{% set opening = {first} + '\\n\\n' %}}" if spec.system == "inside" else ""
    empty = "{% set opening = '' %}" if spec.system == "inside" else ""
    default = spec.headers.get("system", "") + DEFAULT_SYSTEM + _after_others(spec, False)
    shown = _out(spec, repr(default)) if spec.default_system else ""
    return (
        f"{made}{{% if {is_system} %}}{opening}{kept}{{% set rest = messages[1:] %}}"
        f"{{% else %}}{shown}{empty}{{% set rest = messages %}}{{% endif %}}"
    )


def _trim(spec: Spec) -> str:
    return " | trim" if spec.trims else ""


def _refusal(spec: Spec) -> str:
    if not spec.alternates:
        return ""
    return (
        "{% if m['role'] != 'system' and (m['role'] == 'user') != ((loop.index0 - "
        "(1 if rest[0]['role'] == 'system' else 0)) % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}{% endif %}"
    )


def _content(spec: Spec) -> str:
    return f"{{% set content = m['content']{_trim(spec)} %}}"


def _out(spec: Spec, *expressions: str) -> str:
    """Jinja that writes expressions one after the other."""
    shown = [expression for expression in expressions if expression != "''"]
    if spec.join in ("+", "~"):
        return f"{{{{ {f' {spec.join} '.join(shown)} }}}}" if shown else ""
    return "".join(_raw(spec, expression) for expression in shown)


def _raw(spec: Spec, expression: str) -> str:
    """A literal as it stands where Jinja leaves it alone, else an expression."""
    bare = expression[1:-1]
    is_plain = expression[0] in "'\"" and bare.isascii() and bare == bare.strip() and not set(bare) & set("{}\\%#'\"")
    return bare if spec.join == "raw" and is_plain and bare else f"{{{{ {expression} }}}}"


def _branches(spec: Spec) -> str:
    made = ""
    for number, role in enumerate(("user", "system", "assistant")):
        test = f"{{% {'if' if not number else 'elif'} m['role'] == '{role}' %}}"
        made += test + _out(spec, repr(spec.headers[role]), *_first(spec, role), "content") + _closer(spec, role)
    return made + "{% endif %}"


def _first(spec: Spec, role: str) -> list[str]:
    """The system's words in front of the first user's."""
    return ["(opening if loop.first else '')"] if spec.system == "inside" and role == "user" else []


def _lookup(spec: Spec) -> str:
    first = "(opening if loop.first and m['role'] == 'user' else '')"
    inside = [first] if spec.system == "inside" else []
    header = _header_by_role(spec) if spec.dispatch == "role" else [f"{spec.headers!r}[m['role']]"]
    shown = _out(spec, *header, *inside, "content")
    own, others = _closer(spec, "assistant"), _closer(spec, "user")
    closer = own if own == others else f"{{% if m['role'] == 'assistant' %}}{own}{{% else %}}{others}{{% endif %}}"
    return shown + closer


def _header_by_role(spec: Spec) -> list[str]:
    before, after = around_role(spec.headers) or ("", "")
    return [repr(before), "m['role']", repr(after)]


def around_role(headers: dict[str, str]) -> tuple[str, str] | None:
    """What stands around the role's own name, if that is all that headers differ in."""
    before, _, after = headers["user"].partition("user")
    return (before, after) if all(text == before + role + after for role, text in headers.items()) else None


def _closer(spec: Spec, role: str) -> str:
    """What follows the words of a role."""
    stop = _stop(spec) if role == "assistant" or spec.everybody else ""
    second = _out(spec, repr(spec.second)) if spec.second and role == "assistant" else ""
    gap = _out(spec, repr(spec.gap)) if spec.gap else ""
    if spec.gap_between:
        gap = f"{{% if not loop.last or add_generation_prompt %}}{gap}{{% endif %}}"
    return gap + stop + second if spec.gap_first else stop + second + gap


def _stop(spec: Spec) -> str:
    if not spec.stop:
        return ""
    shown = _out(spec, repr(spec.stop))
    return f"{{% if loop.last %}}{shown}{{% endif %}}" if spec.last_only else shown


# --- random templates -------------------------------------------------------------------------------------------

NAMES: Final = (
    ("user", "assistant", "system"),
    ("User", "Assistant", "System"),
    ("USER", "ASSISTANT", "SYSTEM"),
    ("Human", "AI", "System"),
    ("Human", "Assistant", "Context"),
    ("Q", "A", "S"),
    ("Instruction", "Response", "System"),
    ("用户", "助手", "系统"),
    ("<|user|>", "<|assistant|>", "<|system|>"),
    ("[INST]", "[/INST]", "[SYS]"),
    ("user", "model", "system"),
    ("Customer", "Agent", "Rules"),
)
LEADS: Final = ("", "", "", "### ", "**", "\n", "<|im_start|>", "<s>")
TAILS: Final = (": ", ":\n", ":", "\n", " ", "\n\n", ":\n\n", "**: ")
GAPS: Final = ("\n", "\n", "\n\n", "\n\n\n", " ", "\n ")
TEXT_STOPS: Final = ("<|end|>", "[END]", "###", "</turn>")


@dataclass(frozen=True, slots=True)
class Controls:
    """The control tokens of a tokenizer that a template may use."""

    bos: str
    eos: str
    others: tuple[str, ...]


def controls_of(tokenizer: Any, vocabulary: Vocabulary) -> Controls:
    special = set(tokenizer.all_special_tokens)
    kept = [token.content.decode() for token in vocabulary.added.values()]
    names = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    usable = [text for text in kept if text not in names and re.fullmatch(r"[<\[]\S+[>\]]", text)]
    wanted = [text for text in usable if text in special or re.search(r"user|assistant|system|im_|end|start", text)]
    return Controls(tokenizer.bos_token or "", tokenizer.eos_token or "", tuple(wanted or usable)[:40])


def some_spec(rng: random.Random, kind: str, controls: Controls) -> Spec | None:
    """A template of a kind; ``None`` where the tokenizer has no tokens for it."""
    if kind == "next-role":
        return _next_role(rng, controls)
    headers, lead = _some_headers(rng, controls, is_spelled=kind == "spelled")
    spec = Spec(headers, lead, bos=rng.choice(("", controls.bos)), **_looks(rng, headers))
    spec = _with_stop(rng, spec, controls) if kind != "stops" else _with_odd_stop(rng, spec, controls)
    if kind == "spelled":
        spec = replace(spec, system=rng.choice(("opening", "inside", "dropped")))
    return spec


def _looks(rng: random.Random, headers: dict[str, str]) -> dict[str, Any]:
    ways = ["branches", "lookup", *(["role"] * 3 if around_role(headers) else [])]
    return {
        "prompt": rng.choice(("header", "header", "none", "none", "cut")),
        "trims": rng.random() < 0.2,
        "alternates": rng.random() < 0.15,
        "dispatch": rng.choice(ways),
        "join": rng.choice(("+", "~", "separate", "raw")),
        "default_system": DEFAULT_SYSTEM if rng.random() < 0.15 else "",
    }


def _some_headers(rng: random.Random, controls: Controls, *, is_spelled: bool) -> tuple[dict[str, str], dict[str, str]]:
    names = rng.choice(NAMES[1:] if is_spelled else NAMES)
    lead, token = rng.choice(LEADS), ""
    openers = [text for text in controls.others if text not in names]
    if openers and rng.random() < 0.5:
        lead = token = rng.choice(openers)
    tail = rng.choice(TAILS)
    if token and len(controls.others) > 1 and rng.random() < 0.3:
        tail = rng.choice([text for text in openers if text != token] or ["|"]) + rng.choice(("", "\n", "\n\n"))
    elif names[0][0] in "<[" and rng.random() < 0.5:
        tail = rng.choice(("", "\n", " "))
    headers = {role: lead + name + tail for role, name in zip(("user", "assistant", "system"), names, strict=True)}
    shared = token or _leading(headers, controls)
    leads = {role: shared or _own_lead(text, controls) for role, text in headers.items()}
    return headers, leads


def _leading(headers: dict[str, str], controls: Controls) -> str:
    tokens = (*controls.others, controls.bos, controls.eos)
    return next((text for text in tokens if text and all(h.startswith(text) for h in headers.values())), "")


def _own_lead(header: str, controls: Controls) -> str:
    found = [text for text in (*controls.others, controls.bos, controls.eos) if text and header.startswith(text)]
    return max(found, key=len, default="")


def _with_stop(rng: random.Random, spec: Spec, controls: Controls) -> Spec:
    return replace(spec, stop=_some_stop(rng, spec, controls), everybody=rng.random() < 0.4, gap=_some_gap(rng, spec))


def _some_stop(rng: random.Random, spec: Spec, controls: Controls) -> str:
    if rng.random() < 0.08 or not controls.eos:
        return rng.choice(TEXT_STOPS)
    others = [text for text in controls.others if text not in "".join(spec.headers.values())]
    stop = rng.choice(others) if others and rng.random() < 0.5 else controls.eos
    return stop if stop not in "".join(spec.headers.values()) else rng.choice(TEXT_STOPS)


def _some_gap(rng: random.Random, spec: Spec) -> str:
    """Blanks; none where every header says by itself that it begins."""
    opens = all(spec.lead.values()) or spec.user[:1] in "\n#<["
    return rng.choice((*GAPS, "", "") if opens else GAPS)


def _with_odd_stop(rng: random.Random, spec: Spec, controls: Controls) -> Spec:
    way = rng.choice(("none", "none", "eos", "last", "last", "two", "everybody"))
    spec = replace(spec, gap=_some_gap(rng, spec), gap_between=rng.random() < 0.2)
    if way == "none":
        apart = all(spec.lead.values()) and spec.lead["user"] != spec.lead["assistant"]
        return replace(spec, gap=rng.choice(("\n", "\n\n", "\n\n\n", " ")), next_role_stops=apart)
    stop = _some_stop(rng, spec, controls)
    if way == "eos" and controls.eos and controls.eos not in "".join(spec.headers.values()):
        stop = controls.eos
    first, gap = rng.random() < 0.3, rng.choice(GAPS[:4])
    if way == "last":
        everybody = rng.random() < 0.4
        return replace(spec, stop=stop, last_only=True, gap=gap, gap_first=first, everybody=everybody)
    if way == "two":
        tokens = (*controls.others, controls.eos)
        others = [text for text in tokens if text and text not in "".join(spec.headers.values())]
        stop, second = rng.sample(others, 2) if len(others) > 1 else (stop, "[EOT]")
        everybody = rng.random() < 0.5
        told = everybody or stop == controls.eos
        return replace(spec, stop=stop, second=second, first_stops=told, everybody=everybody, gap_between=False)
    return replace(spec, stop=stop, everybody=way == "everybody", gap_first=first and bool(spec.gap))


def _next_role(rng: random.Random, controls: Controls) -> Spec | None:
    if len(controls.others) < 3:
        return None
    named = [text for text in controls.others if re.search("user|assistant|system|observation", text)]
    tokens = rng.sample(named if len(named) >= 3 and rng.random() < 0.7 else list(controls.others), 3)
    tail = rng.choice(("", "\n", "\n", "\n\n", " "))
    headers = {role: token + tail for role, token in zip(("user", "assistant", "system"), tokens, strict=True)}
    lead = dict(zip(headers, tokens, strict=True))
    looks = {**_looks(rng, headers), "default_system": ""}
    gap = rng.choice(("", "", "", "\n"))
    return Spec(headers, lead, bos=rng.choice(("", controls.bos)), gap=gap, next_role_stops=True, **looks)


# --- random conversations ---------------------------------------------------------------------------------------

WORDS: Final = (
    "red", " blue", "\n", "\n\n", " ", "{", '"', "7", " 42", "東京", "🙂", "<", "|", "#", "é", ":", "(.*)", "er",
    " the river", " begins", " in the hills", ".\n", "?", "!", "- item\n", " ,", "`x = 1`", "**bold**", "0", "\t",
)  # fmt: skip
STARTS: Final = ("", "", "", "", "\n", "\n\n", " ", "  ", "\t", "(", '"', "3", "京", "#", "- ", "<b>")
ENDS: Final = ("", "", "", "", "\n", "\n\n", " ", "  ", ".", "\n ", "9", "🙂", ":", "</b>")


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: its conversation, and the text with its owners.

    ``prompts`` messages at the beginning are a prompt; ``heard`` are the messages that the row has a column of, which
    may lack the system's.
    """

    messages: Messages
    pieces: list[Piece]
    tools: list[dict[str, Any]] | None = None
    prompts: int = 0
    heard: Messages = field(default_factory=list)
    is_typed: bool = False
    known_by_ids: bool = True

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


def some_messages(rng: random.Random, spec: Spec, typed: Sequence[str]) -> Messages:
    """A conversation of up to five turns; ``typed`` is what somebody may type into it."""
    roles = ["system"] if rng.random() < 0.25 else []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 5))):
        roles += ["user", "assistant"]
        if not spec.alternates and rng.random() < 0.08:
            roles.append(rng.choice(("assistant", "assistant", "user", *(["system"] if spec.system == "turn" else []))))
    if roles[-1] != "assistant" and rng.random() < 0.5:
        roles.append("assistant")
    elif len(roles) > 3 and rng.random() < 0.05:
        roles.pop()
    return [{"role": role, "content": some_words(rng, typed, may_be_empty=role == "assistant")} for role in roles]


def some_words(rng: random.Random, typed: Sequence[str], *, may_be_empty: bool) -> str:
    if may_be_empty and rng.random() < 0.04:
        return rng.choice(("", "", " ", "\n"))
    middle = "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 7)))
    if typed and rng.random() < 0.5:
        middle = middle + rng.choice(typed) + rng.choice(WORDS)
    return rng.choice(STARTS) + "x" * (not middle.strip()) + middle + rng.choice(ENDS)


def typable(spec: Spec) -> list[str]:
    """What a person may type who knows the template: headers and stops, whole and by halves."""
    whole = [spec.answer, spec.user, spec.answer.strip(), spec.user.strip(), spec.stop, spec.second, spec.bos]
    whole += [spec.stop + spec.gap + spec.answer, spec.gap + spec.user, spec.gap + spec.answer]
    halves = [part for text in whole[:5] for part in (text[: len(text) // 2], text[len(text) // 2 :])]
    return [text for text in (*whole, *whole, *halves) if text.strip()]


def is_known_by_ids(specs: Sequence[Spec], pieces: Sequence[Piece]) -> bool:
    """Whether headers and stops stand in a row just where its template wrote them."""
    bare = {text.strip() for spec in specs for text in (*spec.headers.values(), *spec.lead.values(), spec.stop)}
    marker = re.compile("|".join(re.escape(text) for text in sorted(bare, key=len, reverse=True) if text))
    words = {Owner.WORDS, Owner.OTHERS, Owner.SYSTEM}
    spoken = [owner in words for text, owner in pieces for _ in text]
    clean = "".join("0" if owner in words else text for text, owner in pieces)
    found = list(marker.finditer("".join(text for text, _ in pieces)))
    is_clean = [one.group() for one in found] == marker.findall(clean)
    return is_clean and not any(any(spoken[one.start() : one.end()]) for one in found)


# --- tokens -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it is trained on, and what the rule says about each of its tokens."""

    sample: Sample
    ids: list[int]
    spans: list[tuple[int, int]]
    owners: list[frozenset[Owner]]

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict_of(owners) for owners in self.owners]

    @property
    def trains(self) -> bool:
        return Verdict.MUST in self.verdicts


def verdict_of(owners: frozenset[Owner]) -> Verdict:
    """A token of an answer's and of others' bytes goes either way."""
    own, free = bool(owners & MUST), bool(owners & EITHER)
    if own:
        return Verdict.EITHER if owners - MUST - EITHER else Verdict.MUST
    return Verdict.EITHER if free or not owners else Verdict.MUST_NOT


def laid_along(sample: Sample, ids: list[int], body: list[int], vocabulary: Vocabulary) -> Row:
    """The tokens of a row along its text; what the tokenizer put around ``body`` is no text.

    Raises:
        NotAlignedError: a normalizer changed the text.
    """
    before = next((at for at in range(len(ids) - len(body) + 1) if ids[at : at + len(body)] == body), None)
    if before is None:
        raise NotAlignedError("special tokens are not around the text, but inside of it")
    spans = align(sample.text, body, vocabulary)
    owner_of = owners_by_byte(sample.pieces)
    held = [frozenset(owner_of[start:stop]) for start, stop in spans]
    after = len(ids) - len(body) - before
    end = len(owner_of)
    return Row(
        sample,
        ids,
        [(0, 0)] * before + spans + [(end, end)] * after,
        [frozenset({Owner.BOS})] * before + held + [frozenset({Owner.NOBODY})] * after,
    )


def owners_by_byte(pieces: Sequence[Piece]) -> list[Owner]:
    return [owner for text, owner in pieces for _ in text.encode()]


def uneven_separators(row: Row, trained: Sequence[bool]) -> bool:
    """Whether separators behind answers without a stop are trained here and not there."""
    alone = {flag for held, flag in zip(row.owners, trained, strict=True) if held == {Owner.SEPARATOR}}
    return len(alone) == 2
