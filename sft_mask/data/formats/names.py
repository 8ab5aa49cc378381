"""The names in use: of columns, of the keys of a message, and of roles."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sft_mask.constants import ASSISTANT_ROLES

CALL: Final = "tool call"
"""What is said under the name of a tool call: the assistant's, but not a role of its own."""

ROLE_KEYS: Final = ("role", "from", "speaker", "sender", "author")
CONTENT_KEYS: Final = ("content", "value", "text", "message", "utterance")

CONVERSATIONS: Final = (
    *("messages", "conversations", "conversation", "dialog", "dialogue", "dialogs", "dialogues"),
    *("chat", "chats", "turns", "message", "history_messages"),
)
"""Columns that hold a conversation if they hold a list of messages; TRL reads the first two."""

PROMPTS: Final = ("instruction", "question", "query", "prompt", "problem", "user", "human")
RESPONSES: Final = ("output", "response", "answer", "solution", "assistant", "gpt", "bot", "reply", "target")
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "messages": CONVERSATIONS,
    "prompt": PROMPTS,
    "input": ("input", "context"),
    "response": RESPONSES,
    "completion": ("completion",),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools",),
    "text": ("text",),
    "role": ROLE_KEYS,
    "content": CONTENT_KEYS,
}
"""What a column, or the key of a message, can be, and what it is usually called."""

PREFERENCES: Final = ("chosen", "rejected", "rejected_response", "rejected_messages")
TELLING: Final = (
    "context",
    "reasoning",
    "reasoning_content",
    "thinking",
    "cot",
    "complex_cot",
    "rationale",
    "explanation",
)
"""Columns that may be part of what is asked or answered; the name alone does not say of which."""

LABELS: Final = frozenset(
    (
        "id",
        "uuid",
        "source",
        "category",
        "type",
        "lang",
        "language",
        "model",
        "date",
        "url",
        "title",
        "split",
        "dataset",
    )
)
"""Columns of text that say something about a row."""

_ROLES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("system", "system_prompt"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "customer", "usr"), "user"),
    **dict.fromkeys(
        (*ASSISTANT_ROLES, "gpt", "chatgpt", "bot", "chatbot", "ai", "llm", "agent", "bard", "bing"), "assistant"
    ),
    **dict.fromkeys(
        ("tool", "function", "ipython", "observation", "tool_response", "tool_result", "tool_output"), "tool"
    ),
    **dict.fromkeys(("function_response", "function_result", "function_output"), "tool"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls", "function_calls"), CALL),
    "developer": "developer",
}


def kind_of(name: object) -> str | None:
    """The role that a well-known name means (or :data:`CALL`); ``None`` for other names.

    >>> kind_of("GPT"), kind_of("tool response"), kind_of("alice")
    ('assistant', 'tool', None)
    """
    return _ROLES.get(_bare(name)) if isinstance(name, str) else None


def _bare(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


@dataclass(frozen=True, slots=True)
class RoleNames:
    """What the roles of a dataset are called by the chat template.

    Attributes:
        given: names that the caller decided.
        quoted: names that the chat template itself compares with: these it knows.
        call: what a tool call is; ``assistant`` if the template writes no tool calls, so that it is trained as words.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    quoted: frozenset[str] = frozenset()
    call: str = CALL

    @classmethod
    def of(cls, template_source: str, given: Mapping[object, str] | None = None, call: str = CALL) -> RoleNames:
        """The names for a template, by its Jinja source."""
        names = (*_ROLES, *(kind for kind in _ROLES.values() if kind != CALL))
        quoted = frozenset(name for name in names if re.search(rf"""['"]{name}['"]""", template_source))
        return cls({str(name): role for name, role in (given or {}).items()}, quoted, call)

    def role(self, name: object) -> object:
        """The role for a name; a name that is not known stays as it is.

        ``developer`` becomes ``system``, and another name of the assistant or of a tool becomes the usual one, unless
        the template compares with the former and not with the latter.

        >>> RoleNames.of("{{ m.role == 'user' }}", {"alice": "user"}).role("alice")
        'user'
        >>> RoleNames.of("").role("developer"), RoleNames.of("{{ m.role == 'developer' }}").role("developer")
        ('system', 'developer')
        >>> RoleNames.of("{{ m.role == 'observation' }}").role("observation"), RoleNames.of("").role("observation")
        ('observation', 'tool')
        """
        if str(name) in self.given:
            return self.given[str(name)]
        kind = kind_of(name)
        if kind is None or not isinstance(name, str):
            return name
        if kind == CALL:
            return self.call
        if kind == "developer":
            return kind if kind in self.quoted else "system"
        bare = _bare(name)
        is_own = bare in self.quoted and kind not in self.quoted and (kind == "tool" or bare in ASSISTANT_ROLES)
        return bare if is_own else kind
