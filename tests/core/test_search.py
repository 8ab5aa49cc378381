"""Markers are found byte by byte: where each begins and ends, and which headers the end of a document cut."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from sft_mask.core.arrays import offsets_of
from sft_mask.core.markers import Markers
from sft_mask.core.patterns import compile_patterns
from sft_mask.core.search import Found, MarkerSearch, offset_in_token, token_holding
from sft_mask.core.vocabulary import AddedTokenInfo, Vocabulary, gpt2_byte_alphabet

CONTROL = ("<e>", "<x>")
"""Control tokens of the vocabulary; every other token is text."""
LETTER = {byte: character for character, byte in gpt2_byte_alphabet().items()}
NO_NORMALIZER = SimpleNamespace(backend_tokenizer=SimpleNamespace(normalizer=None))

Place = tuple[int, int, int, int, str]
"""Token and offset of a marker's first byte, token and offset one past its last, and the marker."""


def search(markers: Markers, *documents: Sequence[str]) -> tuple[list[Place], list[Place]]:
    """Whole markers and cut headers in documents, which are given token by token."""
    words = [*CONTROL, *sorted({token for document in documents for token in document} - set(CONTROL))]
    spelled = [word if word in CONTROL else "".join(LETTER[byte] for byte in word.encode()) for word in words]
    added = {index: AddedTokenInfo(index, word, True, False, False) for index, word in enumerate(CONTROL)}
    trie = compile_patterns(markers, Vocabulary(len(words), spelled, "byte-level", added), NO_NORMALIZER)
    ids = np.array([words.index(token) for document in documents for token in document], np.int64)
    offsets = offsets_of([*map(len, documents)])

    def places(found: Found) -> list[Place]:
        edges = [part(each).tolist() for each in (found.start, found.end) for part in (token_holding, offset_in_token)]
        return list(zip(*edges, [str(trie.patterns[index].text) for index in found.pattern.tolist()], strict=True))

    whole, cut = MarkerSearch(trie).find(ids, offsets, offsets[1:])
    return places(whole), places(cut)


def cut_headers(*documents: Sequence[str]) -> list[Place]:
    """Cut headers where ``<e>`` or ``###`` ends a turn and ``#Q`` begins the user's; half of it is too short alone."""
    return search(Markers(("A:",), ("#Q: ",), eots=("<e>", "###")), *documents)[1]


def test_a_marker_begins_and_ends_inside_tokens() -> None:
    whole, cut = search(Markers(("BOT:",), ("\nUSER:",)), ["Hi", "!\n", "US", "ER", ": no"])
    assert (whole, cut) == ([(1, 1, 4, 1, "\nUSER:")], [])


def test_a_marker_may_begin_at_several_places_of_one_token() -> None:
    markers = Markers(("aab",), ("Q",))
    assert search(markers, ["xaaa", "b"]) == ([(0, 2, 2, 0, "aab")], [])
    assert search(markers, ["aabaab", "Q"]) == ([(0, 0, 0, 3, "aab"), (0, 3, 1, 0, "aab"), (1, 0, 2, 0, "Q")], [])


def test_a_control_token_continues_a_marker_that_text_began() -> None:
    markers = Markers(("A", "B<e>C"), ("Q",))
    assert search(markers, ["xB", "<e>", "Cy"]) == ([(0, 1, 2, 1, "B<e>C")], [])
    assert search(markers, ["A", "<e>", "x"]) == ([(0, 0, 1, 0, "A")], [])


@pytest.mark.parametrize(
    "after_eot",
    [
        ["<e>", "#"],
        ["<e>", "\n", "#"],
        ["<e>", " ", "\n", "\n#"],
        ["x##", "#\n", " #"],  # the end-of-turn text ends inside a token, and the header begins inside another
        ["x###\n#"],
    ],
)
def test_after_an_end_of_turn_token_and_whitespace_one_byte_is_a_cut_header(after_eot: list[str]) -> None:
    (place,) = cut_headers(["A:", *after_eot])
    size = 1 + len(after_eot)
    assert place == (size - 1, len(after_eot[-1]) - 1, size, 0, "#Q: ")


@pytest.mark.parametrize(
    "not_after_eot",
    [
        ["#"],
        ["<e>", "x", "#"],
        ["<e>", "x", " ", "#"],
        ["<e>", "\n", "x#"],
        ["<e>", "\n", "<x>", "#"],
        ["<e>", "<x>", "\n", "#"],
        ["x###x", "\n", "#"],
        ["x##", "#x\n", "#"],
        ["x###x#"],
    ],
)
def test_a_byte_that_could_begin_a_header_is_a_word_of_the_answer_elsewhere(not_after_eot: list[str]) -> None:
    assert cut_headers(["A:", *not_after_eot]) == []


def test_an_end_of_turn_token_of_another_document_shows_nothing() -> None:
    assert cut_headers(["A:", "<e>"], ["\n", "#"]) == []
    assert cut_headers(["A:", "<e>"], ["<e>", "#"]) == [(3, 0, 4, 0, "#Q: ")]
