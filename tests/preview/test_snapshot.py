"""A snapshot is small, can be read by a person, and fails with the tokens that changed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.shown_rows import BYTES
from support.tiny import TEMPLATE, expected, messages_dataset, tokenizer
from support.tiny_tokenizers import byte_level

from sft_mask import Policy, Region, verify_snapshot, write_snapshot
from sft_mask.errors import DataError, MaskChangedError
from sft_mask.preview.snapshot import check_snapshot, read_snapshot


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mask.jsonl"


def test_rows_are_spread_over_the_data_and_hold_its_runs(path: Path) -> None:
    data = messages_dataset(21)
    assert write_snapshot(path, data, tokenizer(), rows=5) == 5
    _, rows = read_snapshot(path)
    assert [row["row"] for row in rows] == [0, 5, 10, 15, 20]
    for row in rows:
        labels = expected(data[row["row"]]["messages"])
        trained = [token for weight, ids, _ in row["runs"] for token in (ids if weight else [-100] * len(ids))]
        assert trained == labels
        joined = "".join(text for _, _, texts in row["runs"] for text in texts)
        text = joined.encode("utf-8", "surrogateescape").decode()  # half a character is kept as it is
        assert text == tokenizer().apply_chat_template(data[row["row"]]["messages"], tokenize=False)


def test_a_mask_that_did_not_change_passes(path: Path) -> None:
    data = messages_dataset(8)
    write_snapshot(path, data, tokenizer(), rows=100)
    verify_snapshot(path, data, tokenizer())
    assert str(check_snapshot(path, data, tokenizer())) == "The mask equals the snapshot in all 8 rows."


def test_writing_twice_writes_the_same_bytes(path: Path) -> None:
    data = messages_dataset(4)
    write_snapshot(path, data, tokenizer())
    before = path.read_bytes()
    write_snapshot(path, data, tokenizer())
    assert path.read_bytes() == before


def test_the_settings_it_was_written_with_are_used_again(path: Path) -> None:
    data = messages_dataset(12)
    policy = Policy(turns="last", stop="never", regions=(Region("<think>", "</think>", weight=0.5),))
    write_snapshot(path, data, tokenizer(), policy=policy)
    verify_snapshot(path, data, tokenizer())
    head, _ = read_snapshot(path)
    assert head["settings"]["policy"]["turns"] == "last"


def test_a_template_that_changed_fails_with_the_token_diff(path: Path) -> None:
    data = messages_dataset(3)
    write_snapshot(path, data, tokenizer())
    changed = TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] }} over")
    assert changed != TEMPLATE
    with pytest.raises(MaskChangedError, match=r"3 of 3 rows differ") as raised:
        verify_snapshot(path, data, tokenizer(), chat_template=changed)
    assert re.search(r"nothing → tokens? \d+(-\d+)? ' over' \(trained\)", str(raised.value))
    assert "write the snapshot again" in str(raised.value)


def test_a_label_that_changed_fails_with_its_token(path: Path) -> None:
    data = messages_dataset(2, seed=1)
    write_snapshot(path, data, tokenizer())
    lines = path.read_text("utf-8").split("\n")
    row = json.loads(lines[1])
    at = next(number for number, (weight, _, _) in enumerate(row["runs"]) if weight)
    row["runs"][at][0] = 0
    lines[1] = json.dumps(row)
    path.write_text("\n".join(lines), "utf-8")
    found = check_snapshot(path, data, tokenizer())
    assert (found.diff.different, found.is_equal) == (1, False)
    assert f"tokens {sum(len(run[1]) for run in row['runs'][:at])}-" in str(found)
    assert "masked → trained" in str(found)


def test_half_a_character_and_odd_line_breaks_survive(path: Path) -> None:
    text = "a\u2028b\x85c 東🙂"
    rows = [{"input_ids": BYTES(f"<|start|>Q{text}<|end|><|start|>A{text}<|end|>")["input_ids"]}]
    write_snapshot(path, rows, BYTES, "<|start|>Q", "<|start|>A")
    assert check_snapshot(path, rows, BYTES).is_equal
    _, (row,) = read_snapshot(path)
    assert any("\udce6" in texts for _, _, texts in row["runs"])


def test_a_line_break_of_unicode_inside_one_token_breaks_no_line(path: Path) -> None:
    made = byte_level(["a\u2028b"], ["<|start|>", "<|end|>"])
    rows = [{"input_ids": made("<|start|>Qx<|end|><|start|>Aa\u2028b<|end|>")["input_ids"]}]
    write_snapshot(path, rows, made, "<|start|>Q", "<|start|>A")
    assert "a\u2028b" in path.read_text("utf-8")
    assert check_snapshot(path, rows, made).is_equal


def test_a_token_that_got_another_number_is_a_change(path: Path) -> None:
    data = messages_dataset(1)
    write_snapshot(path, data, tokenizer())
    stop = tokenizer().eos_token_id
    path.write_text(re.sub(rf"\b{stop}\], ", f"{stop + 900}], ", path.read_text("utf-8"), count=1), "utf-8")
    found = check_snapshot(path, data, tokenizer())
    assert found.diff.different == 1
    assert f"ids {stop + 900} (" in str(found)


def test_an_upgrade_is_named_beside_the_diff(path: Path) -> None:
    data = messages_dataset(2)
    write_snapshot(path, data, tokenizer())
    path.write_text(re.sub(r'"transformers": "[^"]+"', '"transformers": "0.1"', path.read_text("utf-8")), "utf-8")
    assert any("was 0.1 when" in note for note in check_snapshot(path, data, tokenizer()).notes)


@pytest.mark.parametrize("text", ["", "no json\n", '{"format": 99}\n', "[1]\n"])
def test_a_file_that_is_no_snapshot_is_refused(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match="snapshot"):
        check_snapshot(path, messages_dataset(2), tokenizer())


def test_other_data_a_missing_folder_and_no_rows_are_refused(path: Path) -> None:
    write_snapshot(path, messages_dataset(9), tokenizer())
    with pytest.raises(DataError, match="has row 2, but the data has 2 rows"):
        check_snapshot(path, messages_dataset(2), tokenizer())
    with pytest.raises(DataError, match="there is no folder"):
        write_snapshot(path.parent / "none" / "mask.jsonl", messages_dataset(2), tokenizer())
    with pytest.raises(DataError, match="at least one row"):
        write_snapshot(path, messages_dataset(2), tokenizer(), rows=0)
