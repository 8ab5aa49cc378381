"""Loss masks and masked cross-entropy on plain tensors: the reference that everything else is checked against.

Shapes: ``B`` rows of ``T`` tokens over a vocabulary of ``V``. Every function takes one row ``(T,)`` or a batch
``(B, T)`` and returns a new tensor of the same shape, on the device of its input. Masks and labels align with
``input_ids``; only :func:`compute_sft_loss` shifts.

There are two ways to train on the response only, and they give the same loss: multiply the loss of each token by a
float mask (:func:`create_loss_mask`, :func:`create_loss_mask_batch`, :func:`compute_sft_loss`), or set the labels of
all other tokens to ``IGNORE_INDEX``, which ``F.cross_entropy`` and every Hugging Face model leave out
(:func:`prepare_labels_for_hf`, :func:`apply_assistant_masking`).
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from sft_mask._tensors import (
    as_int,
    listed,
    require_ids,
    require_int,
    require_loss_inputs,
    require_shape,
    require_vocabulary,
    shape_of,
)
from sft_mask.constants import IGNORE_INDEX
from sft_mask.errors import AmbiguousRowError, DataError, MarkerError, extra

with extra("train", "sft_mask.functional"):
    import torch
    from torch import Tensor
    from torch.nn.functional import cross_entropy

__all__ = [
    "apply_assistant_masking",
    "compute_sft_loss",
    "create_loss_mask",
    "create_loss_mask_batch",
    "prepare_labels_for_hf",
]


def create_loss_mask(input_ids: Tensor, response_start: int) -> Tensor:
    """1 from ``response_start`` on, 0 before: ``mask[..., t] = 1.0 if t >= response_start else 0.0``.

    One start for all rows, and padding counts as text; :func:`create_loss_mask_batch` does better on both.

    Args:
        input_ids: integers, ``(T,)`` or ``(B, T)``.
        response_start: index of the response's first token, ``0 <= response_start <= T``; ``T`` trains nothing.

    Returns:
        float32, the shape of ``input_ids``.

    Raises:
        DataError: ids that are not integers or have another rank; a start that is not an int or lies outside the row.

    >>> create_loss_mask(torch.arange(10), response_start=6).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """
    require_ids("input_ids", input_ids)
    start = require_int("response_start", response_start, "Give one int; create_loss_mask_batch takes one per row.")
    return _from_start_on(input_ids, start).float()


def create_loss_mask_batch(
    input_ids: Tensor,
    response_starts: int | Sequence[int] | Tensor,
    pad_token_id: int | None = None,
    attention_mask: Tensor | None = None,
    *,
    eos_token_id: int | None = None,
) -> Tensor:
    """1 from each row's own start on, 0 before it and on padding: ``mask[b, t] = (t >= starts[b]) * real[b, t]``.

    Which tokens are real (not padding), by the first rule that applies:

    1. ``attention_mask`` is exact: its zeros are padding.
    2. ``pad_token_id`` with an ``eos_token_id`` that differs: the run of pad ids that opens a row and the run that
       ends it are padding. A pad id between other tokens is text and stays.
    3. ``pad_token_id`` with the same ``eos_token_id``: likewise, but the first token of the run that ends a row is
       the end-of-turn token of the answer and stays, because the model must learn to stop. (A row cut off before its
       own end-of-turn token and then padded gains one: the ids alone cannot tell.) A row of pads alone is padding.
    4. ``pad_token_id`` alone: as 2 if some row ends in another token. If *every* row ends in the pad id, it may be the
       end-of-turn token too, or the batch may be padded to a fixed length; a wrong guess would silently lose the
       end-of-turn tokens, so it is refused.
    5. Neither: there is no padding.

    Args:
        input_ids: integers, ``(B, T)`` or one row ``(T,)``.
        response_starts: one index per row, or one int for all, counted in the padded row (left padding included).
        pad_token_id: the padding id; not used if ``attention_mask`` is given.
        attention_mask: 1 on tokens and 0 on padding, the shape of ``input_ids``.
        eos_token_id: the end-of-turn id; only needed to tell it from padding.

    Returns:
        float32, the shape of ``input_ids``.

    Raises:
        AmbiguousRowError: rule 4.
        DataError: shapes that disagree, a start outside its row, floats for ids, an attention mask that is not 0/1.

    >>> pad = eos = 2
    >>> ids = torch.tensor([[5, 6, 7, 8, 2, 2], [5, 6, 7, 8, 9, 2]])
    >>> create_loss_mask_batch(ids, [2, 3], pad_token_id=pad, eos_token_id=eos).tolist()
    [[0.0, 0.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]
    >>> attention_mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    >>> create_loss_mask_batch(ids, [2, 3], attention_mask=attention_mask).tolist()
    [[0.0, 0.0, 1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]]
    """
    require_ids("input_ids", input_ids)
    trained = _from_start_on(input_ids, response_starts)
    if attention_mask is not None:
        trained &= _real_by_attention(attention_mask, input_ids)
    elif pad_token_id is not None:
        trained &= ~_padding_by_id(input_ids, pad_token_id, eos_token_id)
    return trained.float()


def compute_sft_loss(logits: Tensor, labels: Tensor, loss_mask: Tensor) -> Tensor:
    """The mean negative log-likelihood of the trained tokens, weighted by ``loss_mask``.

    .. code-block:: python

        # position t predicts token t+1; nothing predicts token 0, so its weight is not used
        nll = cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")  # IGNORE_INDEX: 0
        w = loss_mask[:, 1:] * (labels[:, 1:] != IGNORE_INDEX)
        loss = (w * nll).sum() / w.sum()

    Only tokens with a weight are read. Logits elsewhere may be inf or NaN without reaching the loss or a gradient, and
    a label there may be any integer. If no token has a weight, the loss is 0 and so is its gradient, as an empty
    micro-batch needs; ``F.cross_entropy`` would give NaN. The mean is over all tokens of the batch, not over rows.

    Args:
        logits: floats, ``(B, T, V)`` or ``(T, V)``, not shifted.
        labels: integers, ``(B, T)`` or ``(T,)``, not shifted. ``IGNORE_INDEX`` means weight 0 whatever the mask says.
        loss_mask: aligned with ``labels``: bool, or 0/1, or any finite weights >= 0. Scaling it changes nothing.

    Returns:
        A scalar in nats per token: float64 for float64 logits, else float32 (bfloat16 and float16 are upcast first).

    Raises:
        DataError: shapes that disagree, integer logits, float labels, a negative or non-finite weight, a trained label
            outside ``0..V-1``.

    This is what ``ForCausalLMLoss`` of transformers computes, with weights instead of 0 and 1.

    >>> logits = torch.zeros(1, 4, 8)  # 8 equally likely tokens: log(8) nats
    >>> compute_sft_loss(logits, torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0.0, 0.0, 1.0, 0.5]]))
    tensor(2.0794)
    >>> compute_sft_loss(logits, torch.tensor([[1, 2, 3, 4]]), torch.zeros(1, 4))
    tensor(0.)
    """
    require_loss_inputs(logits, labels, loss_mask)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    targets, weights = labels[..., 1:].long(), loss_mask[..., 1:].to(dtype)
    trained = (weights > 0) & (targets != IGNORE_INDEX)
    # Selected, not multiplied by zero: 0 * nan is nan. The backward of a selection writes zeros everywhere else.
    logits, targets, weights = logits[..., :-1, :][trained], targets[trained], weights[trained]
    require_vocabulary(targets, vocabulary=logits.shape[-1])
    nll = cross_entropy(logits.to(dtype), targets, reduction="none")
    total = weights.sum()
    return (weights * nll).sum() / torch.where(total > 0, total, 1.0)


def prepare_labels_for_hf(input_ids: Tensor, response_start: int | Sequence[int] | Tensor) -> Tensor:
    """Labels for a Hugging Face model: ``input_ids`` with ``IGNORE_INDEX`` before the response.

    .. code-block:: python

        labels = input_ids.clone()
        labels[:response_start] = IGNORE_INDEX  # row by row

    The model shifts, so labels align with ``input_ids``. Padding is not looked at; to leave it out as well:
    ``labels.masked_fill(create_loss_mask_batch(...) == 0, IGNORE_INDEX)``.

    Args:
        input_ids: integers, ``(T,)`` or ``(B, T)``.
        response_start: index of the response's first token, ``0 <= start <= T``: one int for all, or one per row.

    Returns:
        int64, the shape of ``input_ids``.

    Raises:
        DataError: ids that are not integers or of another rank, starts that do not fit the rows.

    The idea is Stanford Alpaca's ``label[:source_len] = IGNORE_INDEX``.

    >>> prepare_labels_for_hf(torch.tensor([101, 102, 103, 104, 105, 201, 202, 203]), response_start=5).tolist()
    [-100, -100, -100, -100, -100, 201, 202, 203]
    """
    require_ids("input_ids", input_ids)
    return _keep(input_ids, _from_start_on(input_ids, response_start))


def apply_assistant_masking(
    input_ids: Tensor,
    labels: Tensor,
    assistant_start_token: int | Sequence[int] | Tensor,
    assistant_end_token: int | Sequence[int] | Tensor | None = None,
    *,
    user_start_token: int | Sequence[int] | Tensor | None = None,
    train_end_token: bool = True,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """``labels`` inside the assistant's turns, ``IGNORE_INDEX`` everywhere else; every turn of every row.

    A delimiter is one id or several consecutive ids. Each row is read from left to right:

    * ``assistant_start_token`` opens a turn. It is not trained: at inference it is part of the prompt.
    * ``assistant_end_token`` closes the turn and is trained, because the model must learn to stop
      (``train_end_token=False`` leaves it out). Everything before it is the answer, even a start delimiter. Give the
      end-of-turn token only: the newline that a template writes after it is never sampled.
    * ``user_start_token`` closes the turn and is not trained. It may be the common beginning of all headers
      (``<|im_start|>``).
    * Without an end delimiter, the next start delimiter closes the turn and opens another.
    * A turn that nothing closes runs to the end of its row, so an answer cut off by truncation is still trained.

    If an end delimiter and a header begin at the same token, the end delimiter counts. A row without a start delimiter
    trains nothing. Delimiters are found by their ids alone, so a start delimiter that a user typed opens a turn too.

    Args:
        input_ids: integers, ``(T,)`` or ``(B, T)``; searched for the delimiters.
        labels: integers, the shape of ``input_ids``. ``IGNORE_INDEX`` in them stays (padding, other masks).
        assistant_start_token: the id or ids after which the assistant's answer begins.
        assistant_end_token: the id or ids that end its turn.
        user_start_token: the id or ids that open a turn of any other role, or of any role.
        train_end_token: whether the end delimiter is trained.
        attention_mask: 1 on tokens and 0 on padding; only needed if ``labels`` has ids on padding and no end delimiter
            closes the last turn.

    Returns:
        int64, the shape of ``labels``.

    Raises:
        MarkerError: an empty delimiter, one that is not ids, one delimiter for two roles.
        DataError: shapes that disagree, floats for ids, an attention mask that is not 0/1.

    nanochat trains the assistant's tokens and its end token like this; the ``instruction_template`` of TRL's former
    completion-only collator closed turns by the user's header.

    >>> User, Assistant, colon, what, two_plus_two, four = 1, 2, 3, 10, 11, 12
    >>> ids = torch.tensor([User, colon, what, two_plus_two, Assistant, colon, four])
    >>> apply_assistant_masking(ids, ids, [Assistant, colon]).tolist()
    [-100, -100, -100, -100, -100, -100, 12]
    >>> end = 9
    >>> ids = torch.tensor([Assistant, 20, 21, end, User, 30, Assistant, 22, end])
    >>> apply_assistant_masking(ids, ids, Assistant, end).tolist()
    [-100, 20, 21, 9, -100, -100, -100, 22, 9]
    """
    require_ids("input_ids", input_ids)
    require_ids("labels", labels)
    require_shape("labels", labels, input_ids)
    delimiters = _Delimiters.read(assistant_start_token, assistant_end_token, user_start_token, train_end_token)
    trained = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, row_trained in zip(_rows(input_ids), _rows(trained), strict=True):
        for start, end in delimiters.turns(row):
            row_trained[start:end] = True
    if attention_mask is not None:
        trained &= _real_by_attention(attention_mask, input_ids)
    return _keep(labels, trained)


@dataclass(frozen=True, slots=True)
class _Delimiters:
    """The delimiters of a conversation as tuples of ids; an empty tuple if it was not given."""

    start: tuple[int, ...]
    end: tuple[int, ...]
    user: tuple[int, ...]
    train_end: bool

    @classmethod
    def read(cls, start: object, end: object, user: object, train_end: bool) -> _Delimiters:
        """Check what the caller gave; two roles never share a delimiter."""
        if start is None:
            raise MarkerError("assistant_start_token is None: nothing shows where an answer begins. Give its ids.")
        given = {"assistant_start_token": start, "assistant_end_token": end, "user_start_token": user}
        patterns = {name: _pattern(name, ids) for name, ids in given.items() if ids is not None}
        for (name, pattern), (other, same) in combinations(patterns.items(), 2):
            if pattern == same:
                raise MarkerError(
                    f"{name} and {other} are both {list(pattern)}: one delimiter cannot mark both. "
                    "Give each the ids that only it has, or leave one out."
                )
        start_ids, end_ids, user_ids = (patterns.get(name, ()) for name in given)
        return cls(start_ids, end_ids, user_ids, train_end)

    def turns(self, row: Tensor) -> Iterator[tuple[int, int]]:
        """The trained half-open span of each turn of one row, from left to right; one step per turn, not per token."""
        opens, closings = _occurrences(row, self.start), self._closings(row)
        places = [place for place, _, _ in closings]
        cursor = 0
        while (which := bisect_left(opens, cursor)) < len(opens):
            answer = opens[which] + len(self.start)
            closing = bisect_left(places, answer)
            _, end, cursor = closings[closing] if closing < len(closings) else (len(row), len(row), len(row))
            yield answer, end

    def _closings(self, row: Tensor) -> list[tuple[int, int, int]]:
        """Where a turn may close, in order: (place, end of its trained span, where to read on)."""
        ends = _occurrences(row, self.end)
        kept = len(self.end) if self.train_end else 0  # trained: the model must learn to stop
        found = [(place, place + kept, place + len(self.end)) for place in ends]
        headers = _occurrences(row, self.user) + ([] if self.end else _occurrences(row, self.start))
        found += [(place, place, place) for place in headers]  # read again from there: it may open the next turn
        return sorted(found, key=operator.itemgetter(0))  # stable: in a tie the end delimiter comes first


def _pattern(name: str, delimiter: object) -> tuple[int, ...]:
    """A delimiter, one id or several, as a tuple of ids."""
    if isinstance(delimiter, str | bytes):
        raise MarkerError(
            f"{name} is the text {delimiter!r}, but delimiters are token ids. "
            "Use tokenizer.encode(text, add_special_tokens=False), and check that those ids occur in your rows."
        )
    pattern = tuple(as_int(value) for value in listed(delimiter))
    if not pattern:
        raise MarkerError(f"{name} is empty: it would match everywhere. Give at least one token id, or leave it out.")
    ids = [value for value in pattern if value is not None and value >= 0]
    if len(ids) < len(pattern):
        raise MarkerError(f"{name} is {delimiter!r}, which is not token ids. Give an int >= 0, or a sequence of them.")
    return tuple(ids)


def _occurrences(row: Tensor, pattern: tuple[int, ...]) -> list[int]:
    """Every index at which ``pattern`` begins in ``row``, overlapping ones too; none for the empty pattern."""
    if not pattern or len(pattern) > len(row):
        return []
    windows = row.long().unfold(0, len(pattern), 1)
    places: list[int] = (windows == windows.new_tensor(pattern)).all(dim=1).nonzero().flatten().tolist()
    return places


def _from_start_on(input_ids: Tensor, response_starts: object) -> Tensor:
    """True from each row's start on, bool, the shape of ``input_ids``."""
    *leading, length = input_ids.shape
    rows = leading[0] if leading else 1
    way_out = "Give one int, or one int per row."
    starts = [require_int("response_start", value, way_out) for value in listed(response_starts, times=rows)]
    if len(starts) != rows:
        raise DataError(
            f"{len(starts)} response starts for {rows} rows (input_ids is {shape_of(input_ids)}). "
            "Give one per row, or a single int for all."
        )
    for row, start in enumerate(starts):
        if not 0 <= start <= length:
            raise DataError(
                f"response_start of row {row} is {start}, outside 0..{length}, the row's length in tokens. "
                f"Count from the left edge of the padded row; {length} itself trains nothing."
            )
    positions = torch.arange(length, device=input_ids.device)
    return (positions >= positions.new_tensor(starts).unsqueeze(1)).view_as(input_ids)


