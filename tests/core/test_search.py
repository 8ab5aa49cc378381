"""Markers are found byte by byte: where each begins and ends, and which headers the end of a document cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from support.reference_spans import find_markers, symbols_of

from sft_mask.core.arrays import offsets_of
from sft_mask.core.markers import Markers
from sft_mask.core.patterns import MarkerTrie, compile_patterns
from sft_mask.core.search import Found, MarkerSearch, offset_in_token, position_of, token_holding, tokens_before
from sft_mask.core.vocabulary import AddedTokenInfo, Vocabulary, gpt2_byte_alphabet

CONTROL = ("<e>", "<x>")
"""Control tokens of the vocabulary; every other token is text."""
LETTER = {byte: character for character, byte in gpt2_byte_alphabet().items()}
NO_NORMALIZER = SimpleNamespace(backend_tokenizer=SimpleNamespace(normalizer=None))

Place = tuple[int, int, int, int, str]
"""Token and offset of a marker's first byte, token and offset one past its last, and the marker."""


def compiled(markers: Markers, words: Sequence[str]) -> MarkerTrie:
    """The markers in a vocabulary of these words, by id."""
    spelled = [word if word in CONTROL else "".join(LETTER[byte] for byte in word.encode()) for word in words]
    added = {words.index(word): AddedTokenInfo(words.index(word), word, True, False, False) for word in CONTROL}
    return compile_patterns(markers, Vocabulary(len(words), spelled, "byte-level", added), NO_NORMALIZER)


def find(trie: MarkerTrie, rows: Sequence[Sequence[int]], padding: Sequence[int]) -> tuple[list[Place], list[Place]]:
    """Whole markers and cut headers in rows, each of which ends with so many tokens of padding."""
    ids = np.array([token for row in rows for token in row], np.int64)
    offsets = offsets_of([*map(len, rows)])

    def places(found: Found) -> list[Place]:
        edges = [part(each).tolist() for each in (found.start, found.end) for part in (token_holding, offset_in_token)]
        return list(zip(*edges, [str(trie.patterns[index].text) for index in found.pattern.tolist()], strict=True))

    whole, cut = MarkerSearch(trie).find(ids, offsets, offsets[1:] - np.array(padding, np.int64))
    return places(whole), places(cut)


def search(markers: Markers, *documents: Sequence[str]) -> tuple[list[Place], list[Place]]:
    """Whole markers and cut headers in documents, which are given token by token."""
    words = [*CONTROL, *sorted({token for document in documents for token in document} - set(CONTROL))]
    rows = [[words.index(token) for token in document] for document in documents]
    return find(compiled(markers, words), rows, [0] * len(rows))


def cut_headers(*documents: Sequence[str]) -> list[Place]:
    """Cut headers where ``<e>`` or ``###`` ends a turn and ``#Q`` begins the user's; half of it is too short alone."""
    return search(Markers(("A:",), ("#Q: ",), eots=("<e>", "###")), *documents)[1]


def test_a_position_is_a_token_and_an_offset_in_it() -> None:
    position = position_of(np.array([3, 3, 4])) + np.array([0, 1, 0])
    assert (token_holding(position).tolist(), offset_in_token(position).tolist()) == ([3, 3, 4], [0, 1, 0])
    assert tokens_before(position).tolist() == [3, 4, 4]


def test_markers_of_several_searches_are_joined_in_order() -> None:
    one, other = (Found(np.array(start), np.array(start) + 2, np.array(start) % 7) for start in ([10, 30], [0, 20]))
    joined = Found.joined(one, other)
    assert [joined.start.tolist(), joined.end.tolist(), joined.pattern.tolist()] == [
        [0, 10, 20, 30],
        [2, 12, 22, 32],
        [0, 3, 6, 2],
    ]
    none = Found.joined()
    assert (len(none), none.start.dtype, none.pattern.dtype) == (0, np.int64, np.int64)


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
    assert cut_headers(["A:", "<e>"], ["#"]) == []
    assert cut_headers(["A:", "<e>"], ["<e>", "#"]) == [(3, 0, 4, 0, "#Q: ")]


