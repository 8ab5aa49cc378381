"""What rows have shown about markers and messages."""

from __future__ import annotations

import numpy as np

from sft_mask.data.accounting.signatures import SignatureCache


def test_one_disagreement_among_the_first_rows_of_a_signature_is_enough_to_distrust_markers() -> None:
    cache = SignatureCache()
    for agreed in (True, False, True, True, True):
        cache.add_comparison(5, agreed=agreed)
        cache.add_comparison(6, agreed=True)
    assert not cache.trusts(5)
    assert cache.trusts(6)
    assert cache.trusted(np.array([5, 6, 7])).tolist() == [False, True, False]


def test_a_failed_batch_leaves_nothing_behind() -> None:
    cache = SignatureCache()
    for _ in range(3):
        cache.add_comparison(5, agreed=True)
    before = cache.copy()
    cache.add_comparison(5, agreed=False)
    for _ in range(3):
        cache.add_unmatched(7)
    assert (cache.trusts(5), cache.is_unmatched(7)) == (False, True)
    cache.restore(before)
    assert (cache.trusts(5), cache.is_unmatched(7)) == (True, False)