def _padding_by_id(input_ids: Tensor, pad_token_id: int, eos_token_id: int | None) -> Tensor:
    """True on padding, by rules 2 to 4 of :func:`create_loss_mask_batch`."""
    is_pad = input_ids == require_int("pad_token_id", pad_token_id)
    leading = is_pad.cumprod(-1).bool()
    trailing = is_pad.flip(-1).cumprod(-1).flip(-1).bool()
    if eos_token_id is None:
        if trailing.numel() and bool(trailing[..., -1].all()):
            raise AmbiguousRowError(
                f"every row ends in pad_token_id={pad_token_id}. If that is also the end-of-turn token, the first one "
                "of each row must be trained, otherwise none; the ids cannot tell. Give the tokenizer's eos_token_id=, "
                "or attention_mask=, which is exact."
            )
    elif require_int("eos_token_id", eos_token_id) == pad_token_id:
        trailing &= trailing.roll(1, -1)  # the first of the run ends the answer: the model must learn it
    return leading | trailing


def _real_by_attention(attention_mask: Tensor, input_ids: Tensor) -> Tensor:
    """``attention_mask`` as bool; anything but 0 and 1 is refused, because an additive mask means the opposite."""
    require_shape("attention_mask", attention_mask, input_ids)
    real = attention_mask == 1
    other = ~real & (attention_mask != 0)
    if bool(other.any()):
        raise DataError(
            f"attention_mask holds {attention_mask[other][0].item()}; only 1 (a token) and 0 (padding) are allowed. "
            " Give the tokenizer's own attention_mask, not an additive one or document numbers."
        )
    return real


def _keep(labels: Tensor, trained: Tensor) -> Tensor:
    """``labels`` where ``trained``, else IGNORE_INDEX; int64, a new tensor."""
    return labels.long().masked_fill(~trained, IGNORE_INDEX)


def _rows(tensor: Tensor) -> Tensor:
    """A view of ``(T,)`` or ``(B, T)`` as ``(B, T)``."""
    return tensor if tensor.dim() == 2 else tensor.unsqueeze(0)
