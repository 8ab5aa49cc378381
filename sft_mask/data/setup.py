"""What is read from a tokenizer, what a caller asks for, and the masker for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sft_mask.core.markers import Markers, MarkerText
from sft_mask.core.policy import Policy
from sft_mask.core.vocabulary import Vocabulary, read_vocabulary, tokenizer_and_processor
from sft_mask.data.decide import RowDecider, quotable_texts
from sft_mask.data.faults.roles import without_answers
from sft_mask.data.faults.wellformed import messages_as_text
from sft_mask.data.masker import Masker, OnAmbiguous
from sft_mask.data.read.formats import plain
from sft_mask.errors import DataError, MarkerError, UnsupportedError
from sft_mask.report import MarkerSummary
from sft_mask.templates.chat_template import ChatTemplate
from sft_mask.templates.resolve import Resolved, resolve
from sft_mask.templates.turns import ConversationAligner
from sft_mask.templates.words import WordAligner

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ids

_VERSION = "5"
"""Part of every fingerprint; changes when a mask can change."""


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """A tokenizer with what was read from it; and the processor that it belongs to, if any."""

    tokenizer: Any
    vocabulary: Vocabulary
    template: ChatTemplate | None
    processor: Any = None


@dataclass(frozen=True, slots=True)
class MaskSettings:
    """What a caller asks for, and what a trainer adds to it.

    Attributes:
        instruction_part: text before the user's words, several texts, token ids, or nothing (read from the template).
        response_part: text before the assistant's words, likewise.
        policy: what is trained of the turns found.
        on_ambiguous: what happens to a row that neither markers nor messages can decide.
        max_length: where a trainer truncated the rows, for errors.
        prompt_answers: whether answers in the prompt of a prompt/completion row count too.

    Raises:
        DataError: ``on_ambiguous`` is unknown.
    """

    instruction_part: object = None
    response_part: object = None
    policy: Policy = field(default_factory=Policy)
    on_ambiguous: OnAmbiguous = "error"
    max_length: int | None = None
    prompt_answers: bool = False

    def __post_init__(self) -> None:
        if self.on_ambiguous not in ("error", "drop", "mask"):
            raise DataError(f"on_ambiguous={self.on_ambiguous!r} is unknown. Use 'error', 'drop' or 'mask'.")


def read_tokenizer(tokenizer: object, chat_template: str | None = None) -> TokenizerInfo:
    """Reads a tokenizer, or the tokenizer and the chat template of a processor, once.

    Raises:
        UnsupportedError: it is a slow tokenizer without a tokenizers backend.
    """
    if tokenizer is None or isinstance(tokenizer, str):
        given = "No tokenizer was given" if tokenizer is None else f"The tokenizer is a text, {tokenizer!r:.80}"
        named = repr(tokenizer) if tokenizer else "NAME"
        raise UnsupportedError(
            f"{given}, and the tokenizer itself is needed. Load it: "
            f"transformers.AutoTokenizer.from_pretrained({named}), with the name or the folder of the model."
        )
    tokenizer, processor = tokenizer_and_processor(tokenizer)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        kind = type(tokenizer).__name__
        of = "" if processor is None else f", which {type(processor).__name__} holds,"
        raise UnsupportedError(
            f"{kind}{of} is not a fast tokenizer: the text of its ids cannot be read exactly. Load the fast one with "
            "AutoTokenizer.from_pretrained(...), or pass it as tokenizer=."
        )
    vocabulary = read_vocabulary(tokenizer)
    template = ChatTemplate.of(tokenizer, vocabulary, chat_template, processor=processor)
    return TokenizerInfo(tokenizer, vocabulary, template, processor)


def build_masker(info: TokenizerInfo, rows: Sequence[Ids], settings: MaskSettings) -> Masker:
    """The masker for some settings; ``rows`` are ids of some rows, in which markers must occur.

    Raises:
        MarkerError: see :func:`~sft_mask.trainer.entry.train_on_responses_only`.
        DetectionError: likewise.
    """
    resolved = resolve(
        info.vocabulary,
        info.tokenizer,
        info.template,
        instruction=settings.instruction_part,
        response=settings.response_part,
        rows=rows,
        max_length=settings.max_length,
        train_empty_reasoning=settings.policy.empty_reasoning == "train",
    )
    chat = info.template
    template = (chat.source, chat.tool_source, dict(chat.variables), chat.in_parts) if chat is not None else None
    key = (_VERSION, resolved.markers, settings.policy, settings.on_ambiguous, settings.prompt_answers, template)
    decider = RowDecider(
        settings.policy,
        _aligner(info, resolved, settings.policy),
        WordAligner(resolved.finder, resolved.markers),
        quotable_texts(resolved.finder),
        resolved.from_template,
        settings.prompt_answers,
    )
    return Masker(
        resolved.finder,
        resolved.markers,
        decider,
        settings.on_ambiguous,
        settings_key=(*key, _digest(info)),
        max_length=settings.max_length,
    )


def masker_for(info: TokenizerInfo, rows: Sequence[Ids], settings: MaskSettings, source: object, name: str) -> Masker:
    """:func:`build_masker` for some rows of a dataset, with errors about the dataset where that is the cause.

    Args:
        info: the tokenizer.
        rows: ids of some rows.
        settings: what the caller asked for.
        source: the dataset, or the one that it was made from.
        name: what to call it (``"the train dataset"``).

    Raises:
        NothingToTrainError: no message of the dataset is the assistant's, so its marker is in no row.
        DataError: the text column holds messages as JSON.
    """
    try:
        return build_masker(info, rows, settings)
    except MarkerError as error:
        if not _are_the_templates(info, settings):
            raise
        found = messages_as_text(next(iter(plain(source)), {})) or without_answers(source, name)
        if found is None:
            raise
        raise found from error


def _are_the_templates(info: TokenizerInfo, settings: MaskSettings) -> bool:
    """Whether the markers are those of the chat template, so that every rendered answer would hold them."""
    try:
        return build_masker(info, [], settings).decider.from_template
    except MarkerError:
        return False


def _aligner(info: TokenizerInfo, resolved: Resolved, policy: Policy) -> ConversationAligner | None:
    if info.template is None:
        return None
    markers = resolved.markers
    if not resolved.from_template:
        markers = _spelled(markers, info.vocabulary)
    return ConversationAligner(
        info.template,
        markers,
        info.vocabulary,
        info.tokenizer,
        train_empty_reasoning=policy.empty_reasoning == "train",
    )


def _spelled(markers: Markers, vocabulary: Vocabulary) -> Markers:
    """Markers with the text of those that were given as ids, or seen as ids in rows."""

    def spelled(texts: tuple[MarkerText, ...]) -> tuple[MarkerText, ...]:
        return tuple(text if isinstance(text, str) else vocabulary.text(text) for text in texts)

    return replace(
        markers,
        response=spelled(markers.response),
        instruction=spelled(markers.instruction),
        others=spelled(markers.others),
        eots=spelled(markers.eots),
    )


def _digest(info: TokenizerInfo) -> str:
    """A digest of the tokenizer for fingerprints: its vocabulary and its added tokens."""
    from datasets.fingerprint import Hasher

    return str(Hasher.hash((info.vocabulary.digest, info.tokenizer.pad_token_id)))


def marker_summary(masker: Masker) -> MarkerSummary:
    """The markers in use, as a report shows them."""
    text = masker.finder.vocabulary.text

    def spelled(marker: Any) -> str:
        return marker if isinstance(marker, str) else text(list(marker))

    markers = masker.markers
    return MarkerSummary(
        spelled(markers.instruction[0]),
        spelled(markers.response[0]),
        tuple(dict.fromkeys(spelled(stop) for stop in markers.eots)),
        markers.detected,
        markers.like_assistant,
    )
