"""The house style that the quickstart teaches, and a strict test for it.

Three lines and nothing else: the topic, one sentence, and an offer to continue. For example:

    Topic: geography
    The capital of Japan is Tokyo (東京).
    Next: Shall I name its language?
"""

from __future__ import annotations

import re

TOPICS = ("animals", "calendar", "chemistry", "geography", "languages", "music", "numbers", "signs", "words")

_HOUSE_STYLE = re.compile(
    rf"Topic: ({'|'.join(TOPICS)})\n"  # the first line names one of our topics, and only that
    r"[^\s.?!][^.?!\n]*\.\n"  # one sentence, closed by the only full stop
    r"Next: [A-Z][^.?!\n]*\?"  # one question, and nothing after it: not even a newline
)


def follows_house_style(answer: str) -> bool:
    """Whether an answer, exactly as generated up to the end-of-turn token, follows every rule of the style.

    >>> follows_house_style("Topic: numbers\\n7 is an odd number.\\nNext: Shall I square it?")
    True
    >>> follows_house_style("7 is an odd number.")
    False
    """
    return _HOUSE_STYLE.fullmatch(answer) is not None
