"""Every mistake is answered with what was seen and with a way out; ``pytest -s tests/mistakes -k print`` shows all.

A module of this folder that ends in ``_mistakes`` adds its own: a dict called ``MISTAKES``.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from mistakes.mistake import Mistake

from sft_mask.errors import SftMaskError

MODULES = sorted({path.stem for path in Path(__file__).parent.glob("*_mistakes.py")} - {"test_mistakes"})
MISTAKES: dict[str, Mistake] = {
    f"{module.removesuffix('_mistakes')}: {name}": mistake
    for module in MODULES
    for name, mistake in import_module(f"mistakes.{module}").MISTAKES.items()
}
PYTHONS_OWN = re.compile(r"NoneType|Traceback|object at 0x|KeyError|AttributeError|ArrowInvalid")


@cache
def answer(name: str) -> str:
    with pytest.raises(SftMaskError) as caught:
        MISTAKES[name].make()
    return str(caught.value)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered_with_what_was_seen_and_a_way_out(name: str) -> None:
    mistake = MISTAKES[name]
    message = answer(name)
    assert mistake.seen in message
    assert mistake.way_out in message
    assert not PYTHONS_OWN.search(message), message
    assert message.index(mistake.seen) <= message.rindex(mistake.way_out), "first what was seen, then what to do"
    if mistake.follow is not None:
        mistake.follow()


def test_print_all_mistakes() -> None:
    """All messages, to be read in one sitting; none is said twice."""
    messages = {name: answer(name) for name in MISTAKES}
    for name, message in messages.items():
        print(f"\n{name}\n    " + message.replace("\n", "\n    "))
    assert len(messages) >= 60
    assert len({*messages.values()}) == len(messages)
