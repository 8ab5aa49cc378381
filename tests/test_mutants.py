"""Small mistakes that tests must notice: their list, the script that makes them, and tests that they called for."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, load_from_disk
from support.tiny import chats, expected, tokenized, tokenizer
from support.tiny_chat import CHATML, chat, conversation, ids_of, prepared
from support.tiny_tokenizers import byte_level, encode, sentencepiece

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.markers import Markers, compile_patterns
from sft_mask.core.packing import Pieces, cut_at
from sft_mask.core.policy import Policy
from sft_mask.core.regions import Region, in_regions
from sft_mask.core.spans import SpanFinder, Turns
from sft_mask.core.token_weights import Graded, grade, group_names
from sft_mask.core.vocabulary import read_vocabulary
from sft_mask.data.batches import Tally
from sft_mask.data.cache import schema, store, stored
from sft_mask.data.columns import list_values, signatures
from sft_mask.data.conversations import Decoder
from sft_mask.data.dataset import fingerprint_of, label_dataset
from sft_mask.data.masker import MaskedBatch, Masker, OnAmbiguous
from sft_mask.data.prelabelled import keep_labels
from sft_mask.data.setup import build_masker, read_tokenizer, sample_rows
from sft_mask.errors import AmbiguousRowError, DataError
from sft_mask.templates.align import fit_to_row
from sft_mask.templates.chat_template import ChatTemplate
from sft_mask.templates.detect import detect_markers, proven_markers
from sft_mask.templates.render import render
from sft_mask.templates.resolve import resolve
from sft_mask.templates.turns import ConversationAligner
from sft_mask.trainer.hook import MaskState, _weight_of_step, without_repeats
from sft_mask.trainer.weighted_loss import WeighedModel

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "mutate.py"


@cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module
    spec.loader.exec_module(module)
    return module


# the list


def test_every_mutant_changes_a_text_that_stands_once_into_code_that_compiles() -> None:
    faults = []
    for mutant in script().read_mutants():
        try:
            assert mutant.applied((ROOT / mutant.file).read_text("utf-8")) != (ROOT / mutant.file).read_text("utf-8")
        except script().MutationError as error:
            faults.append(f"{mutant.name}: {error}")
    assert not faults


def test_every_mutant_has_a_name_of_its_own_and_tests_that_are_there() -> None:
    mutants = script().read_mutants()
    assert len({mutant.name for mutant in mutants}) == len(mutants) >= 50
    for mutant in mutants:
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert (ROOT / file).is_file(), f"{mutant.name}: {file}"
            assert name or file != "tests/test_mutants.py", f"{mutant.name}: this file notices every change of a text"
            found = re.search(rf"^def {re.escape(name)}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)
            assert found or not name, f"{mutant.name}: {test}"


# the script


def mutant(name: str, old: str, new: str) -> str:
    entry = {"name": name, "file": "sft_mask/sums.py", "old": old, "new": new, "tests": ["tests/test_sums.py"]}
    return "[[mutant]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with one function that is tested and one that is not."""
    for folder in ("sft_mask", "tests", "scripts"):
        (tmp_path / folder).mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "sft_mask" / "__init__.py").touch()
    (tmp_path / "sft_mask" / "sums.py").write_text(
        "def add(a, b):\n    return a + b\n\n\ndef double(number):\n    return 2 * number\n"
    )
    test = "from sft_mask.sums import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"
    (tmp_path / "tests" / "test_sums.py").write_text(test)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


