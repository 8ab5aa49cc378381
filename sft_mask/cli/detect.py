"""``sft-mask detect``: prints the markers of a chat template, ready to copy."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sft_mask.cli.options import add_command, add_json, add_model, add_template, template_of

if TYPE_CHECKING:
    from sft_mask.core.markers import Markers


def add_parser(commands: object) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "detect",
        run,
        summary="read the markers from a chat template",
        about="""
        Reads from the chat template what opens a user turn and an answer, what ends an answer, and what the template
        prefills. Everything printed was verified on rendered conversations. The output is Python: copy the two parts
        into train_on_responses_only, or leave both out there to have them detected.
        """,
        examples="""
          sft-mask detect Qwen/Qwen3-8B
          sft-mask detect ./my-model --chat-template template.jinja
          sft-mask detect ./my-model --json
        """,
    )
    add_model(parser)
    add_template(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the markers."""
    from sft_mask.cli.inputs import load_tokenizer
    from sft_mask.cli.output import console, print_json
    from sft_mask.templates.detection.detect import detect_markers

    tokenizer = load_tokenizer(args.model)
    template = template_of(args.chat_template)
    markers = detect_markers(tokenizer, template)
    prompt = _generation_prompt(tokenizer, template)
    if args.json:
        print_json(_as_dict(markers, prompt))
        return 0
    out = console()
    for line in _lines(args.model, markers, prompt):
        out.print(line, soft_wrap=True)  # a line of Python that is cut in two cannot be copied
    return 0


def _generation_prompt(tokenizer: object, chat_template: str | None) -> str:
    """What the template adds after a user's words to prompt an answer."""
    from sft_mask.data.setup import read_tokenizer
    from sft_mask.templates.probes import try_render, two_turns

    template = read_tokenizer(tokenizer, chat_template).template
    assert template is not None, "markers were detected without a chat template"
    for parts in (False, True):
        question = two_turns(parts=parts)[:1]
        without, prompted = (try_render(template, question, add_generation_prompt=prompt) for prompt in (False, True))
        if without is not None and prompted is not None:
            return prompted.text[len(template.whole_tokens_prefix(without.text, prompted.text)) :]
    return ""


def _prefilled(markers: Markers) -> list[str]:
    """What the template writes after the plain header, in generation prompts or before some answers."""
    core, *others = map(str, markers.response)
    return [text.removeprefix(core) for text in others if text.startswith(core)]


def _as_dict(markers: Markers, prompt: str) -> dict[str, object]:
    return {
        "instruction_part": list(markers.instruction),
        "response_part": list(markers.response),
        "others": list(markers.others),
        "eots": list(markers.eots),
        "eot_headers": list(markers.eot_headers),
        "prefilled": _prefilled(markers),
        "generation_prompt": prompt,
        "complete": markers.complete,
    }


def _lines(model: str, markers: Markers, prompt: str) -> list[str]:
    header = str(markers.response[0])
    instruction = repr(markers.instruction[0] if len(markers.instruction) == 1 else list(markers.instruction))
    resumed = [text for text in map(str, markers.response) if not text.startswith(header)]
    facts = [
        ("eots", list(markers.eots), "end-of-turn tokens: trained"),
        ("others", list(markers.others), "headers of system and tools, and what begins a conversation: masked"),
        ("prefilled", _prefilled(markers), "written by the template after the header: masked"),
        ("also_response", resumed, "other texts that open an answer"),
        ("generation_prompt", prompt, ""),
    ]
    known = "yes" if markers.complete else "no: rows with tools need their messages column"
    return [
        f"# {model}: read from the chat template, verified on rendered conversations",
        f"instruction_part = {instruction}",
        f"response_part = {header!r}",
        "",
        *(f"{name} = {found!r}" + f"  # {meaning}" * bool(found and meaning) for name, found, meaning in facts),
        "",
        f"# everything the template writes is known: {known}",
        "trainer = train_on_responses_only(trainer)  # detects the same, or:",
        "trainer = train_on_responses_only(",
        f"    trainer, instruction_part={instruction}, response_part={header!r}",
        ")",
    ]
