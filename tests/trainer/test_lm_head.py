"""The compact LM head against log-softmax in float64, for every kind of head and of loss; and where it is used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.tiny import build, chats, model
from torch import Tensor
from trl.trainer import utils

from sft_mask import train_on_responses_only
from sft_mask._compat import chunked_head
from sft_mask.trainer import lm_head as head
from sft_mask.trainer.lm_head import supervised_positions_only

pytestmark = pytest.mark.newest
NEVER = 1 << 40


@dataclass(frozen=True)
class Case:
    """A head: its bias, soft cap, logit scale and temperature."""

    bias: bool = False
    cap: float | None = None
    factor: float = 1.0
    temperature: float = 1.0

    def inputs(self, dtype: torch.dtype = torch.float64, positions: int = 23) -> list[Tensor | None]:
        torch.manual_seed(4)
        hidden, weight, bias = torch.randn(positions, 8), torch.randn(37, 8), torch.randn(37)
        return (
            [x.to(dtype).requires_grad_() for x in (hidden, weight)]
            + [bias.to(dtype).requires_grad_()] * self.bias
            + ([None] * (not self.bias))
        )

    def theirs_arguments(self) -> tuple[Any, ...]:
        return self.temperature, 32768, self.cap, self.factor, ("log_probs", "entropy", "is_top1")

    def plain(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``(N, V)`` log-probabilities."""
        logits = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
        logits = logits * self.factor
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return torch.log_softmax(logits / self.temperature, -1)


CASES = {
    "plain": Case(),
    "bias": Case(bias=True),
    "soft cap": Case(cap=3.0),
    "scale": Case(factor=0.25),
    "everything": Case(bias=True, cap=2.0, factor=1.5, temperature=0.7),
    "bias and temperature": Case(bias=True, temperature=2.0),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda log_probs, entropy: -log_probs.sum() / 7,
    "not a sum": lambda log_probs, entropy: (log_probs * log_probs.detach().exp()).sum(),
    "with the entropy": lambda log_probs, entropy: -log_probs.sum() + 0.1 * entropy.sum(),
    "of the entropy": lambda log_probs, entropy: entropy.square().sum(),
}


def targets(positions: int = 23) -> Tensor:
    return torch.randint(0, 37, (positions,), generator=torch.Generator().manual_seed(5))


def ours(case: Case, inputs: list[Tensor | None], weights: Tensor | None = None, proportional: bool = True) -> Any:
    theirs = chunked_head()
    assert theirs is not None
    made = head._Head(theirs, weights, proportional)
    return made.apply(*inputs, targets(len(inputs[0])), *case.theirs_arguments())  # type: ignore[arg-type]


def gradients(loss: Tensor, inputs: list[Tensor | None]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [x for x in inputs if x is not None], retain_graph=True))


def apart(given: list[Tensor], wanted: list[Tensor]) -> float:
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(given, wanted, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.fixture(params=[NEVER, 37 * 5], ids=["one tile", "tiles of five"], autouse=True)
def _tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_TILE", request.param)


@each_case
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["fp64", "fp32"])
def test_scores_and_gradients_are_those_of_log_softmax(case: Case, dtype: torch.dtype, near: float) -> None:
    inputs = case.inputs(dtype)
    wanted = case.plain(*inputs)  # type: ignore[arg-type]
    entropy = -(wanted.exp() * wanted).sum(-1)
    log_probs, given_entropy, squares, means, is_top1 = ours(case, inputs)
    chosen = wanted.gather(1, targets().unsqueeze(1)).squeeze(1)
    assert apart([log_probs, given_entropy], [chosen, entropy]) < near
    assert is_top1.tolist() == (wanted.argmax(-1) == targets()).tolist()
    assert squares is None
    assert means is None
    loss, wanted_loss = -log_probs.sum() / 7, -chosen.sum() / 7
    assert apart(gradients(loss, inputs), gradients(wanted_loss, inputs)) < near


