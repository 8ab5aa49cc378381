"""What a caller may give as a marker."""

from __future__ import annotations

import numpy as np
import pytest

from sft_mask.core.markers import Markers, as_marker_texts
from sft_mask.errors import MarkerError


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("A:", ("A:",)),
        (" ", (" ",)),
        (["A:", "B:"], ("A:", "B:")),
        (("A:",), ("A:",)),
        ([1, 2], ((1, 2),)),
        ([np.int64(1), 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["A:", (1, 2)], ("A:", (1, 2))),
    ],
)
def test_a_marker_may_be_text_or_ids_or_several(given: object, parts: tuple[object, ...]):
    assert as_marker_texts(given, "response_part") == parts


@pytest.mark.parametrize("given", [5, None, b"A:", {"A:"}, [1, "A:"], [1.5], [b"A:"], [None], [["A:"]]])
def test_anything_else_is_refused_by_its_name_and_type(given: object):
    with pytest.raises(MarkerError, match=f"response_part is .*{type(given).__name__}"):
        as_marker_texts(given, "response_part")


@pytest.mark.parametrize("given", ["", [], [""], ["A:", ""], [[]], ()])
def test_an_empty_marker_is_refused(given: object):
    with pytest.raises(MarkerError, match="instruction_part is empty"):
        as_marker_texts(given, "instruction_part")


def test_the_headers_of_everybody_else_hold_each_marker_once():
    assert Markers(("A",), ("U", "V"), others=("S", "U")).headers == ("U", "V", "S")