def mutate(project: Path, *options: str) -> tuple[int, str, dict[str, str]]:
    """The exit code, what was printed, and the verdict on each mutant."""
    written = project / "outcomes.json"
    command = [sys.executable, str(project / "scripts" / "mutate.py"), "--json", str(written), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    outcomes = json.loads(written.read_text()) if written.exists() else []
    return done.returncode, done.stdout + done.stderr, {one["mutant"]: one["verdict"] for one in outcomes}


def test_a_mutant_is_killed_by_a_failed_test_alone(project: Path) -> None:
    source = (project / "sft_mask" / "sums.py").read_text()
    mutants = [
        mutant("sums: minus", "a + b", "a - b"),
        mutant("doubles: three times", "2 * number", "3 * number"),
        mutant("no import", "def add(a, b):", "def plus(a, b):"),
        mutant("no text", "a * b", "a + b"),
        mutant("two texts", "return", "return not"),
        mutant("no code", "a + b", "a +"),
    ]
    (project / "scripts" / "mutants.toml").write_text("".join(mutants))
    code, _, verdicts = mutate(project, "--only", "doubles", "--only", "no ", "--only", "two")
    assert code == 1
    assert list(verdicts.values()) == ["survived", "bad", "bad", "bad", "bad"]
    code, _, verdicts = mutate(project, "--only", "sums")
    assert (code, verdicts) == (0, {"sums: minus": "killed"})
    assert (project / "sft_mask" / "sums.py").read_text() == source


def test_tests_that_are_red_without_a_change_show_nothing(project: Path) -> None:
    (project / "scripts" / "mutants.toml").write_text(mutant("sums: minus", "a + b", "a - b"))
    (project / "tests" / "test_sums.py").write_text("def test_add():\n    assert False\n")
    code, said, verdicts = mutate(project)
    assert (code, verdicts) == (1, {})
    assert "a test is red without any change: tests.test_sums::test_add" in said


# spans and regions

FORMAT = Markers(response=("<a>",), instruction=("<q>",), others=("<s>",), eots=("<e>",), complete=True)


def finder(markers: Markers = FORMAT) -> SpanFinder:
    made = byte_level(specials=("<q>", "<a>", "<e>", "<s>"))
    trie = compile_patterns(markers, read_vocabulary(made), made)
    return SpanFinder(trie, complete=markers.complete)


def turns_of(*documents: str, markers: Markers = FORMAT) -> list[tuple[int, int, bool]]:
    """First token, one past the last, and whether the turn is cut."""
    rows = [encode(byte_level(specials=("<q>", "<a>", "<e>", "<s>")), document) for document in documents]
    offsets = np.cumsum([0, *map(len, rows)])
    found = finder(markers).find(np.array([token for row in rows for token in row], np.int64), offsets)
    return list(zip(found.start.tolist(), found.end.tolist(), found.cut.tolist(), strict=True))


def test_eight_blanks_may_follow_a_stop_at_the_end_of_a_row_and_nine_show_that_it_was_quoted() -> None:
    assert turns_of("<a>x<e>" + "\n" * 8) == [(1, 3, False)]
    assert turns_of("<a>x<e>" + "\n" * 9) == [(1, 12, True)]


def test_an_empty_answer_right_behind_a_stop_keeps_its_own() -> None:
    assert turns_of("<q>x<e><a><e><q>y") == [(4, 5, False)]


def test_an_answer_at_the_end_of_its_document_is_cut_though_the_next_begins_with_a_header() -> None:
    assert turns_of("<a>x", "<q>y<a>z<e>") == [(1, 2, True), (5, 7, False)]


def test_words_between_a_quoted_stop_and_the_stop_are_the_answers_where_other_headers_may_be_unknown() -> None:
    unknown = Markers(response=("<a>",), instruction=("<q>",), eots=("<e>",))
    assert turns_of("<a>x<e>y<e><q>z", markers=unknown) == [(1, 5, False)]


def test_half_a_header_at_the_end_of_a_row_is_no_answer_and_less_of_it_is() -> None:
    plain = Markers(response=("<a>",), instruction=("#### Q: ",))
    assert turns_of("<a>x####", markers=plain) == [(1, 2, False)]
    assert turns_of("<a>x###", markers=plain) == [(1, 5, True)]


def test_a_header_that_is_cut_right_behind_the_stop_shows_that_the_stop_was_one() -> None:
    plain = Markers(response=("<a>",), instruction=("\n### Q:",), eots=("<e>",), complete=True)
    assert turns_of("<a>x<e>\n###", markers=plain) == [(1, 3, False)]


def test_a_header_right_behind_one_of_two_that_overlap_is_seen() -> None:
    plain = Markers(response=("A:",), instruction=("\n Q:", " Q:"))
    assert turns_of("\n Q:A:x", markers=plain) == [(6, 7, True)]


def test_a_row_that_lost_its_beginning_has_its_header_at_the_first_token() -> None:
    one, no = np.array([True]), np.array([False])
    whole = Turns.of_model(np.array([6]), np.array([9]), one, no, np.array([0]), np.array([2]), np.array([8]))
    found = fit_to_row(whole, np.arange(10), np.array([50, 6, 7, 8, 9]), lambda ids: False)
    assert (found.start.tolist(), found.end.tolist(), found.header.tolist()) == ([1], [4], [0])


def test_an_answer_that_ends_with_its_row_is_not_cut() -> None:
    yes, no = np.array([True]), np.array([False])
    whole = Turns.of_model(np.array([6]), np.array([10]), yes, no, np.array([0]), np.array([5]), np.array([9]))
    found = fit_to_row(whole, np.arange(10), np.arange(10), lambda ids: False)
    assert (found.cut.tolist(), found.has_eot.tolist()) == ([False], [True])


def test_weights_of_regions_that_overlap_are_multiplied() -> None:
    vocabulary = read_vocabulary(byte_level())
    yes = np.array([True])
    answer = Turns.of_model(np.array([0]), np.array([4]), ~yes, ~yes, np.array([0]), np.array([0]), np.array([4]))
    regions = [Region(pattern="abc", weight=0.5), Region(pattern="bcd", weight=0.25)]
    factor, number = in_regions(np.array([*b"abcd"]), answer, vocabulary, regions)
    assert factor.tolist() == [0.5, 0.125, 0.125, 0.25]
    assert number.tolist() == [1, 2, 2, 2]


def test_a_bar_in_the_name_of_a_control_token_is_no_blank() -> None:
    made = sentencepiece(specials=("<s>", "<end▁of▁answer>"))
    assert read_vocabulary(made).text(encode(made, "<end▁of▁answer>")) == "<end▁of▁answer>"


# policy, grading, counting


def test_the_model_is_the_assistant_under_its_other_name() -> None:
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "model")]
    assert Policy(roles={"model": 0.5}).message_weights(messages) == [0.0, 0.5, 0.5]