@each_case
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("proportional", [True, False])
def test_whatever_the_loss_is_its_gradients_are_right(
    case: Case, loss: Callable[[Tensor, Tensor], Tensor], proportional: bool
) -> None:
    inputs = case.inputs()
    wanted = case.plain(*inputs)  # type: ignore[arg-type]
    chosen = wanted.gather(1, targets().unsqueeze(1)).squeeze(1)
    log_probs, entropy, *_ = ours(case, inputs, proportional=proportional)
    given = gradients(loss(log_probs, entropy), inputs)
    # TRL's function, which makes the gradients of unforeseen losses, has float32 sums
    assert apart(given, gradients(loss(chosen, -(wanted.exp() * wanted).sum(-1)), inputs)) < 1e-5


@each_case
@pytest.mark.parametrize("foreseen", [True, False])
def test_weights_that_were_foreseen_and_weights_that_were_not(case: Case, foreseen: bool) -> None:
    inputs = case.inputs()
    weights = torch.rand(23, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    weights[3] = 0
    wanted = case.plain(*inputs).gather(1, targets().unsqueeze(1)).squeeze(1)  # type: ignore[arg-type]
    log_probs, *_ = ours(case, inputs, weights if foreseen else weights.flip(0))
    assert apart(
        gradients((log_probs * weights).sum() / 3, inputs), gradients((wanted * weights).sum() / 3, inputs)
    ) < (1e-12 if foreseen else 1e-5)


@each_case
def test_a_second_backward_pass_over_the_same_graph_is_right(case: Case) -> None:
    inputs = case.inputs()
    wanted = gradients(case.plain(*inputs).gather(1, targets().unsqueeze(1)).sum(), inputs)  # type: ignore[arg-type]
    log_probs, *_ = ours(case, inputs)
    first, second = gradients(log_probs.sum(), inputs), gradients(log_probs.sum(), inputs)
    assert apart(first, wanted) < 1e-12
    assert apart(second, wanted) < 1e-5


def test_a_frozen_head_takes_any_loss_without_their_function(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["bias"]
    inputs = case.inputs()
    for parameter in inputs[1:]:
        assert parameter is not None
        parameter.requires_grad_(False)
    monkeypatch.setattr(head, "_by_theirs", None)
    log_probs, *_ = ours(case, inputs, proportional=False)
    hidden = inputs[0]
    assert hidden is not None
    wanted = case.plain(*inputs).gather(1, targets().unsqueeze(1)).squeeze(1)  # type: ignore[arg-type]
    (given,) = torch.autograd.grad(log_probs.square().sum(), hidden)
    assert apart([given], list(torch.autograd.grad(wanted.square().sum(), hidden))) < 1e-12


def test_weights_of_another_number_of_positions_are_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt learning puts tokens in front, so the first of a row is predicted too; its head does not learn."""
    case = CASES["plain"]
    inputs = case.inputs()
    wanted = gradients(case.plain(*inputs).gather(1, targets().unsqueeze(1)).sum(), inputs)  # type: ignore[arg-type]
    few = torch.ones(22, dtype=torch.float64)
    log_probs, *_ = ours(case, inputs, few)
    assert apart(gradients(log_probs.sum(), inputs), wanted) < 1e-5  # by their function, in float32
    assert inputs[1] is not None
    inputs[1].requires_grad_(False)
    monkeypatch.setattr(head, "_by_theirs", None)
    log_probs, *_ = ours(case, inputs, few)
    assert inputs[0] is not None
    assert apart(list(torch.autograd.grad(log_probs.sum(), inputs[0])), wanted[:1]) < 1e-12


def test_ties_are_won_by_the_first_token() -> None:
    hidden, weight = torch.ones(3, 1), torch.tensor([[1.0], [2.0], [2.0], [0.0]])
    theirs = chunked_head()
    assert theirs is not None
    made = head._Head(theirs, None, True)
    *_, is_top1 = made.apply(hidden, weight, None, torch.tensor([0, 1, 2]), 1.0, 32768, None, 1.0, ("is_top1",))
    assert is_top1 is not None
    assert is_top1.tolist() == [False, True, False]


@each_case
def test_no_supervised_position_gives_gradients_of_zero(case: Case) -> None:
    inputs = case.inputs(positions=0)
    log_probs, entropy, *_ = ours(case, inputs)
    assert log_probs.shape == entropy.shape == (0,)
    assert not any(x.any() for x in gradients(log_probs.sum(), inputs))


@each_case
def test_without_gradients_the_scores_are_the_same_and_no_sums_are_made(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = case.inputs()
    wanted = [x.detach() for x in ours(case, inputs)[:2]]
    monkeypatch.setattr(head._Sums, "add", None)
    with torch.no_grad():
        assert apart(ours(case, inputs)[:2], wanted) < 1e-12


@pytest.mark.parametrize("how", ["bf16 model", "autocast"])
def test_in_low_precision_it_is_no_further_from_the_truth_than_their_own(how: str) -> None:
    case = CASES["bias"]
    inputs = case.inputs(torch.bfloat16 if how == "bf16 model" else torch.float32, positions=400)
    wanted = case.plain(*inputs).gather(1, targets(400).unsqueeze(1)).squeeze(1)  # type: ignore[arg-type]
    truth = gradients(wanted.sum(), inputs)
    theirs = chunked_head()
    assert theirs is not None
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        given, *_ = ours(case, inputs)
        their, *_ = theirs.apply(*inputs, targets(400), *case.theirs_arguments())
    assert given.dtype == their.dtype
    assert apart([given], [wanted]) <= 1.01 * apart([their], [wanted])
    for mine, other, true in zip(gradients(given.sum(), inputs), gradients(their.sum(), inputs), truth, strict=True):
        assert mine.dtype == other.dtype
        assert apart([mine], [true]) <= 1.01 * apart([other], [true])


def test_scores_that_only_their_function_makes_are_left_to_it() -> None:
    case = CASES["plain"]
    inputs = case.inputs(torch.float32)
    theirs = chunked_head()
    assert theirs is not None
    asked = ("log_probs", "mean_logits")
    given = head._Head(theirs, None, True).apply(*inputs, targets(), 1.0, 32768, None, 1.0, asked)  # type: ignore[arg-type]
    assert given[3] is not None
    assert apart([given[3]], [(inputs[0] @ inputs[1].T).mean(-1)]) < 1e-5  # type: ignore[operator, union-attr]


# where it is used


class Watched:
    """Counts positions that are scored."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.positions: list[int] = []
        score = head._score

        def counting(hidden: Tensor, *rest: Any) -> Any:
            self.positions.append(len(hidden))
            return score(hidden, *rest)

        monkeypatch.setattr(head, "_score", counting)


def trained(folder: Path, **options: Any) -> Any:
    data = Dataset.from_list([{"messages": messages} for messages in chats(8, seed=4)])
    trainer = build(folder, data, network=model(), per_device_train_batch_size=8, max_steps=1, **options)
    train_on_responses_only(trainer).train()
    return trainer


def test_a_step_projects_supervised_tokens_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    before = utils._use_triton, utils._ChunkedLogProbFunction
    trainer = trained(tmp_path)
    assert watched.positions == [trainer.mask_report.splits["train"].trained_tokens]
    assert (utils._use_triton, utils._ChunkedLogProbFunction) == before


def test_with_dft_a_head_that_learns_is_left_to_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    trained(tmp_path, loss_type="dft")
    assert watched.positions == []


def test_an_error_in_the_loss_leaves_trl_as_it_was() -> None:
    before = utils._use_triton, utils._ChunkedLogProbFunction
    seen: list[Any] = []
    with pytest.raises(ZeroDivisionError), supervised_positions_only(None, targets(), None, proportional=True):
        seen.append(utils._use_triton) or 1 / 0
    assert seen != [before[0]]
    assert (utils._use_triton, utils._ChunkedLogProbFunction) == before


@pytest.mark.parametrize("why", ["compiled", "their kernel", "no labels", "another device", "another TRL"])
def test_where_trl_does_it_or_cannot_nothing_is_touched(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, labels = copy.deepcopy(model()), None if why == "no labels" else targets()
    if why == "compiled":
        network = torch.compile(network)
    if why == "their kernel":
        monkeypatch.setattr(utils, "_use_triton", lambda _: True)
    if why == "another device":
        labels = targets().to("meta")
    if why == "another TRL":
        monkeypatch.setattr(
            utils, "_ChunkedLogProbFunction", type("Another", (), {"forward": lambda ctx, hidden: None})
        )
    before = utils._use_triton, utils._ChunkedLogProbFunction
    with supervised_positions_only(network, labels, None, proportional=True):
        assert (utils._use_triton, utils._ChunkedLogProbFunction) == before
