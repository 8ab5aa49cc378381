"""Which of the turns found are trained, and whether with their stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sft_mask.constants import ASSISTANT
from sft_mask.core.policy import Policy, is_last_of_document
from sft_mask.core.spans import Turns
from sft_mask.errors import SftMaskError


def turns() -> Turns:
    """Two turns of document 0, one cut turn of document 2, and a turn of document 3 that is a stop and nothing else."""
    start, stop = np.array([2, 8, 14, 20]), np.array([5, 11, 17, 21])
    return Turns(
        start=start,
        end=stop,
        has_eot=np.array([True, True, False, True]),
        cut=np.array([False, False, True, False]),
        document=np.array([0, 0, 2, 3]),
        header=start - 2,
        eot_start=np.array([4, 9, 17, 20]),
        message=np.array([1, 3, 1, 1]),
        role=np.full(4, ASSISTANT),
        weight=np.ones(4),
    )


def spans(found: Turns) -> list[tuple[int, int]]:
    return list(zip(found.start.tolist(), found.end.tolist(), strict=True))


def test_by_default_every_turn_is_trained_with_its_stop():
    chosen = Policy().apply(turns())
    assert spans(chosen) == [(2, 5), (8, 11), (14, 17), (20, 21)]
    assert chosen.has_eot.tolist() == [True, True, False, True]


def test_the_last_turn_is_the_last_of_each_document():
    assert spans(Policy(turns="last").apply(turns())) == [(8, 11), (14, 17), (20, 21)]
    assert is_last_of_document(turns()).tolist() == [False, True, True, True]


def test_stops_are_taken_off_whole_and_a_turn_that_was_only_a_stop_goes():
    chosen = Policy(stop="never").apply(turns())
    assert spans(chosen) == [(2, 4), (8, 9), (14, 17)]
    assert chosen.has_eot.tolist() == [False, False, False]


def test_only_the_last_stop_of_each_document_is_trained():
    chosen = Policy(stop="last").apply(turns())
    assert spans(chosen) == [(2, 4), (8, 11), (14, 17), (20, 21)]
    assert chosen.has_eot.tolist() == [False, True, False, True]


def test_cut_answers_are_left_out_on_request():
    assert spans(Policy(cut_answers="mask").apply(turns())) == [(2, 5), (8, 11), (20, 21)]


def test_a_cut_last_answer_does_not_make_an_earlier_one_the_last():
    cut = turns().select(np.array([0, 1]))
    cut = Turns(**{name: getattr(cut, name) for name in Turns.__slots__} | {"cut": np.array([False, True])})
    assert spans(Policy(turns="last", cut_answers="mask").apply(cut)) == []


@pytest.mark.parametrize(
    "policy", [Policy(), Policy(turns="last", stop="last", cut_answers="mask"), Policy(stop="never")]
)
def test_no_turns_stay_no_turns(policy: Policy):
    assert spans(policy.apply(Turns.empty())) == []


def test_the_turns_that_were_given_are_left_as_they_are():
    given = turns()
    Policy(turns="last", stop="never", cut_answers="mask").apply(given)
    assert spans(given) == spans(turns())
    assert given.has_eot.tolist() == turns().has_eot.tolist()


def test_every_other_column_goes_with_its_turn():
    chosen = Policy(turns="last").apply(turns())
    assert chosen.document.tolist() == [0, 2, 3]
    assert chosen.header.tolist() == [6, 12, 18]
    assert chosen.eot_start.tolist() == [9, 17, 20]
    assert chosen.message.tolist() == [3, 1, 1]
    assert chosen.cut.tolist() == [False, True, False]


@pytest.mark.parametrize(("name", "value"), [("turns", "first"), ("stop", True), ("cut_answers", "drop")])
def test_an_unknown_value_is_refused_with_the_known_ones(name: str, value: object):
    with pytest.raises(SftMaskError, match=rf"Policy\({name}={value!r}\) is unknown. Use one of "):
        Policy(**{name: value})


def test_the_model_is_the_assistant_under_its_other_name() -> None:
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "model")]
    assert Policy(roles={"model": 0.5}).message_weights(messages) == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    "values",
    [
        {"prompt_weight": -0.1},
        {"tool_calls": "no"},
        {"prompt_weight": float("nan")},
        {"prompt_weight": "0.1"},
        {"roles": {"assistant": -1}},
        {"roles": {"assistant": 0}},
        {"reduction": "mean"},
        {"prompt_weight": 0.1, "reduction": "turn"},
    ],
)
def test_a_policy_without_meaning_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SftMaskError):
        Policy(**values)
