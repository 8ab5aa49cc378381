"""The patterns by which a tokenizer cuts a text into words, as patterns of Python's ``re``, which is much faster.

Patterns of ``tokenizers`` are written for Oniguruma. Everything in them that depends on Unicode is an escape, such as
``\\p{L}`` or ``\\s``; here each becomes a list of characters that the tokenizer's own library was asked about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_CLASS = r"\\[pP]\{\w+\}|\\[sSdDwW]"
_ESCAPE = r"\\[rnt]|\\[^\w\s]"
_OUTSIDE = re.compile(
    rf"(?P<class>{_CLASS})|(?P<bracket>\[\^?(?!\]))|{_ESCAPE}"
    r"|\(\?(?:i?:|[!=]|<[!=])|[)|*+?]|\{\d+(?:,\d*)?\}(?![+?])|[^\\()\[\]{}^$.]"
)
_INSIDE = re.compile(rf"(?P<class>{_CLASS})|(?P<bracket>\])|{_ESCAPE}|(?!&&|--|\|\||~~)[^\\\[\]]")
"""What may follow in a pattern, outside and inside of brackets."""
_NO_CHARACTER = "\ud800"
"""A member of every list, so that none is empty; half of a surrogate pair is in no text that can be encoded."""

DIGITS = r"\p{digits}"
"""The characters that the pre-tokenizer ``Digits`` cuts out."""


def classes_of(pattern: str) -> set[str]:
    r"""The escapes for a class of characters.

    >>> sorted(classes_of(r"'s| ?\p{L}+|\s+(?!\S)"))
    ['\\S', '\\p{L}', '\\s']
    """
    return {found for found in re.findall(rf"\\\\|({_CLASS})", pattern) if found}


def translated(pattern: str, members: Mapping[str, str]) -> str | None:
    r"""A pattern of ``tokenizers`` as one of ``re``.

    Args:
        pattern: of Oniguruma.
        members: of each class, as they are written within brackets.

    Returns:
        ``None`` if there is anything in the pattern whose meaning could differ.

    >>> translated(r" ?\p{L}+|[^\p{L}\s]", {r"\p{L}": "a-z", r"\s": " "})
    ' ?[a-z]+|[^a-z ]'
    >>> translated("(a)$", {}) is None
    True
    """
    made, at, in_brackets = [], 0, False
    while at < len(pattern):
        found = (_INSIDE if in_brackets else _OUTSIDE).match(pattern, at)
        if found is None:
            return None
        text = found.group()
        if found["class"]:
            text = members[text] if in_brackets else f"[{members[text]}]"
        made.append(text)
        in_brackets ^= bool(found["bracket"])
        at = found.end()
    return "".join(made)


def members_of(name: str, characters: Iterable[str]) -> list[str]:
    r"""The characters that are in a class, by the library ``tokenizers``.

    >>> members_of(r"\p{Lu}", "aBc D1")
    ['B', 'D']
    """
    return list(filter(_test(name), characters))


def _test(name: str) -> Callable[[str], bool]:
    from tokenizers import Regex, pre_tokenizers

    if name == DIGITS:
        digits: Any = pre_tokenizers.Digits(individual_digits=True)
        return lambda character: len(digits.pre_tokenize_str(f"a{character}")) > 1
    split: Any = pre_tokenizers.Split(Regex(name), "removed")
    return lambda character: not split.pre_tokenize_str(character)


def bracketed(characters: Iterable[str]) -> str:
    r"""Characters as they are written within brackets, as ranges.

    >>> bracketed("abcx")
    '\\ud800-\\ud800\\x61-\\x63\\x78-\\x78'
    """
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    lone = ord(_NO_CHARACTER)
    return "".join(f"{_escape(first)}-{_escape(last)}" for first, last in [[lone, lone], *ranges])


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