def single_tokens(count: int) -> Turns:
    """Turns of one token each, one token apart, in one document."""
    start, yes = np.arange(1, 2 * count, 2), np.ones(count, np.bool_)
    return Turns.of_model(start, start + 1, ~yes, ~yes, start * 0, start - 1, start + 1)


def graded(turns: Turns, size: int, policy: Policy, factor: Sequence[float] | None = None) -> tuple[list[int], int]:
    ids, trained = np.arange(size), np.zeros(size, np.bool_)
    trained[turns.start] = True
    labels = np.where(trained, ids, IGNORE_INDEX).astype(np.int32)
    factors = np.ones(size) if factor is None else np.array(factor)
    none = np.zeros(size, np.int64)
    batch = Graded(ids, labels, turns, turns, np.array([0, size]), factors, none, np.ones(size, np.bool_))
    encoded, prompt = grade(batch, policy)
    return encoded.tolist(), prompt


def test_turns_beyond_the_sixteenth_are_measured_with_it() -> None:
    policy = Policy(measure="turn")
    labels, _ = graded(single_tokens(18), 36, policy)
    names = group_names(policy)
    given = [names[label >> 24 & 0x7F] for label in labels[1::2]]
    assert given == [*(f"turn_{number}" for number in range(1, 16)), *["turn_16_on"] * 3]


def test_a_token_of_the_prompt_that_weighs_nothing_is_not_trained() -> None:
    labels, prompt = graded(single_tokens(1), 4, Policy(prompt_weight=0.5), [1.0, 1.0, 0.0, 1.0])
    assert (labels[2], prompt) == (IGNORE_INDEX, 2)


def masker(policy: Policy | None = None, on_ambiguous: OnAmbiguous = "error", *, aligner: bool = False) -> Masker:
    made, vocabulary, template = chat("chatml")
    resolved = resolve(vocabulary, made, template)
    exact = ConversationAligner(template, resolved.markers, vocabulary, made) if aligner else None
    return Masker(resolved.finder, resolved.markers, policy or Policy(), exact, on_ambiguous)


