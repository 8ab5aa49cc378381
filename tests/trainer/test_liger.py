"""Liger's kernels: TRL applies those of the layers and keeps its own loss, so masks and weights reach it.

The kernels need a GPU; what is applied in their place here says what TRL asked Liger for.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from support.tiny import arms, build, messages_dataset

from sft_mask import Policy, train_on_responses_only

POLICIES = {"mask": Policy(), "prompt": Policy(prompt_weight=0.1), "turn": Policy(reduction="turn")}
pytestmark = [pytest.mark.usefixtures("in_tmp_path"), pytest.mark.filterwarnings("ignore:.use_liger_kernel")]


@pytest.fixture
def asked_of_liger(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What was asked of Liger; each layer that it would replace computes what it computed before."""
    asked: list[dict[str, Any]] = []

    def apply(model: Any, **config: bool) -> None:
        original = model.model.norm.forward
        model.model.norm.forward = lambda hidden: original(hidden.clone())
        asked.append(config)

    module = ModuleType("liger_kernel.transformers")
    module._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr("transformers.integrations.liger.is_liger_kernel_available", lambda: True)
    return asked


def losses(policy: Policy, **options: Any) -> list[float]:
    trainer = build("out", messages_dataset(8), **options)
    train_on_responses_only(trainer, policy=policy).train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.newest
@pytest.mark.parametrize("arm", arms(POLICIES))
def test_the_loss_with_ligers_layers_is_that_without(arm: str, asked_of_liger: list[dict[str, Any]]) -> None:
    plain = losses(POLICIES[arm])
    assert losses(POLICIES[arm], use_liger_kernel=True) == plain
    assert asked_of_liger == [{"fused_linear_cross_entropy": False}]
    assert len(plain) == 2


@pytest.mark.newest
def test_ligers_own_loss_is_refused_by_trl() -> None:
    with pytest.raises(ValueError, match="fused_linear_cross_entropy"):
        build("out", use_liger_kernel=True, liger_kernel_config={"fused_linear_cross_entropy": True})
