"""Reports add up, print in few lines, and warn about what looks healthy."""

import io
import json
import math
import pickle
import subprocess
import sys
from dataclasses import fields, replace

import pytest
from rich.console import Console

from sft_mask.report import MarkerSummary, MaskReport, SplitReport, split_lines, warnings_between, warnings_for

HEALTHY = SplitReport(
    rows=100,
    documents=100,
    tokens=10_000,
    trained_tokens=3_000,
    turns=200,
    turns_trained=200,
    turns_with_stop=200,
    stops_trained=200,
    rows_checked=100,
)
COUNTS = [f for f in fields(SplitReport) if f.type == "int"]
CHATML = MarkerSummary("<|im_start|>user\n", "<|im_start|>assistant\n", ("<|im_end|>",), detected=True)


def test_addition_sums_every_field():
    numbers = {f.name: index + 1 for index, f in enumerate(COUNTS)}
    total = SplitReport(**numbers) + SplitReport(**numbers) + SplitReport()
    assert {name: getattr(total, name) for name in numbers} == {name: 2 * value for name, value in numbers.items()}


def test_rows_with_messages_that_markers_alone_decided_are_a_warning_with_the_reasons():
    split = replace(HEALTHY, unchecked_reasons={"packed": 2}) + SplitReport(unchecked_reasons={"packed": 1, "cut": 1})
    assert split.unchecked_reasons == {"cut": 1, "packed": 3}
    assert [warning for warning in warnings_for(split) if "markers alone (1 cut, 3 packed)" in warning]


def test_dropped_reasons_add_and_are_ordered():
    left = SplitReport(rows_dropped=3, dropped_reasons={"no answer": 1, "cut": 2})
    right = SplitReport(rows_dropped=4, dropped_reasons={"empty": 3, "cut": 1})
    assert list((left + right).dropped_reasons.items()) == [("cut", 3), ("empty", 3), ("no answer", 1)]
    assert list(left.dropped_reasons.items()) == [("cut", 2), ("no answer", 1)]


def test_a_report_does_not_change_with_the_mapping_it_was_made_from():
    reasons = {"cut": 1}
    split = SplitReport(dropped_reasons=reasons)
    reasons["cut"] = 9
    assert split.dropped_reasons == {"cut": 1}


def test_reports_are_hashable_and_survive_pickling():
    report = MaskReport({"train": replace(HEALTHY, dropped_reasons={"cut": 1})}, CHATML, ("look",))
    assert pickle.loads(pickle.dumps(report)) == report
    assert len({report, pickle.loads(pickle.dumps(report))}) == 1


def test_adding_something_else_is_a_type_error():
    with pytest.raises(TypeError):
        HEALTHY + 1


def test_derived_numbers():
    assert (HEALTHY.share, HEALTHY.prompt_tokens, HEALTHY.rows_seen) == (0.3, 7_000, 100)
    assert HEALTHY.response_prompt_ratio == pytest.approx(3 / 7)
    assert SplitReport(tokens=5, trained_tokens=5).response_prompt_ratio == math.inf
    assert SplitReport().response_prompt_ratio == SplitReport().share == 0.0


def test_to_dict_is_json_with_the_derived_numbers():
    report = MaskReport({"train": HEALTHY, "eval": SplitReport(rows=1, tokens=1, trained_tokens=1)}, CHATML)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["splits"]["train"]["share"] == 0.3
    assert data["splits"]["eval"]["response_prompt_ratio"] is None
    assert data["markers"]["stops"] == ["<|im_end|>"]
    assert set(data["splits"]["train"]) > {f.name for f in fields(SplitReport)}


def test_no_split_takes_more_than_fourteen_lines():
    full = SplitReport(**{f.name: 7 for f in COUNTS if f.type == "int"})
    lost = {"fields": {"tool calls": 9}, "not_rendered": {"tool calls": 2}, "first_not_rendered": {"tool calls": 1}}
    full = replace(full, **lost, prompts={"enable_thinking=False": 7})
    lines = split_lines("train", replace(full, dropped_reasons={"cut": 3, "no answer": 4}))
    assert len(lines) == 14
    assert any("7 rows: 3 cut, 4 no answer" in line for line in lines)


def test_the_plain_report_word_for_word():
    split = replace(HEALTHY, documents=150, rows_cut=2, turns_cut=2, rows_dropped=1, dropped_reasons={"no answer": 1})
    assert str(MaskReport({"train": split}, CHATML, ("look at row 3",))).splitlines() == [
        "train: 100 rows of 150 documents · 10,000 tokens, 3,000 trained (30.0 %), response/prompt 0.43",
        "  answers  200 found, 200 trained · end-of-turn tokens 200 of 200 trained",
        "  cut      2 answers at the end of 2 rows",
        "  dropped  1 row: 1 no answer",
        "  decided  100 by markers and agreeing with messages",
        r"markers: '<|im_start|>user\n' → '<|im_start|>assistant\n' … '<|im_end|>' (read from the chat template)",
        "warning: look at row 3",
    ]