def ids(*said: str) -> list[int]:
    made, _, template = chat("chatml")
    return ids_of(made, template.render(conversation(*said)).text)


def masked(rows: list[list[int]], using: Masker | None = None, first_row: int = 0, **columns: Any) -> MaskedBatch:
    lists = {name: pa.array(values) for name, values in columns.items()}
    table = pa.table({"input_ids": pa.array(rows, pa.list_(pa.int32())), **lists})
    return (using or masker()).mask(table, Decoder(), first_row=first_row)


def test_a_row_with_two_cut_documents_is_one_row() -> None:
    document = ids("Hi", "Yes")[:-3]
    report = masked([document * 2, ids("So", "No")], seq_lengths=[[len(document)] * 2, [len(ids("So", "No"))]]).report
    assert (report.turns_cut, report.rows_cut) == (2, 1)


def test_a_stop_that_was_masked_before_is_found_and_not_trained() -> None:
    row = ids("Hi", "Yes")
    stop = chat("chatml")[0].convert_tokens_to_ids("<|im_end|>")
    report = masked([row], labels=[[IGNORE_INDEX if token == stop else token for token in row]]).report
    assert (report.turns_with_stop, report.stops_trained, report.turns_trained) == (1, 0, 1)


def test_rows_that_train_nothing_say_whether_the_policy_or_somebody_before_left_them_out() -> None:
    row, cut = ids("Hi", "Yes"), ids("Hi", "Yes")[:-3]
    before = [[IGNORE_INDEX] * len(row), cut, cut, cut[:5]]
    batch = masked([row, cut, cut, cut[:5]], masker(Policy(cut_answers="mask")), labels=before)
    assert batch.report.dropped_reasons == {
        "with answers that were masked before": 1,
        "without an answer that the policy trains": 2,
        "without an answer": 1,
    }


def test_documents_of_rows_that_train_nothing_are_not_counted() -> None:
    silent, row = ids("Hi"), ids("So", "No")
    report = masked([silent * 2, row], seq_lengths=[[len(silent)] * 2, [len(row)]]).report
    assert (report.rows, report.documents) == (1, 1)


def test_words_before_a_system_prompt_are_not_decided_and_their_row_is_counted_once() -> None:
    made, _, template = chat("chatml")
    asked = template.render(conversation("Hi", "Yes", system="Be kind")).text
    row = ids_of(made, "words of somebody<|im_end|>\n" + asked)
    using = masker(on_ambiguous="mask").for_pieces(Pieces("split", len(row)))
    batch = masked([row], using)
    assert chat("chatml")[1].text(batch.labels[batch.labels != IGNORE_INDEX].tolist()) == "Yes<|im_end|>"
    report = batch.report
    assert (report.rows, report.rows_ambiguous, report.rows_unchecked) == (1, 1, 0)


def test_a_stop_that_the_next_row_begins_with_is_the_next_row_s() -> None:
    one, no = np.array([True]), np.array([False])
    turn = Turns.of_model(np.array([2]), np.array([9]), one, no, np.array([0]), np.array([0]), np.array([8]))
    pieces = cut_at(turn, np.array([0, 8, 16]))
    assert (pieces.start.tolist(), pieces.end.tolist()) == ([2, 8], [8, 9])
    assert pieces.has_eot.tolist() == [False, True]


def test_of_an_answer_that_nothing_ends_the_last_piece_alone_is_cut() -> None:
    yes, no = np.array([True]), np.array([False])
    turn = Turns.of_model(np.array([2]), np.array([12]), no, yes, np.array([0]), np.array([0]), np.array([12]))
    assert cut_at(turn, np.array([0, 8, 16])).cut.tolist() == [False, True]


def test_one_disagreement_among_the_first_rows_of_a_shape_is_enough_to_distrust_markers() -> None:
    signatures = masker().signatures
    for agreed in (True, False, True, True, True):
        signatures.add_comparison(5, agreed=agreed)
    assert not signatures.trusts(5)
    for _ in range(3):
        signatures.add_comparison(6, agreed=True)
    assert signatures.trusts(6)


