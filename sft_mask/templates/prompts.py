"""The generation prompts of a chat template: the plain one, and one for each argument that changes it.

``enable_thinking=False`` makes Qwen3's template write an empty reasoning block into the prompt. Which arguments a
template knows is read from its own source: the names that it uses and never sets, each tried with true, false, and the
values that the source compares it with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from sft_mask.errors import DataError
from sft_mask.templates.tracing.sandbox import parsed

if TYPE_CHECKING:
    from jinja2 import nodes

    from sft_mask.templates.chat_template import ChatTemplate

_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""What every template is given."""
_MOST_VALUES = 8
"""Values tried for one argument."""

Arguments = Mapping[str, object]
_Node = TypeVar("_Node", bound="nodes.Node")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One form of the generation prompt.

    Attributes:
        arguments: template arguments that make it; none for the plain one.
        tail: what it writes after the last message.
    """

    arguments: Arguments
    tail: str

    def __str__(self) -> str:
        return spelled_arguments(self.arguments)


def spelled_arguments(arguments: Arguments) -> str:
    """Arguments as one would type them.

    >>> spelled_arguments({"enable_thinking": False}), spelled_arguments({})
    ('enable_thinking=False', 'no arguments')
    """
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "no arguments"


def prompts_of(
    template: ChatTemplate, messages: Sequence[Mapping[str, object]], tools: object = None
) -> tuple[Prompt, ...]:
    """The forms of the generation prompt after some messages, the plain one first.

    Arguments that make the same prompt as those before them are left out. Empty if the template refuses the messages.
    """
    tried = ({}, *_candidates(template.source_for(tools), frozenset(template.variables)))
    found: dict[str, Prompt] = {}
    for arguments in tried:
        tail = _tail(template, messages, tools, arguments)
        if tail is not None:
            found.setdefault(tail, Prompt(arguments, tail))
        elif not arguments:
            return ()
    return tuple(found.values())


def _tail(
    template: ChatTemplate, messages: Sequence[Mapping[str, object]], tools: object, arguments: Arguments
) -> str | None:
    """What a prompt holds after its last message; ``None`` if the template refuses the messages or the arguments."""
    try:
        rendered = template.render(messages, tools=tools, add_generation_prompt=True, variables=arguments)
    except DataError:
        return None
    last = len(messages) - 1
    return rendered.between(last, None) if last in rendered.written() else None


@lru_cache(maxsize=64)
def _candidates(source: str, given: frozenset[str]) -> tuple[Arguments, ...]:
    """Arguments worth trying, one at a time."""
    from jinja2 import meta

    tree, known = parsed(source)
    names = sorted(meta.find_undeclared_variables(tree) - known - given - _GIVEN - _own_names(tree))
    compared = list(_compared(source))
    tried: list[Arguments] = []
    for name in names:
        values: list[object] = [False, True, *(value for other, value in compared if other == name)]
        tried.extend({name: value} for value in values[:_MOST_VALUES])
    return tuple(tried)


def _own_names(tree: nodes.Template) -> set[str]:
    """Names that a template sets itself, without asking whether they were given."""
    from jinja2 import nodes

    stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx in ("store", "param")}
    asked = [node.node for node in tree.find_all(nodes.Test) if node.name == "defined"]
    asked += [node.node for node in tree.find_all(nodes.Filter) if node.name in ("default", "d") and node.node]
    return stored - {node.name for node in asked if isinstance(node, nodes.Name)}


def _compared(source: str) -> Iterator[tuple[str, object]]:
    """Names, and the texts and numbers that a template compares them with."""
    from jinja2 import nodes

    tree, _ = parsed(source)
    for comparison in tree.find_all(nodes.Compare):
        names = [node.name for node in _inside(comparison.expr, nodes.Name)]
        values = [node.value for operand in comparison.ops for node in _inside(operand.expr, nodes.Const)]
        yield from ((names[0], value) for value in values if names and value is not None)


def _inside(node: nodes.Node, kind: type[_Node]) -> list[_Node]:
    """The nodes of a kind in a tree, its root too."""
    return [*([node] if isinstance(node, kind) else []), *node.find_all(kind)]
