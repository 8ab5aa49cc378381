"""Which of the turns found are trained, and whether with their stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sft_mask.constants import ASSISTANT
from sft_mask.core.policy import Policy, combined, is_last_of_document
from sft_mask.core.regions import Region
from sft_mask.core.spans import Turns
from sft_mask.errors import DataError, SftMaskError


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
    assert is_last_of_document(replace(turns(), document=np.array([0, 1, 1, 2]))).tolist() == [True, False, True, True]
    assert is_last_of_document(Turns.empty()).tolist() == []


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


def test_a_conversation_that_goes_on_in_another_document_has_no_last_turn_in_this_one() -> None:
    is_whole = np.array([False, True, True, True])
    assert spans(Policy(turns="last").apply(turns(), is_whole)) == [(14, 17), (20, 21)]
    assert spans(Policy(stop="last").apply(turns(), is_whole)) == [(2, 4), (8, 9), (14, 17), (20, 21)]
    assert spans(Policy().apply(turns(), is_whole)) == [(2, 5), (8, 11), (14, 17), (20, 21)]


def test_a_turn_of_weight_0_is_not_trained_and_not_the_last() -> None:
    weighted = replace(turns(), weight=np.array([0.5, 0.0, 2.0, 1.0]))
    assert spans(Policy().apply(weighted)) == [(2, 5), (14, 17), (20, 21)]
    assert spans(Policy(turns="last", stop="last").apply(weighted)) == [(2, 5), (14, 17), (20, 21)]


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
    ("values", "complaint"),
    [
        ({"prompt_weight": -0.1}, r"Policy\(prompt_weight=...\) is -0.1: a weight must be a finite number, 0 or more"),
        ({"prompt_weight": float("nan")}, r"Policy\(prompt_weight=...\) is nan"),
        ({"prompt_weight": "0.1"}, r"Policy\(prompt_weight=...\) is '0.1'"),
        ({"roles": {"assistant": -1}}, r"Policy\(roles=...\) of 'assistant' is -1"),
        ({"roles": {"assistant": 0}}, r"Policy\(roles={'assistant': 0}\) trains no role"),
        ({"tool_calls": "no"}, r"Policy\(tool_calls='no'\) is neither True nor False"),
        ({"reduction": "mean"}, r"Policy\(reduction='mean'\) is unknown. Use one of token, turn, sequence"),
        ({"prompt_weight": 0.1, "reduction": "turn"}, "the prompt belongs to none of the assistant's turns"),
        ({"regions": 5}, r"Policy\(regions=5\) holds something other than a Region"),
        ({"regions": "<think>"}, r"Policy\(regions='<think>'\) holds something other than a Region"),
    ],
)
def test_a_policy_without_meaning_is_refused(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SftMaskError, match=complaint):
        Policy(**values)


def test_one_region_needs_no_list() -> None:
    assert Policy(regions=Region(text="x")) == Policy(regions=[Region(text="x")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("roles", "weights"),
    [
        (("assistant",), {"assistant": 1, "model": 1}),
        ("assistant", {"assistant": 1, "model": 1}),
        ({"model": 0.5}, {"assistant": 0.5, "model": 0.5}),
        ({"assistant": 0.5, "model": 0.25}, {"assistant": 0.5, "model": 0.5}),
        (["tool"], {"tool": 1, "assistant": 0, "model": 0}),
        ({"assistant": 1, "tool": 0.25}, {"tool": 0.25, "assistant": 1, "model": 1}),
    ],
)
def test_every_trained_role_has_a_weight_and_both_names_of_the_assistant_the_same(
    roles: Any, weights: dict[str, float]
) -> None:
    assert Policy(roles=roles).role_weights == weights


@pytest.mark.parametrize(
    ("values", "needed"),
    [
        ({}, False),
        ({"roles": ["model"]}, False),
        ({"roles": {"assistant": 0.5, "tool": 0}}, False),
        ({"roles": ["assistant", "tool"]}, True),
        ({"tool_calls": False}, True),
    ],
)
def test_only_messages_show_other_roles_and_tool_calls(values: dict[str, Any], needed: bool) -> None:
    policy = Policy(**values)
    assert policy.needs_messages is needed
    assert policy.every_turn_stops is not needed


@pytest.mark.parametrize(
    ("values", "weighted"),
    [
        ({}, False),
        ({"roles": ["assistant", "tool"]}, False),
        ({"roles": {"assistant": 1, "tool": 0}}, False),
        ({"regions": [Region(text="x")]}, False),
        ({"regions": [Region(text="x"), Region(text="y", weight=0.5)]}, True),
        ({"roles": {"assistant": 0.5}}, True),
        ({"roles": {"assistant": 1, "tool": 0.5}}, True),
        ({"prompt_weight": 0.1}, True),
        ({"reduction": "turn"}, True),
        ({"reduction": "sequence"}, True),
    ],
)
def test_weights_other_than_0_and_1_are_known_from_the_policy(values: dict[str, Any], weighted: bool) -> None:
    assert Policy(**values).is_weighted is weighted


@pytest.mark.parametrize(
    ("values", "stops"),
    [({"turns": "last"}, True), ({"turns": "flagged"}, False), ({"stop": "last"}, False), ({"stop": "never"}, False)],
)
def test_every_trained_turn_stops_unless_the_policy_takes_end_of_turn_tokens_away(
    values: dict[str, Any], stops: bool
) -> None:
    assert Policy(**values).every_turn_stops is stops


@pytest.mark.parametrize("role", ["assistant", "user"])
@pytest.mark.parametrize(
    ("flags", "assistant", "user"),
    [
        ({}, 0.5, 0.0),
        ({"train": None, "weight": None}, 0.5, 0.0),
        ({"train": True}, 0.5, 1.0),
        ({"train": False}, 0.0, 0.0),
        ({"train": False, "weight": 2}, 0.0, 0.0),
        ({"weight": 0.25}, 0.125, 0.25),
        ({"weight": 0}, 0.0, 0.0),
        ({"train": True, "weight": 3}, 1.5, 3.0),
    ],
)
def test_a_flagged_message_goes_by_its_flags_and_then_by_its_role(
    flags: dict[str, object], assistant: float, user: float, role: str
) -> None:
    messages = [{"role": role, "content": "x", **flags}, {"content": "no role"}]
    wanted = assistant if role == "assistant" else user
    assert Policy(turns="flagged", roles={"assistant": 0.5}).message_weights(messages) == [wanted, 0.0]
    by_role = 0.5 if role == "assistant" else 0.0
    assert Policy(turns="all", roles={"assistant": 0.5}).message_weights(messages) == [by_role, 0.0]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"train": "no"}, "A message has train='no', which is neither true nor false"),
        ({"train": 0}, "A message has train=0, which is neither true nor false"),
        ({"weight": -1}, "The weight of a message is -1: a weight must be a finite number, 0 or more"),
        ({"weight": "2"}, "The weight of a message is '2'"),
        ({"weight": True}, "The weight of a message is True"),
    ],
)
def test_a_flag_without_meaning_is_refused_as_the_data_s_mistake(flags: dict[str, object], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        Policy(turns="flagged").message_weights([{"role": "user", "content": "x", **flags}])


def test_short_arguments_change_their_part_of_the_policy_and_no_other() -> None:
    thinking = Region("<think>", "</think>")
    given = Policy(turns="flagged", stop="last", regions=[thinking], prompt_weight=0.5, reduction="sequence")
    assert combined() == Policy()
    assert combined(given) == given
    assert combined(given, last_response_only=True) == replace(given, turns="last")
    assert combined(given, prompt_weight=0) == replace(given, prompt_weight=0.0)
    assert combined(given, reduction="token") == replace(given, reduction="token")
    assert combined(given, mask_out_tokens="ab") == replace(given, regions=[thinking, Region(text="ab")])
    both = [Region(text="ab"), Region(text="c")]
    assert combined(mask_out_tokens=["ab", "c"]) == Policy(regions=both)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"policy": {"turns": "last"}}, "policy={'turns': 'last'} is not a Policy"),
        ({"mask_out_tokens": ["ab", 5]}, r"mask_out_tokens=\['ab', 5\] holds something that is not text"),
    ],
)
def test_short_arguments_of_another_type_are_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SftMaskError, match=complaint):
        combined(**arguments)