def test_the_coloured_report_says_what_the_plain_one_says():
    report = MaskReport({"train": HEALTHY}, MarkerSummary("[bold]\x1b[31m", "b"), ("warn",))
    console = Console(width=200, record=True, force_terminal=True, file=io.StringIO())
    console.print(report)
    assert console.export_text().rstrip("\n") == str(report)
    assert "\x1b" not in str(report)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stops_trained": 0}, "never learns to stop. Train the end-of-turn token"),
        ({"stops_trained": 150}, "only 150 end-of-turn tokens are trained for 200 trained answers"),
        ({"turns_with_stop": 0, "stops_trained": 0}, "End each answer with the eos token"),
        ({"rows_cut": 6, "turns_cut": 6}, "Raise max_length, or drop the rows"),
        ({"rows_at_max_length": 6}, "6 of 100 rows (6.0 %) are exactly max_length tokens long"),
        ({"rows_dropped": 12}, "12 of 112 rows (10.7 %) would train nothing"),
        ({"rows_ambiguous": 1}, "neither markers nor messages could decide 1 of 100 rows"),
        ({"rows_mid_turn": 7}, "7 of 100 rows begin inside a turn"),
        ({"trained_tokens": 99}, "only 1.0 % of the tokens are trained"),
        ({"trained_tokens": 9_501}, "Check that the instruction marker occurs"),
        ({"trained_tokens": 0}, "0 of 10,000 tokens are trained"),
    ],
)
def test_each_fault_gives_one_warning_with_its_cure(change, words):
    (warning,) = warnings_for(replace(HEALTHY, **change))
    assert words in warning


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rows_checked": 0, "rows_exact": 100},
        {"rows_cut": 5, "turns_cut": 5, "turns_with_stop": 195, "stops_trained": 195},
        {"rows_at_max_length": 5},
        {"rows_dropped": 11},
        {"turns_trained": 50, "stops_trained": 50},  # only the last answer of each row, on purpose
        {"rows_checked": 0, "rows_unchecked": 100},
        {"trained_tokens": 100},
        {"trained_tokens": 9_500},
    ],
)
def test_healthy_splits_give_no_warning(change):
    assert warnings_for(replace(HEALTHY, **change)) == ()


def test_an_empty_split_gives_no_warning():
    assert warnings_for(SplitReport()) == ()


def test_splits_masked_unlike_train_are_named():
    whole = replace(HEALTHY, trained_tokens=10_000)
    (share,) = warnings_between({"train": HEALTHY, "eval": whole})
    assert share.startswith("eval: 100.0 % of the tokens are trained against 30.0 % of train")
    (stops,) = warnings_between({"train": HEALTHY, "eval": replace(HEALTHY, stops_trained=0)})
    assert stops.startswith("eval: 0 end-of-turn tokens are trained against 200 of train")
    assert warnings_between({"train": HEALTHY, "eval": replace(HEALTHY, trained_tokens=999)}) != ()
    assert warnings_between({"train": HEALTHY, "eval": replace(HEALTHY, trained_tokens=1_000)}) == ()
    assert warnings_between({"test": HEALTHY, "eval": whole}) == ()


def test_a_report_carries_its_warnings_with_the_name_of_the_split():
    report = MaskReport({"train": HEALTHY, "eval": replace(HEALTHY, stops_trained=0)})
    assert [warning.split(":")[0] for warning in report.warnings] == ["eval", "eval"]


def test_report_needs_the_standard_library_only():
    code = "import sys, sft_mask.report; print(sorted({'rich','numpy','torch','transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_not_rendered_adds_with_the_first_row_of_each_kind():
    one = SplitReport(fields={"reasoning": 4}, not_rendered={"reasoning": 3}, first_not_rendered={"reasoning": 7})
    two = SplitReport(
        fields={"reasoning": 1, "tool calls": 2},
        not_rendered={"reasoning": 1, "tool calls": 2},
        first_not_rendered={"reasoning": 2, "tool calls": 9},
    )
    for both in (one + two, two + one):
        assert both.not_rendered == {"reasoning": 4, "tool calls": 2}
        assert both.first_not_rendered == {"reasoning": 2, "tool calls": 9}
        assert both.lost == {"reasoning": 4, "tool calls": 2}
    (warning,) = [each for each in warnings_for(HEALTHY + one + two) if "does not write" in each]
    assert "2 of 2 tool calls (first in row 9), 4 of 5 reasoning (first in row 2)" in warning
