"""A chat template: its Jinja source, its arguments, and the control tokens that it may write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sft_mask.core.arrays import common_prefix_length
from sft_mask.errors import MarkerError
from sft_mask.templates.render import Rendered, plain_data, render
from sft_mask.templates.tracing.traced_str import TOOLS

if TYPE_CHECKING:
    from sft_mask.core.vocabulary import Vocabulary


EMPTY_BLOCK = re.compile(r"\s*(?:<([\w|:]+)>\s*</\1>|\[(\w+)\]\s*\[/\2\]|<\|channel>\w*\s*<channel\|>)\s*")
"""An empty reasoning block: a pair of tags alone. Where a generation prompt holds it, it is not sampled."""
EMPTY_BLOCK_AT_END = re.compile(rf"(?:{EMPTY_BLOCK.pattern})\Z")

TAG = re.compile(r"</?[\w|:]+>|\[/?[A-Z_]+\]")
"""A tag that opens or closes a part of an answer."""


def common_prefix(texts: Sequence[str]) -> str:
    """The longest common prefix of all texts.

    >>> common_prefix(["<|end|>", "<|eot|>"])
    '<|e'
    """
    low, high = min(texts, default=""), max(texts, default="")
    return low[: common_prefix_length(low, high)]


def common_suffix(texts: Sequence[str]) -> str:
    """The longest common suffix of all texts."""
    return common_prefix([text[::-1] for text in texts])[::-1]


@dataclass(frozen=True)
class ChatTemplate:
    """A template with the special tokens that the tokenizer passes to it.

    Attributes:
        source: the Jinja text.
        variables: ``special_tokens_map`` and template arguments that hold for every row.
        specials: texts of the added tokens (control tokens, tags), longest first.
        tool_source: the Jinja text for conversations with tools, where the tokenizer has another one for them.
        in_parts: whether it is a processor's, which is given each content as a list of parts, never as text.
    """

    source: str
    variables: Mapping[str, object] = field(default_factory=dict)
    specials: tuple[str, ...] = ()
    tool_source: str | None = None
    in_parts: bool = False

    @classmethod
    def of(
        cls,
        tokenizer: object,
        vocabulary: Vocabulary,
        chat_template: str | None = None,
        *,
        processor: object = None,
        **variables: object,
    ) -> ChatTemplate | None:
        """The template of a tokenizer, or ``None`` where it has none.

        Of several named ones it is ``default``, and ``tool_use`` for conversations with tools, as ``transformers``
        chooses; ``chat_template`` can be one of their names. With a ``processor`` it is that one's template; for it,
        ``transformers`` does not look at ``tool_use``.

        Raises:
            MarkerError: the tokenizer has several named templates and none of them is called ``default``.
        """
        named = getattr(tokenizer if processor is None else processor, "chat_template", None)
        named = named if isinstance(named, Mapping) else {"default": named}
        if chat_template is None and "default" not in named:
            raise MarkerError(
                f"The tokenizer has several chat templates ({', '.join(sorted(named))}) and none is called "
                "'default'. Choose one with chat_template=tokenizer.chat_template[NAME]."
            )
        source = named["default"] if chat_template is None else named.get(chat_template, chat_template)
        tool_source = named.get("tool_use") if chat_template is None and processor is None else None
        if not source:
            return None
        added = (piece.content for piece in vocabulary.added.values() if len(piece.content.strip()) > 2)
        specials = sorted(added, key=len, reverse=True)
        tokens = dict(getattr(tokenizer, "special_tokens_map", {}) or {})
        return cls(str(source), {**tokens, **variables}, tuple(specials), tool_source, processor is not None)

    @property
    def bos(self) -> str:
        """Text of the tokenizer's BOS, empty where it has none."""
        return str(self.variables.get("bos_token") or "")

    @property
    def each(self) -> tuple[ChatTemplate, ...]:
        """This template, or the two for conversations without and with tools."""
        if self.tool_source is None:
            return (self,)
        return replace(self, tool_source=None), replace(self, source=self.tool_source, tool_source=None)

    def source_for(self, tools: object) -> str:
        """The Jinja text that renders a conversation with these tools; ``None`` for no tools."""
        return self.source if tools is None or self.tool_source is None else self.tool_source

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: object = None,
        add_generation_prompt: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> Rendered:
        """Renders a conversation, with the source of each character; see :func:`sft_mask.templates.render.render`."""
        return render(
            [with_parts(message) for message in messages] if self.in_parts else messages,
            self.source_for(tools),
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables={**self.variables, **plain_data(dict(variables or {}), TOOLS)},
        )

    def first_special(self, text: str) -> tuple[int, str] | None:
        """Position and text of the first control token in ``text``."""
        found = [(text.find(special), -len(special), special) for special in self.specials if special in text]
        if not found:
            return None
        position, _, special = min(found)
        return position, special

    def lead(self, header: str) -> str | None:
        """The control token that a header begins with, after whitespace; ``None`` where it begins with text."""
        found = self.first_special(header)
        return found[1] if found is not None and not header[: found[0]].strip() else None

    def whole_tokens_prefix(self, *texts: str) -> str:
        """The longest common prefix that does not end inside a control token or a tag of any text."""
        common = common_prefix(texts)
        for text in texts:
            for start, end in self._units(text):
                if start < len(common) < end:
                    common = common[:start]
        return common

    def whole_tokens_suffix(self, *texts: str) -> str:
        """The longest common suffix that does not begin inside a control token or a tag of any text."""
        common = common_suffix(texts)
        for text in texts:
            for start, end in sorted(self._units(text)):
                if start < len(text) - len(common) < end:
                    common = text[end:]
        return common

    def _units(self, text: str) -> list[tuple[int, int]]:
        """Spans of control tokens and tags, the last first."""
        specials = "|".join(re.escape(special) for special in self.specials)
        pattern = f"(?=({specials}))" if specials else r"(?!)"
        found = [match.span(1) for match in re.finditer(pattern, text)]
        found.extend(match.span() for match in TAG.finditer(text))
        return sorted(found, reverse=True)


def with_parts(message: Any) -> Any:
    """A message whose content is a list of parts, as TRL gives it to a processor's template.

    >>> with_parts({"role": "user", "content": "Hi"})
    {'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]}
    """
    if isinstance(message, Mapping) and isinstance(message.get("content"), str):
        return {**message, "content": [{"type": "text", "text": message["content"]}]}
    return message