def test_a_row_with_another_number_of_answers_than_its_messages_is_never_left_to_markers() -> None:
    said = [conversation("Hi", "Yes")] * 5
    tokens = [*[ids("Hi", "Yes")] * 4, ids("Hi", "Yes", "So", "No")]
    with pytest.raises(AmbiguousRowError, match="Row 4 cannot be decided"):
        masked(tokens, masker(aligner=True), messages=said)


def test_a_row_without_an_answer_trains_no_prompt_either() -> None:
    batch = masked([ids("Hi"), ids("So", "No")], masker(Policy(prompt_weight=0.5)))
    assert set(batch.labels[: batch.offsets[1]].tolist()) == {IGNORE_INDEX}
    assert (batch.labels[batch.offsets[1] :] != IGNORE_INDEX).all()


def test_a_bad_weight_at_the_first_token_of_a_row_names_that_row() -> None:
    first, second = ids("Hi", "Yes"), ids("So", "No")
    weights = [[1.0] * len(first), [-1.0, *[1.0] * (len(second) - 1)]]
    with pytest.raises(DataError, match=r"^Row 6 has the loss weight -1\.0"):
        masked([first, second], first_row=5, loss_weights=weights)


# columns and datasets

CHATS = chats(12, seed=8)


def test_a_slice_of_lists_holds_its_own_values_only() -> None:
    values, offsets = list_values(pa.array([[1], [2, 3], [4]])[1:])
    assert (values.tolist(), offsets.tolist()) == ([2, 3, 4], [0, 2, 3])


def test_messages_with_other_fields_have_another_shape() -> None:
    texts = pa.array([json.dumps({"role": "user", "content": "a", field: "x"}) for field in ("name", "mood", "name")])
    items = pa.ExtensionArray.from_storage(pa.json_(pa.string()), texts)
    key = signatures(pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), items), ()).signature.tolist()
    assert key[0] == key[2] != key[1]


def settings(
    using: Any, chat_template: str | None = None, instruction: str | None = None, response: str | None = None
) -> tuple[Masker, tuple[object, ...]]:
    parts = {"instruction_part": instruction, "response_part": response}
    return build_masker(read_tokenizer(using, chat_template), [], policy=Policy(), on_ambiguous="error", **parts)


def rows_of(conversations: list[Any], **columns: Any) -> Dataset:
    lists = {"input_ids": [tokenized(one) for one in conversations], "n": list(range(len(conversations)))}
    return Dataset.from_dict({**lists, **columns})


def test_rows_without_an_answer_are_dropped_from_the_middle_of_a_shuffle() -> None:
    silent = [{"role": "user", "content": "red"}]
    conversations = [CHATS[0], silent, CHATS[1], CHATS[2], silent, CHATS[3]]
    shuffled = rows_of(conversations).select([4, 0, 3, 1, 5, 2])
    made, _ = label_dataset(shuffled, *settings(tokenizer()))
    assert made["n"] == [0, 3, 5, 2]
    assert list(made["labels"]) == [expected(conversations[at]) for at in (0, 3, 5, 2)]


def test_two_parts_of_one_file_have_labels_of_their_own(tmp_path: Path) -> None:
    rows_of(CHATS).save_to_disk(str(tmp_path / "data"))
    whole = load_from_disk(str(tmp_path / "data"))
    for part in ([0, 1], [2, 3]):
        made, _ = label_dataset(whole.select(part[::-1]), *settings(tokenizer()))
        assert list(made["labels"]) == [expected(CHATS[at]) for at in part[::-1]]


def test_labels_that_are_too_many_are_counted_in_the_error() -> None:
    labels = [tokenized(one) for one in CHATS]
    labels[7] = [*labels[7], 1]
    size = len(tokenized(CHATS[7]))
    with pytest.raises(DataError, match=rf"row 7: there are {size + 1} labels for {size} input_ids"):
        label_dataset(rows_of(CHATS, labels=labels), *settings(tokenizer()))


