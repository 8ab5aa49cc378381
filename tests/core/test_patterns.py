"""Markers become patterns of bytes and tokens, or an error that says what is wrong with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from support.tiny_tokenizers import byte_level, encode, sentencepiece, swallowing, word_level
from tokenizers import AddedToken, normalizers, processors

from sft_mask.core.markers import Markers
from sft_mask.core.patterns import Kind, MarkerTrie, Step, compile_patterns, marker_atoms, token_atom
from sft_mask.core.vocabulary import AddedTokenInfo, Vocabulary, read_vocabulary
from sft_mask.errors import MarkerError

START, STOP = "<|im_start|>", "<|im_end|>"
NO_NORMALIZER = SimpleNamespace(backend_tokenizer=SimpleNamespace(normalizer=None))


def atoms(marker: Any, tokenizer: Any) -> list[str]:
    """Atoms in a form to read: text, and the names of control tokens."""
    vocabulary = read_vocabulary(tokenizer)
    shown: list[str] = []
    text = b""
    for atom in marker_atoms(marker, vocabulary, tokenizer):
        if atom < 256:
            text += bytes([atom])
            continue
        shown.extend([text.decode()] if text else [])
        shown.append(tokenizer.convert_ids_to_tokens(atom - 256))
        text = b""
    return [*shown, text.decode()] if text else shown


def compiled(tokenizer: Any, markers: Markers) -> MarkerTrie:
    return compile_patterns(markers, read_vocabulary(tokenizer), tokenizer)


def test_control_tokens_in_a_marker_are_ids_and_the_rest_is_bytes():
    assert atoms(f"\n{START}user\n東", byte_level()) == ["\n", START, "user\n東"]


def test_an_added_token_that_is_not_special_is_text():
    assert atoms("<think>\n", byte_level(added=["<think>"])) == ["<think>\n"]


def test_the_longest_control_token_is_the_one_that_stands_there():
    tokenizer = byte_level(specials=("<|a|>", "<|a|>b"))
    assert atoms("<|a|>b<|a|>c", tokenizer) == ["<|a|>b", "<|a|>", "c"]


def test_blanks_that_a_control_token_eats_are_in_no_pattern():
    assert atoms("<|user|>\nA<|end|>\n<|assistant|>\n", swallowing()) == ["<|user|>", "A", "<|end|>", "<|assistant|>"]
    left = byte_level(specials=[AddedToken("<m>", special=True, normalized=False, lstrip=True)])
    assert atoms("A \n<m> B", left) == ["A", "<m>", " B"]


@pytest.mark.parametrize(("side", "expected"), [("lstrip", "A<m>\nB"), ("rstrip", "A\n<m>B")])
def test_blanks_that_an_added_token_eats_are_in_no_pattern_though_it_is_not_special(side: str, expected: str) -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<m>", normalized=False, **{side: True})])
    assert read_vocabulary(tokenizer).bytes_of(encode(tokenizer, "A\n<m>\nB")) == expected.encode()
    assert atoms("A\n<m>\nB", tokenizer) == [expected]


def test_a_marker_is_normalized_as_rows_are():
    tokenizer = byte_level(normalizer=normalizers.NFC())
    assert atoms("e\u0301:", tokenizer) == ["é:"]
    assert atoms("\u0307:", tokenizer) == ["\u0307:"]
    assert atoms("▁1:", tokenizer) == ["▁1:"]
    assert atoms("A0:", byte_level(normalizer=normalizers.Replace("0", "O"))) == ["AO:"]


def test_sentencepiece_puts_no_blank_in_front_of_a_marker():
    assert atoms("### A: ", sentencepiece()) == ["### A: "]
    assert atoms(" 東:", sentencepiece()) == [" 東:"]


def test_ids_are_the_text_that_they_stand_for():
    tokenizer = byte_level(["user"])
    assert atoms(encode(tokenizer, f"{START}user\n"), tokenizer) == [START, "user\n"]


def test_ids_and_text_of_an_opaque_tokenizer_are_whole_tokens():
    tokenizer = word_level()
    before = [("[SEP]", tokenizer.convert_tokens_to_ids("[SEP]"))]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("[SEP] $A", special_tokens=before)
    expected = [token_atom(token) for token in tokenizer.convert_tokens_to_ids(["user", ":"])]
    vocabulary = read_vocabulary(tokenizer)
    assert list(marker_atoms("user :", vocabulary, tokenizer)) == expected
    assert list(marker_atoms(tuple(encode(tokenizer, "user :")), vocabulary, tokenizer)) == expected


def test_the_first_and_the_last_id_may_be_a_marker() -> None:
    assert [pattern.text for pattern in compiled(byte_level(), Markers(((0,),), ((258,),))).patterns] == [(0,), (258,)]


@pytest.mark.parametrize("outside", [-1, 259, 100_000])
def test_an_id_that_the_tokenizer_does_not_have_is_refused(outside: int):
    match = rf"The marker \(5, {outside}\) holds the id {outside}, but .* has the ids 0 to 258"
    with pytest.raises(MarkerError, match=match):
        compiled(byte_level(), Markers(((5, outside),), ("U",)))


# patterns


def test_one_marker_for_two_roles_is_refused_however_it_is_spelled():
    tokenizer = byte_level()
    for twin in ("A:", tuple(encode(tokenizer, "A:"))):
        with pytest.raises(MarkerError, match=r"is the same as the response marker 'A:'"):
            compiled(tokenizer, Markers(("A:",), (twin,)))
        with pytest.raises(MarkerError, match=r"is the same as the response marker 'A:'"):
            compiled(tokenizer, Markers(("A:",), ("U",), eots=(twin,)))


def test_a_marker_without_a_token_is_refused():
    with pytest.raises(MarkerError, match=r"'\\n' has no token in"):
        compiled(word_level(), Markers(("\n",), ("user",)))


def test_the_kinds_follow_what_the_markers_are_for():
    trie = compiled(byte_level(), Markers(("A",), ("U",), others=("S",), eots=(STOP,)))
    assert [(pattern.text, pattern.kind) for pattern in trie.patterns] == [
        ("A", Kind.RESPONSE),
        ("U", Kind.OTHER),
        ("S", Kind.OTHER),
        (STOP, Kind.EOT),
    ]


def test_the_first_token_of_a_header_stops_where_that_is_said_or_where_it_is_a_stop():
    said = ("S", f"{STOP}S")
    markers = Markers(("A",), ("U", f"{STOP}\nU"), others=said, eots=(STOP,), eot_headers=said)
    stopping = {pattern.text for pattern in compiled(byte_level(), markers).patterns if pattern.first_token_ends_turn}
    assert stopping == {f"{STOP}\nU", f"{STOP}S"}, "half a header in plain text stops nothing"


def test_a_header_ends_a_turn_by_its_first_token_if_that_is_an_added_token_or_its_id() -> None:
    tokenizer = byte_level(added=["[INST]"])
    ids = [tuple(encode(tokenizer, text)) for text in (f"{STOP}V", "VV")]
    headers = ("[INST]U", "x[INST]", f"{STOP}U", "U", *ids)
    patterns = compiled(tokenizer, Markers(("A",), headers, eot_headers=headers)).patterns
    assert [pattern.text for pattern in patterns if pattern.first_token_ends_turn] == ["[INST]U", f"{STOP}U", ids[0]]


def test_a_separator_stands_before_every_header_that_is_text():
    trie = compiled(byte_level(), Markers(("A",), ("U", (5, 6)), separator="\n"))
    assert [pattern.text for pattern in trie.patterns] == ["A", "\nA", "U", (5, 6), "\nU"]


def test_text_behind_a_control_token_may_have_a_blank_glued_in_front():
    def texts(legacy: bool, bos: bool = False, user: str = "U") -> list[bytes]:
        tokenizer = sentencepiece(legacy=legacy)
        if bos:
            before = processors.TemplateProcessing("</s> $A", special_tokens=[("</s>", encode(tokenizer, "</s>")[0])])
            tokenizer.backend_tokenizer.post_processor = before
        patterns = compiled(tokenizer, Markers(("<s>A",), (user,))).patterns
        return [bytes(atom for atom in pattern.atoms if atom < 256) for pattern in patterns]

    assert texts(legacy=True) == texts(legacy=True, bos=True) == [b"A", b" A", b"U"]
    assert texts(legacy=True, user="<s>U") == [b"A", b" A", b"U", b" U"]
    assert texts(legacy=False) == [b"A", b"U"]


def test_text_behind_an_added_token_that_is_not_special_may_have_a_blank_glued_in_front_too():
    tokenizer = sentencepiece()
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    ids = encode(tokenizer, "<s>A<think>\nyes")
    trie = compiled(tokenizer, Markers(("<s>A<think>\n",), ("U",)))
    assert bytes(atom for atom in trie.patterns[1].atoms if atom < 256) == b" A<think> \n"
    spelled = b"".join(read_vocabulary(tokenizer).token_bytes(token) for token in ids)
    assert spelled == b"<s> A<think> \nyes"


def test_blanks_before_a_control_token_may_have_been_eaten_by_another():
    trie = compiled(swallowing(), Markers(("\n<|assistant|>\n",), ("\n<|user|>", "x<|user|>", "\n")))
    assert [(pattern.text, bytes(atom for atom in pattern.atoms if atom < 256)) for pattern in trie.patterns] == [
        ("\n<|assistant|>\n", b"\n"),
        ("\n<|assistant|>\n", b""),
        ("\n<|user|>", b"\n"),
        ("\n<|user|>", b""),
        ("x<|user|>", b"x"),
        ("\n", b"\n"),
    ]


def test_any_added_token_that_eats_blanks_may_have_eaten_those_before_a_control_token() -> None:
    tokenizer = byte_level()
    start = token_atom(tokenizer.convert_tokens_to_ids(START))
    markers = Markers((f"\n{START}A",), ("U",))
    assert [pattern.atoms for pattern in compiled(tokenizer, markers).patterns] == [(10, start, 65), (85,)]
    tokenizer.add_tokens([AddedToken("<end>", normalized=False, rstrip=True)])
    assert encode(tokenizer, f"<end>\n{START}A") == tokenizer.convert_tokens_to_ids(["<end>", START, "A"])
    assert [pattern.atoms for pattern in compiled(tokenizer, markers).patterns] == [(10, start, 65), (start, 65), (85,)]


def test_the_first_id_may_be_a_control_token_that_swallows_whitespace() -> None:
    names = ["<c>", "A", "U", "\u010a"]
    vocabulary = Vocabulary(4, names, "byte-level", {0: AddedTokenInfo(0, "<c>", True, False, True)})
    trie = compile_patterns(Markers(("\n<c>A",), ("U",)), vocabulary, NO_NORMALIZER)
    control = token_atom(0)
    assert [pattern.atoms for pattern in trie.patterns] == [(10, control, 65), (control, 65), (85,)]
    for header in ("<c>U", (0, 2)):
        ends = compile_patterns(Markers(("A",), (header,), eot_headers=(header,)), vocabulary, NO_NORMALIZER)
        assert [pattern.first_token_ends_turn for pattern in ends.patterns] == [False, True]
        assert ends.cut_headers[ends.step(0, 0).node] == 1


# reading tokens


def trie_of(*markers: str, words: tuple[str, ...] = ()) -> tuple[MarkerTrie, Any]:
    tokenizer = byte_level(words)
    return compiled(tokenizer, Markers(markers, (START,))), tokenizer


def test_reading_a_token_gives_the_longest_marker_in_it_and_where_that_ends():
    trie, tokenizer = trie_of("A", "A:", words=("A: ", "A:", "AB"))
    steps = {word: trie.step(0, encode(tokenizer, word)[0]) for word in ("A: ", "A:", "AB", "A", "B")}
    texts = {word: trie.patterns[step.pattern].text if step.pattern >= 0 else None for word, step in steps.items()}
    assert texts == {"A: ": "A:", "A:": "A:", "AB": "A", "A": "A", "B": None}
    assert {word: step.used for word, step in steps.items()} == {"A: ": 2, "A:": 0, "AB": 1, "A": 0, "B": 0}
    assert {word: step.node >= 0 for word, step in steps.items()} == {
        "A: ": False,
        "A:": False,
        "AB": False,
        "A": True,
        "B": False,
    }


def test_a_step_leads_nowhere_where_no_marker_goes_on() -> None:
    control, a, b, hole = range(4)
    added = {control: AddedTokenInfo(control, "<c>", True, False, False)}
    vocabulary = Vocabulary(4, ["<c>", "A", "B", None], "byte-level", added)
    trie = compile_patterns(Markers(("<c>",), ("AB",)), vocabulary, NO_NORMALIZER)
    whole_control, whole_text, nothing = Step(-1, 0, 0), Step(-1, 1, 0), Step(-1, -1, 0)
    assert [trie.step(0, token) for token in (control, b, hole)] == [whole_control, nothing, nothing]
    begun = trie.step(0, a).node
    assert [trie.step(begun, token) for token in (control, a, b, hole)] == [nothing, nothing, whole_text, nothing]


def test_of_two_markers_with_the_same_tokens_the_first_is_found() -> None:
    trie = compiled(byte_level(), Markers(("A", (65,)), ("U", (85,))))
    assert [trie.step(0, token).pattern for token in b"AU"] == [0, 2]


def test_reading_may_begin_inside_a_token():
    trie, tokenizer = trie_of("A:", words=("xA:y",))
    assert trie.step(0, encode(tokenizer, "xA:y")[0], skip=1).used == 3


def test_a_control_token_is_never_read_as_its_text():
    trie, tokenizer = trie_of("<", words=())
    assert trie.step(0, encode(tokenizer, STOP)[0]).pattern == -1
    assert trie.first_bytes == {ord("<")}
    assert trie.first_ids == {tokenizer.convert_tokens_to_ids(START)}


def test_half_a_header_of_four_bytes_or_more_or_its_control_token_is_a_cut_header():
    tokenizer = byte_level()
    trie = compiled(tokenizer, Markers(("### Answer:",), (f"{START}user",), eots=("stop it now",)))

    def cut(text: str) -> object:
        node = 0
        for token in encode(tokenizer, text):
            node = trie.step(node, token).node
        found = int(trie.cut_headers[node])
        return None if found == -1 else trie.patterns[found].text

    assert [cut(text) for text in ("###", "### A", "### An", "### Answer")] == [
        None,
        None,
        "### Answer:",
        "### Answer:",
    ]
    assert [cut(text) for text in (START, f"{START}us")] == [f"{START}user"] * 2
    assert cut("stop it no") is None


@pytest.mark.parametrize("headers", [(f"{START}U", f"{START}V"), (f"{START}V", f"{START}U")])
def test_of_headers_that_are_cut_off_alike_one_whose_first_token_ends_the_turn_counts(headers: tuple[str, str]) -> None:
    trie = compiled(byte_level(), Markers(("A",), headers, eot_headers=(f"{START}U",)))
    (start,) = trie.first_ids
    node = trie.step(0, start).node
    assert [trie.patterns[cut[node]].text for cut in (trie.cut_headers, trie.begun_headers)] == [f"{START}U"] * 2
