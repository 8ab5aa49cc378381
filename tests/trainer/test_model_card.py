"""The model card says what was trained, is written whatever happens, and is untouched without a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.plain_trainer import build_plain
from support.tiny import build, messages_dataset, tokenizer
from trl import SFTTrainer

from sft_mask import Policy, Region, mask_dataset, train_on_responses_only
from sft_mask.errors import DataError

CARD = Path("out") / "README.md"

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def card_of(trainer: Any) -> str:
    Path(trainer.args.output_dir).mkdir(exist_ok=True)
    trainer.create_model_card(model_name="tiny")
    return CARD.read_text("utf-8")


def masked(**settings: Any) -> SFTTrainer:
    return train_on_responses_only(build("out", messages_dataset(24)), **settings)


def test_the_card_says_share_markers_stops_policy_and_prompt() -> None:
    trainer = masked()
    card, counts = card_of(trainer), trainer.mask_report.splits["train"]
    share = f"{100 * counts.share:.1f} %"
    assert f"- trained: {counts.trained_tokens:,} of {counts.tokens:,} tokens ({share}) in 24 rows\n" in card
    markers = r"`'<|im_start|>user\n'` → `'<|im_start|>assistant\n'`"
    assert f"- markers: {markers} (read from the chat template)\n" in card
    assert f"- end-of-turn tokens: `<|im_end|>`, {counts.stops_trained} of {counts.turns_with_stop} trained\n" in card
    assert "- policy: every answer, each token with the same weight\n" in card
    assert "- generation prompt: `apply_chat_template(messages, add_generation_prompt=True)`\n" in card


def test_the_section_comes_before_the_versions_of_trls_card() -> None:
    card = card_of(masked())
    assert card.index("### What was trained") < card.index("### Framework versions") < card.index("## Citations")
    assert card.startswith("---\n"), "the metadata stay in front"


def test_a_policy_is_named_as_it_is_written() -> None:
    card = card_of(masked(policy=Policy(turns="last", regions=[Region("`a", "b")])))
    assert "- policy: `` Policy(turns='last', " in card, "a code span that may hold the region's own backtick"
    assert "Region(start='`a', end='b', " in card


def test_a_second_card_says_it_once() -> None:
    trainer = train_on_responses_only(build_plain())
    card_of(trainer)
    assert card_of(trainer).count("### What was trained") == 1


def test_a_checkpoint_has_the_card(in_tmp_path: Path) -> None:
    trainer = train_on_responses_only(build("out", messages_dataset(24), save_strategy="steps", save_steps=2))
    trainer.train()
    assert "### What was trained" in CARD.read_text("utf-8")


def test_labels_that_came_with_the_rows_are_those_of_their_own_policy() -> None:
    made = mask_dataset(messages_dataset(24), tokenizer(), policy=Policy(turns="last"))
    card = card_of(train_on_responses_only(build("out", made)))
    assert " in 24 rows\n" in card
    assert "- policy: `Policy(turns='last', " in card


def test_the_card_is_written_if_the_mask_cannot_be_described(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> str:
        raise DataError("no such column")

    monkeypatch.setattr("sft_mask.trainer.model_card.card_section", fail)
    card = card_of(masked())
    assert "This model was trained with SFT" in card
    assert "sft_mask" not in card
    assert [record.message for record in caplog.records if record.name == "sft_mask.trainer.model_card"] == [
        f"The model card {CARD} does not say what was trained: no such column"
    ]


def test_no_card_is_made_where_the_trainer_makes_none(in_tmp_path: Path) -> None:
    class Cardless(SFTTrainer):
        def create_model_card(self, *args: object, **kwargs: object) -> None:
            pass

    trainer = train_on_responses_only(build("out", messages_dataset(24), kind=Cardless))
    trainer.create_model_card()
    assert not CARD.exists()


def test_the_card_of_a_trainer_without_a_mask_is_unchanged() -> None:
    plain = card_of(build("out", messages_dataset(24)))
    assert "sft_mask" not in plain
    assert "What was trained" not in plain
    with_mask = card_of(masked())
    begin, end = with_mask.index("<!-- sft_mask: what"), with_mask.index("<!-- sft_mask: end -->\n\n")
    assert with_mask[:begin] + with_mask[end:].removeprefix("<!-- sft_mask: end -->\n\n") == plain