def test_a_label_file_with_fewer_or_more_rows_is_not_taken(tmp_path: Path) -> None:
    batch = pa.record_batch([pa.array([[1], [2]], pa.list_(pa.int32())), pa.array([1, 1], pa.int32())], schema(False))
    path = tmp_path / "labels.arrow"
    store(path, schema(False), [batch], Tally(3))
    assert [stored(path, rows) is not None for rows in (1, 2, 3)] == [False, True, False]


def test_rows_of_a_masked_dataset_that_lost_their_answer_go_unless_all_stay() -> None:
    labels = [[IGNORE_INDEX, 5], [IGNORE_INDEX, IGNORE_INDEX], [IGNORE_INDEX, 6]]
    data = Dataset.from_dict({"input_ids": [[4, 5], [4, 5], [4, 6]], "labels": labels})
    assert keep_labels(data, 9)[0]["labels"] == [labels[0], labels[2]]
    assert keep_labels(data, 9, keep_all_rows=True)[0]["labels"] == labels


def test_rows_that_are_looked_at_are_spread_over_the_dataset() -> None:
    rows = sample_rows(Dataset.from_dict({"input_ids": [[number] for number in range(1000)]}), 5)
    assert [int(row[0]) for row in rows] == [0, 249, 499, 749, 999]


def test_the_name_of_a_label_file_knows_the_template_and_the_tokens() -> None:
    data, plain = rows_of(CHATS), prepared(CHATML)[0]
    other = byte_level([" the", "\n\n", "er", "京"], ["<|im_start|>", "<|im_end|>", "<s>", "</s>"])
    other.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    assert len(other) == len(plain)
    keys = [settings(plain), settings(plain, "{# for the same rows #}" + CHATML), settings(other, CHATML)]
    names = [fingerprint_of(data, key) for _, key in keys]
    assert len(set(names)) == len(names)
    assert fingerprint_of(data, settings(prepared(CHATML)[0])[1]) == names[0]


def test_the_name_of_a_label_file_knows_the_padding() -> None:
    names = set()
    for pad in ("<|pad|>", "<|im_end|>"):
        made = byte_level()
        made.pad_token = pad
        names.add(fingerprint_of(rows_of(CHATS), settings(made, None, "User: ", "Model: ")[1]))
    assert len(names) == 2


# templates and messages


def test_an_answer_that_the_template_leaves_open_is_not_cut() -> None:
    made, vocabulary, template = chat("glm4moe")
    assert detect_markers(made).open_end
    row = np.array(ids_of(made, template.render(conversation("Hi", "Yes")).text))
    turns = resolve(vocabulary, made, template).finder.find(row, np.array([0, len(row)]))
    assert turns.cut.tolist() == [False]


def test_one_source_with_other_arguments_has_other_markers() -> None:
    source = CHATML.replace("assistant\n", "{{ name }}\n").replace(
        "{{ message['role'] }}", "{{ name if message['role'] == 'assistant' else message['role'] }}"
    )
    made, vocabulary, _ = prepared(CHATML)
    for name in ("one", "another"):
        template = ChatTemplate.of(made, vocabulary, source, name=name)
        assert proven_markers(template, vocabulary, made).response == (f"<|im_start|>{name}\n",)


def test_a_common_beginning_that_ends_one_letter_before_a_control_token_does_is_cut() -> None:
    template = ChatTemplate("", {}, ("<|end|>",))
    assert template.whole_tokens_prefix("a<|end|>", "a<|end|x") == "a"
    assert template.whole_tokens_prefix("a<|end|>b", "a<|end|>c") == "a<|end|>"


def test_a_header_without_its_last_control_token_is_completed() -> None:
    made, vocabulary, template = chat("llama3")
    resolved = resolve(
        vocabulary,
        made,
        template,
        instruction="<|start_header_id|>user",
        response="<|start_header_id|>assistant",
    )
    assert resolved.markers.response == ("<|start_header_id|>assistant<|end_header_id|>\n\n",)
    assert resolved.from_template