def test_each_document_may_end_with_a_cut_header() -> None:
    assert search(Markers(("Answer:",), ("#Q: ",), eots=("<e>",)), ["Ans", "w"], ["<e>", "#"], ["<e>", "\n", "#"]) == (
        [(2, 0, 3, 0, "<e>"), (4, 0, 5, 0, "<e>")],
        [(0, 0, 2, 0, "Answer:"), (3, 0, 4, 0, "#Q: "), (6, 0, 7, 0, "#Q: ")],
    )


def test_of_an_end_of_turn_text_that_overlaps_with_itself_the_last_counts() -> None:
    markers = Markers(("A:",), ("Q:", "--"), eots=("###",))
    assert search(markers, ["A:", "x", "##", "##", "##", "Q:"])[0] == [
        (0, 0, 1, 0, "A:"),
        (3, 1, 5, 0, "###"),
        (5, 0, 6, 0, "Q:"),
    ]
    assert search(markers, ["----", "-"])[0] == [(0, 0, 0, 2, "--"), (0, 2, 1, 0, "--")]


# against the slow reference


def a_case(rng: random.Random) -> tuple[Markers, list[list[str]], list[int]]:
    """Markers of few letters, so that they overlap, and documents with as many tokens of padding."""

    def text(most: int) -> str:
        return "".join(rng.choices(["a", "b", "c", "é", "\n", *CONTROL], [6, 6, 2, 1, 1, 1, 1], k=rng.randint(1, most)))

    first = rng.choice([("",), CONTROL])  # markers that all begin with control tokens are searched for in another way
    texts = sorted({rng.choice(first) + text(rng.choice((2, 4, 9))) for _ in range(12)})
    rng.shuffle(texts)
    markers = Markers(tuple(texts[::4]), tuple(texts[1::2]), eots=tuple(texts[2::4]))
    documents = []
    for _ in range(rng.randint(1, 12)):
        written = "".join(rng.choice([rng.choice(texts), text(3)]) for _ in range(rng.randint(0, 4)))
        documents.append(torn(rng, written[: len(written) - rng.choice((0, 0, 1, 2))]))
    return markers, documents, [rng.choice((0, 0, min(len(each), 2))) for each in documents]


def torn(rng: random.Random, text: str) -> list[str]:
    """Text as tokens: control tokens whole, everything else in pieces of one to four characters."""
    tokens = []
    while text:
        size = next((len(name) for name in CONTROL if text.startswith(name)), 0)
        size = size or rng.randint(1, min(4, *(len(text.partition(name)[0]) for name in CONTROL)))
        tokens.append(text[:size])
        text = text[size:]
    return tokens


def reference(
    trie: MarkerTrie, rows: Sequence[Sequence[int]], padding: Sequence[int]
) -> tuple[list[Place], list[Place]]:
    """What :func:`find` should give, from comparing slices of bytes; the name of a cut header may be another's."""
    found: tuple[list[Place], list[Place]] = [], []
    offset = 0
    for row, padded in zip(rows, padding, strict=True):
        symbols = [symbols_of(token, trie.vocabulary) for token in row[: len(row) - padded]]
        places = [(offset + at, byte) for at, token in enumerate(symbols) for byte in range(len(token))]
        places.append((offset + len(symbols), 0))
        for low, high, pattern in find_markers([symbol for token in symbols for symbol in token], trie.patterns):
            is_cut = high - low < len(pattern.atoms)
            found[is_cut].append((*places[low], *places[high], str(pattern.text)))
        offset += len(row)
    return found


def test_the_search_equals_the_slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_mask.core.arrays._IN_CACHE", 3)  # documents are longer than what is read at once
    rng = random.Random(0)
    for _ in range(200):
        markers, documents, padding = a_case(rng)
        words = [*CONTROL, *sorted({token for document in documents for token in document} - {*CONTROL})]
        rng.shuffle(words)
        trie = compiled(markers, words)
        unknown = len(words)
        rows = [[words.index(token) for token in document] for document in documents]
        rows = [[unknown if rng.random() < 0.02 else token for token in row] for row in rows]
        whole, cut = find(trie, rows, padding)
        expected, expected_cut = reference(trie, rows, padding)
        assert whole == expected, (markers, documents, padding)
        assert [place[:4] for place in cut] == [place[:4] for place in expected_cut], (markers, documents, padding)
