"""Checks of the arguments of :mod:`sft_mask.functional`."""

from __future__ import annotations

import operator
from collections.abc import Iterable

from sft_mask.errors import DataError, extra

with extra("train", "sft_mask.functional"):
    import torch
    from torch import Tensor


def listed(values: object, times: int = 1) -> list[object]:
    """The members of a sequence or tensor, or one value ``times`` over."""
    plain: object = values.tolist() if isinstance(values, Tensor) else values
    return list(plain) if isinstance(plain, Iterable) else [plain] * times


def as_int(value: object) -> int | None:
    """The value as an int (NumPy and torch scalars too); None for a bool, a float or a string."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # a TypeError is the answer no
    except TypeError:
        return None


def require_int(name: str, value: object, way_out: str = "Give an int.") -> int:
    """The value as an int; raises if it is not one."""
    number = as_int(value)
    if number is None:
        raise DataError(f"{name} is {value!r}: a {type(value).__name__} is neither an index nor an id. {way_out}")
    return number


def require_tensor(name: str, value: object) -> None:
    """Raises if a value is not a tensor."""
    if not isinstance(value, Tensor):
        raise DataError(f"{name} is a {type(value).__name__}, not a tensor. Give torch.tensor({name}).")


def require_ids(name: str, tensor: Tensor) -> None:
    """Raises if a tensor is not token ids, ``(T,)`` or ``(B, T)``."""
    require_tensor(name, tensor)
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise DataError(f"{name} is {tensor.dtype}, but token ids are integers. Give {name}.long() if they are ids.")
    if tensor.dim() not in (1, 2):
        raise DataError(f"{name} has the shape {shape_of(tensor)}. Give one row (T,) or a batch of rows (B, T).")


def require_shape(name: str, tensor: Tensor, input_ids: Tensor, other: str = "input_ids") -> None:
    """Raises if a tensor does not have the shape of another."""
    require_tensor(name, tensor)
    if tensor.shape != input_ids.shape:
        raise DataError(
            f"{name} is {shape_of(tensor)} and {other} is {shape_of(input_ids)}: they must align token by token. "
            "Take both from the same batch, neither of them shifted."
        )


def require_loss_inputs(logits: Tensor, labels: Tensor, loss_mask: Tensor) -> None:
    """Raises if logits, labels and weights do not fit each other."""
    require_ids("labels", labels)
    require_shape("loss_mask", loss_mask, labels, other="labels")
    require_tensor("logits", logits)
    if not logits.is_floating_point():
        raise DataError(f"logits is {logits.dtype}, but must be floats. Give the model's output.logits.")
    if logits.shape[:-1] != labels.shape:
        raise DataError(
            f"logits is {shape_of(logits)} and labels is {shape_of(labels)}: logits must have one more dimension, the "
            "vocabulary, and the same tokens. Give both unshifted; the shift happens inside."
        )
    wrong = ~torch.isfinite(loss_mask) | (loss_mask < 0)
    if bool(wrong.any()):
        raise DataError(
            f"loss_mask holds {loss_mask[wrong][0].item()}: a weight must be finite and not negative, because the loss "
            "is divided by their sum. Give 0 for a token that is not trained."
        )


def require_vocabulary(targets: Tensor, vocabulary: int) -> None:
    """Raises if a trained label is outside the vocabulary."""
    outside = (targets < 0) | (targets >= vocabulary)
    if bool(outside.any()):
        raise DataError(
            f"a trained label is {int(targets[outside][0])}, but the logits have the ids 0..{vocabulary - 1}. "
            "Mask that token, or resize the model's embeddings if tokens were added."
        )


def shape_of(tensor: Tensor) -> str:
    """The shape of a tensor as text."""
    return str(tuple(tensor.shape))
