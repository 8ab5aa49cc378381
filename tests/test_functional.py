"""The reference on plain tensors: the worked examples, every rule of its docstrings, and what it refuses."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from sft_mask.constants import IGNORE_INDEX
from sft_mask.errors import AmbiguousRowError, DataError, MarkerError, SftMaskError
from sft_mask.functional import (
    apply_assistant_masking,
    compute_sft_loss,
    create_loss_mask,
    create_loss_mask_batch,
    prepare_labels_for_hf,
)

X = IGNORE_INDEX
PAD, EOS = 0, 9
START, END, USER, COLON = 1, 2, 3, 4  # delimiters of the small conversations below; ids from 10 on are text

few = settings(max_examples=60, deadline=None)
many = settings(max_examples=300, deadline=None)


def ids(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


# --- the four worked examples ---


def test_worked_example_one_length_ten_start_six() -> None:
    mask = create_loss_mask(torch.arange(10).unsqueeze(0), response_start=6)

    assert mask.tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1, 1]]
    assert mask.dtype == torch.float32


def test_worked_example_two_three_rows_with_their_own_starts_and_padding() -> None:
    batch = torch.arange(100, 145).reshape(3, 15)
    batch[0, 12:] = PAD
    batch[1, 14:] = PAD
    expected = [
        [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    ]

    by_id = create_loss_mask_batch(batch, [5, 7, 6], pad_token_id=PAD)
    by_attention = create_loss_mask_batch(batch, [5, 7, 6], attention_mask=(batch != PAD).long())

    assert by_id.tolist() == by_attention.tolist() == expected
    assert by_id.sum(dim=1).tolist() == [7, 7, 9]


def test_worked_example_three_labels_hold_the_response_only() -> None:
    labels = prepare_labels_for_hf(torch.tensor([101, 102, 103, 104, 105, 201, 202, 203]), response_start=5)

    assert labels.tolist() == [X, X, X, X, X, 201, 202, 203]
    assert labels.dtype == torch.int64


def test_worked_example_four_only_the_answer_after_the_assistant_header() -> None:
    row = torch.tensor([USER, COLON, 10, 11, START, COLON, 44])

    assert apply_assistant_masking(row, row, [START, COLON]).tolist() == [X, X, X, X, X, X, 44]


# --- create_loss_mask and create_loss_mask_batch ---


def test_a_single_row_gives_a_single_row() -> None:
    row = torch.tensor([10, 11, 12, PAD])

    assert create_loss_mask(row, 2).tolist() == [0, 0, 1, 1]
    assert create_loss_mask_batch(row, [1], pad_token_id=PAD, eos_token_id=EOS).tolist() == [0, 1, 1, 0]
    assert create_loss_mask_batch(row, 1, attention_mask=torch.tensor([1, 1, 1, 0])).tolist() == [0, 1, 1, 0]
    assert prepare_labels_for_hf(row, [3]).tolist() == [X, X, X, PAD]


def test_one_start_holds_for_every_row() -> None:
    assert create_loss_mask(ids([5, 6, 7], [5, 6, 7]), 1).tolist() == [[0, 1, 1], [0, 1, 1]]
    assert create_loss_mask_batch(ids([5, 6, 7], [5, 6, 7]), 1).tolist() == [[0, 1, 1], [0, 1, 1]]
    assert prepare_labels_for_hf(ids([5, 6, 7], [5, 6, 7]), 1).tolist() == [[X, 6, 7], [X, 6, 7]]


def test_a_start_at_either_end_of_the_row_is_allowed() -> None:
    assert create_loss_mask(torch.tensor([5, 6]), 0).tolist() == [1, 1]
    assert create_loss_mask(torch.tensor([5, 6]), 2).tolist() == [0, 0]
    assert prepare_labels_for_hf(ids([5, 6], [5, 6]), [0, 2]).tolist() == [[5, 6], [X, X]]


def test_starts_may_be_a_tensor() -> None:
    batch = ids([5, 6, 7], [5, 6, 7])

    assert create_loss_mask_batch(batch, torch.tensor([1, 2])).tolist() == [[0, 1, 1], [0, 0, 1]]
    assert prepare_labels_for_hf(batch, torch.tensor([1, 2], dtype=torch.int32)).tolist() == [[X, 6, 7], [X, X, 7]]
    assert create_loss_mask(batch, torch.tensor(2)).tolist() == [[0, 0, 1], [0, 0, 1]]  # type: ignore[arg-type]


def test_without_pad_token_id_and_attention_mask_nothing_is_padding() -> None:
    assert create_loss_mask_batch(ids([5, PAD, PAD]), [1]).tolist() == [[0, 1, 1]]


def test_attention_mask_overrules_pad_token_id() -> None:
    row = ids([5, 6, PAD, PAD])

    mask = create_loss_mask_batch(row, [1], pad_token_id=PAD, attention_mask=ids([1, 1, 1, 0]))

    assert mask.tolist() == [[0, 1, 1, 0]]


def test_attention_mask_may_be_bool_and_padded_on_the_left() -> None:
    attention_mask = torch.tensor([[False, False, True, True]])

    assert create_loss_mask_batch(ids([9, 9, 5, 9]), [0], attention_mask=attention_mask).tolist() == [[0, 0, 1, 1]]


def test_pad_equal_to_eos_keeps_the_end_of_turn_token_of_the_answer() -> None:
    batch = ids([5, 6, 7, EOS, EOS, EOS], [5, 6, 7, 8, 8, EOS])

    mask = create_loss_mask_batch(batch, [2, 2], pad_token_id=EOS, eos_token_id=EOS)

    assert mask.tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]


def test_pad_unlike_eos_drops_the_whole_trailing_run() -> None:
    batch = ids([5, 6, 7, EOS, PAD, PAD], [5, 6, 7, 8, EOS, PAD])

    mask = create_loss_mask_batch(batch, [2, 2], pad_token_id=PAD, eos_token_id=EOS)

    assert mask.tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0]]


@pytest.mark.parametrize("eos", [EOS, PAD])
def test_a_pad_id_between_tokens_of_the_answer_is_text(eos: int) -> None:
    mask = create_loss_mask_batch(ids([5, 6, PAD, 7, PAD, PAD, 8]), [1], pad_token_id=PAD, eos_token_id=eos)

    assert mask.tolist() == [[0, 1, 1, 1, 1, 1, 1]]


def test_a_pad_id_between_tokens_is_text_without_eos_token_id_too() -> None:
    mask = create_loss_mask_batch(ids([5, 6, PAD, 7, 8], [5, 6, 7, PAD, PAD]), [1, 1], pad_token_id=PAD)

    assert mask.tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]]


def test_left_padding_is_left_out_and_the_stop_token_stays() -> None:
    batch = ids([EOS, EOS, 5, 6, EOS], [4, 5, 6, 7, EOS])

    whole_row = create_loss_mask_batch(batch, 0, pad_token_id=EOS, eos_token_id=EOS)
    response = create_loss_mask_batch(batch, [3, 2], pad_token_id=EOS, eos_token_id=EOS)

    assert whole_row.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert response.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]


def test_left_padding_needs_no_eos_token_id_where_pad_is_its_own_token() -> None:
    assert create_loss_mask_batch(ids([PAD, PAD, 5, 6, EOS]), [0], pad_token_id=PAD).tolist() == [[0, 0, 1, 1, 1]]


@pytest.mark.parametrize("eos", [EOS, PAD])
def test_a_row_of_nothing_but_pads_grades_nothing(eos: int) -> None:
    mask = create_loss_mask_batch(ids([PAD, PAD, PAD], [5, 6, 7]), [0, 0], pad_token_id=PAD, eos_token_id=eos)

    assert mask.tolist() == [[0, 0, 0], [1, 1, 1]]


def test_pad_token_id_alone_is_refused_where_every_row_ends_in_it() -> None:
    batch = ids([5, 6, EOS, EOS], [5, 6, 7, EOS])

    with pytest.raises(AmbiguousRowError, match=r"every row ends in pad_token_id=9.*eos_token_id=.*attention_mask="):
        create_loss_mask_batch(batch, [1, 1], pad_token_id=EOS)


@few
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    left=st.booleans(),
    extra=st.integers(0, 3),
    data=st.data(),
)
def test_padding_by_id_equals_padding_by_attention_mask(
    lengths: list[int], left: bool, extra: int, data: st.DataObject
) -> None:
    """Rows of text that end in eos, pad ids between them too, padded with eos itself, on either side."""
    width = max(lengths) + 1 + extra
    batch, attention_mask = torch.full((len(lengths), width), EOS), torch.zeros(len(lengths), width)
    for row, length in enumerate(lengths):
        text = [5, *data.draw(st.lists(st.sampled_from([5, EOS]), min_size=length, max_size=length))][:length]
        text[-1] = 5
        place = slice(width - length - 1, width) if left else slice(0, length + 1)
        batch[row, place], attention_mask[row, place] = torch.tensor([*text, EOS]), 1
    starts = [data.draw(st.integers(0, width)) for _ in lengths]

    by_id = create_loss_mask_batch(batch, starts, pad_token_id=EOS, eos_token_id=EOS)

    assert torch.equal(by_id, create_loss_mask_batch(batch, starts, attention_mask=attention_mask))


# --- compute_sft_loss ---


def loss_by_hand(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """The equation, one token at a time, in Python floats."""
    weighted = total = 0.0
    for b in range(labels.shape[0]):
        for t in range(labels.shape[1] - 1):
            label, weight = int(labels[b, t + 1]), float(weights[b, t + 1])
            if label == IGNORE_INDEX:
                continue
            scores = [float(score) for score in logits[b, t]]
            top = max(scores)
            log_sum = top + math.log(math.fsum(math.exp(score - top) for score in scores))
            weighted += weight * (log_sum - scores[label])
            total += weight
    return weighted / total if total else 0.0


def draw(seed: int, rows: int = 3, length: int = 9, vocabulary: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 logits, labels, and a 0/1 mask that grades at least one predictable token."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, length, vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocabulary, (rows, length), generator=generator)
    mask = torch.randint(2, (rows, length), generator=generator).float()
    mask[0, -1] = 1
    return logits, labels, mask


@few
@given(seed=st.integers(0, 2**32))
def test_loss_with_float_weights_equals_the_equation_by_hand(seed: int) -> None:
    logits, labels, mask = draw(seed)
    weights = mask.double() * torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed + 1))
    weights[0, -1] = 0.5
    labels[1, 4:6] = IGNORE_INDEX
    expected = loss_by_hand(logits, labels, weights)

    assert compute_sft_loss(logits, labels, weights).item() == pytest.approx(expected, rel=1e-12)
    assert compute_sft_loss(logits.float(), labels, weights.float()).item() == pytest.approx(expected, rel=1e-6)


@few
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_two_ways_agree_in_loss_and_gradient(seed: int, dtype: torch.dtype) -> None:
    drawn, labels, mask = draw(seed)
    logits, logits_of_other = (drawn.to(dtype, copy=True).requires_grad_() for _ in range(2))

    by_mask = compute_sft_loss(logits, labels, mask)
    ignored = labels.masked_fill(mask == 0, IGNORE_INDEX)
    by_labels = cross_entropy(logits_of_other[:, :-1].flatten(0, 1), ignored[:, 1:].flatten())
    torch.autograd.backward(by_mask)
    torch.autograd.backward(by_labels)

    # Relative in float32: three units in the last place of a loss of 5 are 1.4e-6, and both ways are equally exact.
    assert by_mask.item() == pytest.approx(by_labels.item(), rel=1e-6 if dtype == torch.float32 else 1e-12)
    assert by_mask.item() == pytest.approx(loss_by_hand(drawn.to(dtype), labels, mask), rel=1e-6)
    torch.testing.assert_close(logits.grad, logits_of_other.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize("start", range(8))
def test_mask_and_labels_made_from_one_start_give_one_loss(start: int) -> None:
    logits, input_ids, _ = draw(seed=start)

    by_mask = compute_sft_loss(logits, input_ids, create_loss_mask(input_ids, start))
    labels = prepare_labels_for_hf(input_ids, start)
    by_labels = cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])

    assert by_mask.item() == pytest.approx(by_labels.item(), rel=1e-12)


def test_position_t_is_scored_on_token_t_plus_one() -> None:
    labels = ids([5, 3, 7, 1])
    logits = torch.zeros(1, 4, 8)
    for t, following in enumerate([3, 7, 1]):
        logits[0, t, following] = 100.0

    assert compute_sft_loss(logits, labels, torch.ones(1, 4)).item() == 0.0


def test_the_weight_of_the_first_token_counts_nowhere() -> None:
    logits, labels, mask = draw(seed=1)
    mask[:, 0] = 0
    without = compute_sft_loss(logits, labels, mask)
    mask[:, 0] = 5

    assert torch.equal(compute_sft_loss(logits, labels, mask), without)


def test_a_weight_of_three_equals_the_token_three_times() -> None:
    logits, labels, _ = draw(seed=2, rows=1, length=2)
    other_logits, other_labels, _ = draw(seed=3, rows=1, length=2)
    rows = torch.cat([logits, other_logits]), torch.cat([labels, other_labels])
    repeated = torch.cat([logits] * 3 + [other_logits]), torch.cat([labels] * 3 + [other_labels])

    weighted = compute_sft_loss(*rows, torch.tensor([[0.0, 3.0], [0.0, 1.0]]))

    assert weighted.item() == pytest.approx(compute_sft_loss(*repeated, torch.ones(4, 2)).item(), rel=1e-12)


def test_the_mean_is_over_tokens_not_over_rows() -> None:
    logits, labels, mask = draw(seed=4, rows=2, length=6)
    mask[0], mask[1] = torch.tensor([0, 0, 0, 0, 0, 1.0]), torch.tensor([0, 0, 1, 1, 1, 1.0])
    of_row = [compute_sft_loss(logits[b], labels[b], mask[b]).item() for b in (0, 1)]

    loss = compute_sft_loss(logits, labels, mask).item()

    assert loss == pytest.approx((1 * of_row[0] + 4 * of_row[1]) / 5, rel=1e-12)
    assert loss != pytest.approx(sum(of_row) / 2, rel=1e-3)


def test_ignore_index_is_left_out_though_the_mask_says_one() -> None:
    logits, labels, mask = draw(seed=5)
    mask[:] = 1
    labels[0, 3] = labels[2, 7] = IGNORE_INDEX
    masked = mask.clone()
    masked[0, 3] = masked[2, 7] = 0

    assert torch.equal(compute_sft_loss(logits, labels, mask), compute_sft_loss(logits, labels, masked))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64])
def test_a_mask_of_any_number_type_gives_the_same_loss(dtype: torch.dtype) -> None:
    logits, labels, mask = draw(seed=6)

    assert torch.equal(compute_sft_loss(logits, labels, mask.to(dtype)), compute_sft_loss(logits, labels, mask))


@pytest.mark.parametrize("kind", ["zero mask", "ignored labels", "one token", "weight on token 0 only"])
def test_nothing_to_grade_gives_zero_that_backpropagates_zeros(kind: str) -> None:
    logits, labels, mask = draw(seed=7, length=1 if kind == "one token" else 9)
    logits.requires_grad_()
    if kind == "zero mask":
        mask[:] = 0
    elif kind == "ignored labels":
        labels[:] = IGNORE_INDEX
    elif kind == "weight on token 0 only":
        mask[:], mask[:, 0] = 0, 1

    loss = compute_sft_loss(logits, labels, mask)
    torch.autograd.backward(loss)

    assert loss.shape == ()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_poison_at_an_untrained_position_reaches_neither_loss_nor_gradient(poison: float) -> None:
    logits, labels, mask = draw(seed=8)
    mask[1, 5] = 0
    labels[2, 3] = IGNORE_INDEX
    clean = compute_sft_loss(logits, labels, mask)
    untrained = torch.ones_like(mask, dtype=torch.bool)
    untrained[:, :-1] = (mask[:, 1:] == 0) | (labels[:, 1:] == IGNORE_INDEX)
    poisoned = logits.masked_fill(untrained.unsqueeze(-1), poison).requires_grad_()

    loss = compute_sft_loss(poisoned, labels, mask)
    torch.autograd.backward(loss)

    assert torch.equal(loss, clean)
    assert poisoned.grad is not None
    assert torch.equal(poisoned.grad[untrained], torch.zeros_like(poisoned.grad[untrained]))
    assert bool((poisoned.grad[~untrained] != 0).any())


def test_an_untrained_label_may_be_any_integer() -> None:
    logits, labels, mask = draw(seed=9)
    clean = compute_sft_loss(logits, labels, mask)

    assert torch.equal(compute_sft_loss(logits, labels.masked_fill(mask == 0, 10**6), mask), clean)
    assert torch.equal(compute_sft_loss(logits, labels.masked_fill(mask == 0, -1), mask), clean)


def test_a_short_unsigned_label_is_never_taken_for_ignore_index() -> None:
    label = IGNORE_INDEX % 256
    logits = torch.zeros(1, 2, 256)
    labels = torch.tensor([[0, label]], dtype=torch.uint8)

    assert compute_sft_loss(logits, labels, torch.ones(1, 2)).item() == pytest.approx(math.log(256))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_float32(dtype: torch.dtype) -> None:
    logits, labels, mask = draw(seed=10)
    short = logits.to(dtype)

    loss = compute_sft_loss(short, labels, mask)

    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_by_hand(short.double(), labels, mask), rel=1e-6)


def test_float64_logits_stay_float64() -> None:
    assert compute_sft_loss(*draw(seed=11)).dtype == torch.float64


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[[1e4, -1e4], [0.0, 0.0]]])

    assert compute_sft_loss(logits, ids([0, 1]), torch.ones(1, 2)).item() == pytest.approx(2e4)


def test_gradient_equals_finite_differences() -> None:
    logits, labels, mask = draw(seed=12, rows=2, length=4, vocabulary=5)

    assert torch.autograd.gradcheck(lambda x: compute_sft_loss(x, labels, 0.7 * mask), logits.requires_grad_())


# --- apply_assistant_masking ---


def test_every_turn_of_every_row_is_trained_with_its_stop_token() -> None:
    batch = ids(
        [USER, 10, START, 20, 21, END, USER, 11, START, 22, END],
        [START, 20, END, USER, 10, 11, 12, START, 21, 22, END],
        [USER, 10, 11, END, START, END, USER, 12, END, 13, 14],
    )

    assert apply_assistant_masking(batch, batch, START, END).tolist() == [
        [X, X, X, 20, 21, END, X, X, X, 22, END],
        [X, 20, END, X, X, X, X, X, 21, 22, END],
        [X, X, X, X, X, END, X, X, X, X, X],
    ]


def test_the_stop_token_is_left_out_on_request() -> None:
    row = torch.tensor([START, 20, END, 10, START, END, START, 21])

    assert apply_assistant_masking(row, row, START, END, train_end_token=False).tolist() == [X, 20, X, X, X, X, X, 21]


def test_a_delimiter_of_several_tokens_matches_whole_or_not_at_all() -> None:
    row = torch.tensor([START, 10, START, COLON, START, 20, END, 21, END, COLON, 11, COLON, START])

    masked = apply_assistant_masking(row, row, [START, COLON], (END, COLON))

    assert masked.tolist() == [X, X, X, X, START, 20, END, 21, END, COLON, X, X, X]


def test_delimiters_may_be_tensors() -> None:
    row = torch.tensor([10, START, COLON, 20, END, 11])

    assert apply_assistant_masking(row, row, torch.tensor([START, COLON]), torch.tensor(END)).tolist() == [
        X, X, X, 20, END, X,
    ]  # fmt: skip


def test_the_user_delimiter_closes_a_turn_untrained() -> None:
    row = torch.tensor([USER, COLON, 10, START, COLON, 20, USER, 21, USER, COLON, 11, START, COLON, 22])

    masked = apply_assistant_masking(row, row, [START, COLON], user_start_token=[USER, COLON])

    assert masked.tolist() == [X, X, X, X, X, 20, USER, 21, X, X, X, X, X, 22]


def test_the_user_delimiter_may_be_what_all_headers_begin_with() -> None:
    header, user, assistant, tool = 5, 6, 7, 8
    row = torch.tensor([header, user, 10, header, assistant, 20, header, assistant, 21, header, tool, 12])

    masked = apply_assistant_masking(row, row, [header, assistant], user_start_token=header)

    assert masked.tolist() == [X, X, X, X, X, 20, X, X, 21, X, X, X]


def test_whichever_closes_first_closes_and_the_end_delimiter_wins_a_tie() -> None:
    row = torch.tensor([START, 20, USER, 10, END, START, 21, END, USER, 11])
    tie = torch.tensor([START, 20, END, USER, 10])

    masked = apply_assistant_masking(row, row, START, END, user_start_token=USER)
    masked_tie = apply_assistant_masking(tie, tie, START, END, user_start_token=[END, USER])

    assert masked.tolist() == [X, 20, X, X, X, X, 21, END, X, X]
    assert masked_tie.tolist() == [X, 20, END, X, X]


def test_without_an_end_delimiter_the_next_start_delimiter_opens_a_new_turn() -> None:
    row = torch.tensor([10, START, COLON, 20, START, COLON, START, COLON, 21])

    assert apply_assistant_masking(row, row, [START, COLON]).tolist() == [X, X, X, 20, X, X, X, X, 21]


def test_with_an_end_delimiter_a_start_delimiter_in_the_answer_is_text() -> None:
    row = torch.tensor([START, 20, START, 21, END, START, 22])

    assert apply_assistant_masking(row, row, START, END).tolist() == [X, 20, START, 21, END, X, 22]


def test_tokens_of_one_delimiter_are_not_used_for_another() -> None:
    row = torch.tensor([START, START, START, 20])

    assert apply_assistant_masking(row, row, [START, START]).tolist() == [X, X, START, 20]


def test_an_unclosed_turn_runs_to_the_end_of_its_own_row_only() -> None:
    batch = ids([10, START, 20], [11, 12, 13])

    assert apply_assistant_masking(batch, batch, START, END).tolist() == [[X, X, 20], [X, X, X]]


def test_an_end_delimiter_outside_a_turn_is_not_trained() -> None:
    row = torch.tensor([END, 10, END, START, 20, END, END])

    assert apply_assistant_masking(row, row, START, END).tolist() == [X, X, X, X, 20, END, X]


def test_ignore_index_in_labels_stays_ignored_and_labels_need_not_equal_the_ids() -> None:
    row = torch.tensor([START, 20, 21, END])

    assert apply_assistant_masking(row, torch.tensor([X, X, 77, X]), START, END).tolist() == [X, X, 77, X]


def test_padding_after_an_unclosed_turn_is_left_out_by_the_attention_mask() -> None:
    batch = ids([START, 20, PAD, PAD], [START, 20, 21, 22])

    masked = apply_assistant_masking(batch, batch, START, attention_mask=ids([1, 1, 0, 0], [1, 1, 1, 1]))

    assert masked.tolist() == [[X, 20, X, X], [X, 20, 21, 22]]


def test_a_delimiter_longer_than_the_row_opens_nothing() -> None:
    row = torch.tensor([START, COLON])

    assert apply_assistant_masking(row, row, [START, COLON, 10]).tolist() == [X, X]


def masked_token_by_token(
    row: list[int], start: list[int], end: list[int], user: list[int], train_end: bool
) -> list[int]:
    """The rules of the docstring as a walk over one row: an independent, slow reading of them."""
    masked, t, speaking = [X] * len(row), 0, False

    def here(delimiter: list[int]) -> bool:
        return bool(delimiter) and row[t : t + len(delimiter)] == delimiter

    while t < len(row):
        if speaking and here(end):
            if train_end:
                masked[t : t + len(end)] = end
            speaking, t = False, t + len(end)
            continue
        if speaking and (here(user) or (not end and here(start))):
            speaking = False
        if not speaking and here(start):
            speaking, t = True, t + len(start)
            continue
        if speaking:
            masked[t] = row[t]
        t += 1
    return masked


delimiter = st.lists(st.integers(1, 3), min_size=1, max_size=2)
maybe_delimiter = st.lists(st.integers(1, 3), max_size=2)


@many
@given(
    rows=st.integers(0, 24).flatmap(
        lambda n: st.lists(st.lists(st.integers(1, 4), min_size=n, max_size=n), min_size=1, max_size=3)
    ),
    delimiters=st.tuples(delimiter, maybe_delimiter, maybe_delimiter).filter(
        lambda d: d[0] not in d[1:] and (d[1] != d[2] or not d[1])
    ),
    train_end=st.booleans(),
)
def test_turns_equal_those_of_a_walk_token_by_token(
    rows: list[list[int]], delimiters: tuple[list[int], list[int], list[int]], train_end: bool
) -> None:
    start, end, user = delimiters
    batch = torch.tensor(rows, dtype=torch.long)

    masked = apply_assistant_masking(
        batch, batch, start, end or None, user_start_token=user or None, train_end_token=train_end
    )

    assert masked.tolist() == [masked_token_by_token(row, start, end, user, train_end) for row in rows]


# --- what all of them keep ---


def test_inputs_are_never_changed() -> None:
    batch, labels, attention_mask = ids([START, 20, END, PAD]), ids([X, 20, END, PAD]), ids([1, 1, 1, 0])
    before = [tensor.clone() for tensor in (batch, labels, attention_mask)]

    create_loss_mask_batch(batch, [1], attention_mask=attention_mask)
    create_loss_mask_batch(batch, [1], pad_token_id=PAD, eos_token_id=PAD)
    prepare_labels_for_hf(batch, 3)
    apply_assistant_masking(batch, labels, START, attention_mask=attention_mask)
    compute_sft_loss(torch.zeros(1, 4, 30), labels, attention_mask)

    assert all(torch.equal(*pair) for pair in zip(before, (batch, labels, attention_mask), strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_are_int64_whatever_the_ids_are(dtype: torch.dtype) -> None:
    row = torch.tensor([START, 200], dtype=dtype)

    for labels in (prepare_labels_for_hf(row, 1), apply_assistant_masking(row, row, START)):
        assert labels.dtype == torch.int64
        assert labels.tolist() == [X, 200]


def test_empty_batches_and_empty_rows_pass_through() -> None:
    for shape in [(0, 5), (2, 0), (0,)]:
        empty = torch.zeros(shape, dtype=torch.long)
        assert create_loss_mask(empty, 0).shape == shape
        assert create_loss_mask_batch(empty, 0, pad_token_id=PAD).shape == shape
        assert prepare_labels_for_hf(empty, 0).shape == shape
        assert apply_assistant_masking(empty, empty, START).shape == shape
        assert compute_sft_loss(torch.zeros(*shape, 7), empty, create_loss_mask(empty, 0)).item() == 0.0


# --- what is refused ---

BATCH = ids([5, 6, 7], [5, 6, 7])
FLOATS = BATCH.float()
CUBE = BATCH.unsqueeze(0)
LOGITS = torch.zeros(2, 3, 8)
ONES = torch.ones(2, 3)


def mask_with(bad: float) -> Tensor:
    mask = ONES.clone()
    mask[1, 2] = bad
    return mask


REFUSED: dict[str, tuple[Callable[[], object], type[SftMaskError], str]] = {
    "floats for ids": (lambda: create_loss_mask(FLOATS, 1), DataError, r"input_ids is torch\.float32.*\.long\(\)"),
    "bools for ids": (lambda: create_loss_mask(BATCH > 5, 1), DataError, r"input_ids is torch\.bool"),
    "a cube": (lambda: create_loss_mask(CUBE, 1), DataError, r"\(1, 2, 3\).*\(B, T\)"),
    "a list": (lambda: create_loss_mask([5, 6], 1), DataError, r"a list, not a tensor"),  # type: ignore[arg-type]
    "a negative start": (lambda: create_loss_mask(BATCH, -1), DataError, r"row 0 is -1, outside 0\.\.3"),
    "a start past the end": (lambda: create_loss_mask_batch(BATCH, [1, 4]), DataError, r"row 1 is 4, outside 0\.\.3"),
    "a float start": (lambda: prepare_labels_for_hf(BATCH, 1.0), DataError, r"1\.0: a float"),  # type: ignore[arg-type]
    "a bool start": (lambda: create_loss_mask(BATCH, True), DataError, r"True: a bool"),
    "a float tensor of starts": (
        lambda: create_loss_mask_batch(BATCH, torch.tensor([1.0, 2.0])), DataError, r"1\.0: a float"),
    "starts for one mask": (
        lambda: create_loss_mask(BATCH, [1, 2]),  # type: ignore[arg-type]
        DataError, r"\[1, 2\].*create_loss_mask_batch"),
    "too few starts": (lambda: create_loss_mask_batch(BATCH, [1]), DataError, r"1 response starts for 2 rows"),
    "too many labels starts": (lambda: prepare_labels_for_hf(BATCH, [1] * 3), DataError, r"3 response starts for 2"),
    "a float pad": (
        lambda: create_loss_mask_batch(BATCH, 1, pad_token_id=0.5),  # type: ignore[arg-type]
        DataError, r"pad_token_id is 0\.5"),
    "a float eos": (
        lambda: create_loss_mask_batch(BATCH, 1, pad_token_id=0, eos_token_id=0.5),  # type: ignore[arg-type]
        DataError, r"eos_token_id is 0\.5"),
    "an attention mask of another shape": (
        lambda: create_loss_mask_batch(BATCH, 1, attention_mask=ONES[:, :2]), DataError, r"\(2, 2\).*\(2, 3\)"),
    "an additive attention mask": (
        lambda: create_loss_mask_batch(BATCH, 1, attention_mask=mask_with(-math.inf)),
        DataError, r"holds -inf.*additive"),
    "document numbers for an attention mask": (
        lambda: apply_assistant_masking(BATCH, BATCH, START, attention_mask=mask_with(2)),
        DataError, r"holds 2\.0"),
    "integer logits": (lambda: compute_sft_loss(LOGITS.long(), BATCH, ONES), DataError, r"logits is torch\.int64"),
    "shifted logits": (lambda: compute_sft_loss(LOGITS[:, :-1], BATCH, ONES), DataError, r"\(2, 2, 8\).*\(2, 3\)"),
    "float labels": (lambda: compute_sft_loss(LOGITS, FLOATS, ONES), DataError, r"labels is torch\.float32"),
    "a shifted mask": (lambda: compute_sft_loss(LOGITS, BATCH, ONES[:, 1:]), DataError, r"loss_mask is \(2, 2\)"),
    "a negative weight": (lambda: compute_sft_loss(LOGITS, BATCH, mask_with(-0.5)), DataError, r"mask holds -0\.5"),
    "a NaN weight": (lambda: compute_sft_loss(LOGITS, BATCH, mask_with(math.nan)), DataError, r"loss_mask holds nan"),
    "an infinite weight": (lambda: compute_sft_loss(LOGITS, BATCH, mask_with(math.inf)), DataError, r"holds inf"),
    "a label past the vocabulary": (
        lambda: compute_sft_loss(LOGITS[..., :7], BATCH, ONES), DataError, r"label is 7, .* 0\.\.6"),
    "a trained label of -1": (
        lambda: compute_sft_loss(LOGITS, torch.full((2, 3), -1), ONES), DataError, r"trained label is -1"),
    "labels of another shape": (
        lambda: apply_assistant_masking(BATCH, BATCH[:1], START), DataError, r"labels is \(1, 3\).*\(2, 3\)"),
    "float labels to mask": (
        lambda: apply_assistant_masking(BATCH, FLOATS, START), DataError, r"labels is torch\.float32"),
    "no start delimiter": (
        lambda: apply_assistant_masking(BATCH, BATCH, None), MarkerError, r"is None"),  # type: ignore[arg-type]
    "an empty start delimiter": (
        lambda: apply_assistant_masking(BATCH, BATCH, []), MarkerError, r"assistant_start_token is empty"),
    "an empty end delimiter": (
        lambda: apply_assistant_masking(BATCH, BATCH, START, []), MarkerError, r"assistant_end_token is empty"),
    "text for a delimiter": (
        lambda: apply_assistant_masking(BATCH, BATCH, "Assistant:"),  # type: ignore[arg-type]
        MarkerError, r"the text 'Assistant:'.*tokenizer\.encode"),
    "a float delimiter": (
        lambda: apply_assistant_masking(BATCH, BATCH, [1, 2.0]), MarkerError, r"\[1, 2\.0\]"),  # type: ignore[list-item]
    "a negative delimiter": (lambda: apply_assistant_masking(BATCH, BATCH, -1), MarkerError, r"is -1, which is not"),
    "one delimiter for two roles": (
        lambda: apply_assistant_masking(BATCH, BATCH, [START], user_start_token=START),
        MarkerError, r"assistant_start_token and user_start_token are both \[1\]"),
    "one delimiter for both ends": (
        lambda: apply_assistant_masking(BATCH, BATCH, START, START), MarkerError, r"are both \[1\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_by_name(case: str) -> None:
    call, error, message = REFUSED[case]

    with pytest.raises(error, match=message) as caught:
        call()

    assert isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
