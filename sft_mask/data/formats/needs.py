"""What a chat template needs messages to look like, found out by rendering some."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sft_mask.data.formats.messages import Arguments, loaded
from sft_mask.templates.chat_template import ChatTemplate
from sft_mask.templates.probes import tool_turns, try_render, two_turns


def takes_parts(template: ChatTemplate) -> bool:
    """Whether a template writes the text of content in parts. (Some print the whole list, as Python or as JSON.)"""
    rendered = try_render(template, two_turns(parts=True))
    return rendered is not None and rendered.writes_all() and not re.search(r"""['"]type['"]""", rendered.text)


def arguments_for(messages: Iterable[Mapping[Any, object]], template: ChatTemplate | None) -> Arguments:
    """What the arguments of tool calls have to become, so that the template writes them, and writes them once.

    Many templates print the arguments as JSON: of JSON text they would print a quoted string. Others join them to
    text, and refuse an object.
    """
    kinds = {type(arguments) for message in messages for arguments in _arguments(message)}
    if template is None or not kinds:
        return "as given"
    writes = {kind: _writes_arguments(template, as_text=kind is str) for kind in (str, dict)}
    if writes[dict] and not writes[str] and str in kinds:
        return "object"
    if writes[str] and not writes[dict] and kinds != {str}:
        return "text"
    return "as given"


def _arguments(message: Mapping[Any, object]) -> list[object]:
    """The arguments of the tool calls of a message, under any of their names."""
    found = []
    calls = loaded(message.get("tool_calls"))
    for call in calls if isinstance(calls, list) else [message.get("function_call")]:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, Mapping) and function.get("arguments") is not None:
            found.append(function["arguments"])
    said = [message.get(key) for key in ("content", "value") if isinstance(message.get(key), str)]
    is_call = any(str(message.get(key)) in ("function_call", "tool_call") for key in ("role", "from"))
    return [*found, *({} for _ in said if is_call)]


def writes_calls(template: ChatTemplate) -> bool:
    """Whether a template writes tool calls."""
    return any(_writes_arguments(template, as_text=as_text) for as_text in (False, True))


def _writes_arguments(template: ChatTemplate, *, as_text: bool) -> bool:
    rendered = try_render(template, tool_turns(as_text=as_text))
    return rendered is not None and "Danube" in rendered.text and '\\"' not in rendered.text
