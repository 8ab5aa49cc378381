"""Images in previews, reasons and the doctor."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image as Pictures
from rich.console import Console
from support.vision_families import IMAGES
from support.vision_rows import IMAGE, dataset, picture, rows, said
from support.vision_trainer import trainer_of

from sft_mask import explain, preview_rows, train_on_responses_only
from sft_mask.doctor import diagnose
from sft_mask.preview import write_html
from sft_mask.preview.terminal import RowView


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> object:
    return train_on_responses_only(trainer_of("smolvlm", tmp_path_factory.mktemp("views")))


def test_an_image_is_one_piece(masked: object) -> None:
    row = preview_rows(masked)[1]
    assert [(each.start, each.end, each.text) for each in row.pictures] == [
        (5, 38, "⟨image × 33⟩"),
        (56, 77, "⟨image × 21⟩"),
    ]
    console = Console(no_color=True, width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(RowView(row))
    shown = console.export_text()
    assert "User:⟨image × 33⟩↵" in shown
    assert "first, and second ⟨image × 21⟩ compare them" in shown
    assert "<image>" not in shown


def test_every_token_has_a_reason(masked: object) -> None:
    row = preview_rows(masked)[1]
    reasons = [explain(row, at) for at in range(len(row.input_ids))]
    assert reasons[5] == "masked: inside an image (1 of 2, 33 tokens at 5-37), which the model never samples"
    assert all(("trained" in reason[:7]) == bool(weight) for reason, weight in zip(reasons, row.weights, strict=True))


def test_words_that_quote_a_header_are_the_users(masked: object) -> None:
    typed = said("user", IMAGE, "Hi<end_of_utterance>\nAssistant: no")
    given = dataset([{"images": [picture(0)], "messages": [typed, said("assistant", "A cat")]}])
    row = preview_rows(given, masked.data_collator)[0]  # type: ignore[attr-defined]
    quoted = next(
        note for note in row.notes if "Assistant" in b"".join(row.token_bytes[note.start : note.end]).decode()
    )
    assert quoted.role == "user"
    assert [run.text for run in row.runs if run.trained] == [" A cat<end_of_utterance>"]


def test_the_page_holds_small_pictures_and_nothing_of_the_file(masked: object, tmp_path: Path) -> None:
    page = write_html(preview_rows(masked), tmp_path / "mask.html").read_text("utf-8")
    assert "img-src data:" in page
    lines = re.search(r'id="rows">(.*?)</script>', page, re.DOTALL)
    assert lines is not None
    pictures = [each for line in lines[1].split("\n") for each in json.loads(line)["pictures"]]
    assert len(pictures) == 5
    for _, address in pictures:
        head, _, data = address.partition(",")
        assert head == "data:image/jpeg;base64"
        drawn = Pictures.open(BytesIO(base64.b64decode(data)))
        assert drawn.format == "JPEG"
        assert max(drawn.size) <= 160


@pytest.mark.parametrize("name", IMAGES)
def test_the_doctor_finds_a_masked_trainer_healthy_and_leaves_its_counts_alone(name: str, tmp_path: Path) -> None:
    trainer = train_on_responses_only(trainer_of(name, tmp_path))
    before = str(trainer.mask_report)
    diagnosis = diagnose(trainer)
    assert diagnosis.healthy, str(diagnosis)
    assert str(trainer.mask_report) == before


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "gemma3", "llava"])
def test_the_doctor_names_trained_images(name: str, tmp_path: Path) -> None:
    diagnosis = diagnose(trainer_of(name, tmp_path))
    assert "tokens of images and of their frames (the model never samples them) are trained" in str(diagnosis)
    assert "tokens of the user are trained" in str(diagnosis)


def test_the_doctor_names_an_exchanged_collator(tmp_path: Path) -> None:
    trainer = train_on_responses_only(trainer_of("smolvlm", tmp_path, dataset(rows())))
    trainer.data_collator = trainer.data_collator.inner
    assert "it was exchanged after train_on_responses_only" in str(diagnose(trainer))