def test_a_marker_at_the_end_of_the_tools_opens_no_turn() -> None:
    source = "{% if tools %}<|im_start|>system\n{{ tools }}<|im_end|>\n{% endif %}" + CHATML
    made, vocabulary, template = prepared(source)
    said, tools = conversation("Hi", "Yes"), "a clock <|im_start|>assistant\n"
    row = np.array(ids_of(made, template.render(said, tools=tools).text))
    turns = ConversationAligner(template, detect_markers(made), vocabulary, made).turns(said, row, tools=tools)
    spans = zip(turns.start.tolist(), turns.end.tolist(), strict=True)
    assert [vocabulary.text(row[low:high].tolist()) for low, high in spans] == ["Yes<|im_end|>"]


def test_without_its_calls_an_answer_keeps_every_letter_before_them() -> None:
    made, vocabulary, template = chat("qwen2_5")
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "here"}}}
    said = [*conversation("Hi"), {"role": "assistant", "content": "I look", "tool_calls": [call]}]
    row = np.array(ids_of(made, template.render(said).text))
    aligner = ConversationAligner(template, detect_markers(made), vocabulary, made)
    for calls, wanted in ((True, True), (False, False)):
        turns = aligner.turns(said, row, tool_calls=calls)
        (text,) = [vocabulary.text(row[low:high].tolist()) for low, high in zip(turns.start, turns.end, strict=True)]
        assert text.startswith("I look")
        assert (text != "I look") is wanted


def test_what_a_template_puts_into_somebodys_words_is_theirs() -> None:
    found = render(conversation("a(b"), "<{{ messages[0].content | replace('(', 'MARK') }}>")
    assert (found.text, found.message_of().tolist()) == ("<aMARKb>", [-1, 0, 0, 0, 0, 0, 0, -1])


def test_a_template_cannot_reach_behind_the_strings_that_it_is_given() -> None:
    with pytest.raises(DataError, match="refuses this conversation: SecurityError"):
        render(conversation("Hi"), "{{ messages.__class__.__mro__ }}")


# the loss


def test_the_weight_of_a_step_is_that_of_all_its_batches_on_all_ranks() -> None:
    half = 7 | (0x3F000000 ^ 0x3F800000) << 32  # the id 7 with the weight 0.5; 9 is a plain id
    batches = [{"labels": torch.tensor([[9, 9, half, IGNORE_INDEX]])}, {"labels": torch.tensor([[IGNORE_INDEX, half]])}]

    def gather(own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, torch.tensor([10.0])])

    args = SimpleNamespace(device="cpu", average_tokens_across_devices=True, world_size=2)
    trainer = SimpleNamespace(args=args, accelerator=SimpleNamespace(gather=gather))
    assert float(_weight_of_step(trainer, batches)) == 12.0
    args.average_tokens_across_devices = False
    assert float(_weight_of_step(trainer, batches)) == 2.0


def test_weights_are_laid_behind_the_tokens_that_prompt_learning_puts_in_front() -> None:
    weighed = WeighedModel(None, torch.ones(1, 4), None, None)
    weighed.log_probs = torch.zeros(1, 5)
    assert weighed.aligned(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[0.0, 0.0, 1.0, 2.0, 3.0]]


@pytest.mark.parametrize(("rank", "kept"), [(0, [True, True]), (1, [True, False])])
def test_rows_that_fill_up_the_last_batch_of_an_evaluation_are_not_graded(rank: int, kept: list[bool]) -> None:
    progress = SimpleNamespace(end_of_dataloader=True, remainder=3)
    ranks = SimpleNamespace(num_processes=2, process_index=rank, gradient_state=progress)
    inputs = {"labels": torch.full((2, 4), 5), "attention_mask": torch.ones(2, 4)}
    labels = without_repeats(inputs, ranks)["labels"]
    assert [bool((row == 5).all()) for row in labels] == kept
    assert [bool((row == IGNORE_INDEX).all()) for row in labels] == [not one for one in kept]


def test_a_split_of_the_trainer_is_known_and_its_twin_is_not() -> None:
    split, before = rows_of(CHATS[:1]), rows_of(CHATS[:1])
    state = MaskState(lambda *_: None, {"train": Tally(1)}, None, str, [(split, before)])  # type: ignore[arg-type]
    assert state.is_ours(split)
    assert not state.is_ours(before)
