"""``sft-mask detect``: the markers of a chat template, ready to be copied."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from sft_mask.cli.options import add_command, add_json, add_model, add_template, template_of

if TYPE_CHECKING:
    from sft_mask.core.markers import Markers


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "detect",
        run,
        summary="read the markers from a chat template",
        about="""
        Reads from the chat template what opens a turn of the user and of the model, what ends an answer, and what the
        generation prompt prefills. What is printed was proven on rendered conversations.
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
    from sft_mask.templates.detect import detect_markers

    tokenizer = load_tokenizer(args.model)
    template = template_of(args.chat_template)
    markers = detect_markers(tokenizer, template)
    prompt = _generation_prompt(tokenizer, template)
    if args.json:
        print_json(_as_dict(markers, prompt))
        return 0
    out = console()
    for line in _lines(args.model, markers, prompt):
        out.print(line)
    return 0


def _generation_prompt(tokenizer: Any, chat_template: str | None) -> str:
    """What the template adds behind a user's words to make the model speak."""
    from sft_mask.data.setup import read_tokenizer
    from sft_mask.templates.probes import try_render, two_turns

    template = read_tokenizer(tokenizer, chat_template).template
    assert template is not None, "markers were detected without a chat template"
    for parts in (False, True):
        said = two_turns(parts=parts)[:1]
        silent, asked = (try_render(template, said, add_generation_prompt=prompt) for prompt in (False, True))
        if silent is not None and asked is not None:
            return asked.text[len(template.whole_tokens_prefix(silent.text, asked.text)) :]
    return ""


def _prefilled(markers: Markers) -> list[str]:
    """What some generation prompts, or the template before some answers, write behind the plain header."""
    core, *others = map(str, markers.response)
    return [text.removeprefix(core) for text in others if text.startswith(core)]


def _as_dict(markers: Markers, prompt: str) -> dict[str, object]:
    return {
        "instruction_part": list(markers.instruction),
        "response_part": list(markers.response),
        "others": list(markers.others),
        "stops": list(markers.eots),
        "stop_headers": list(markers.eot_headers),
        "prefilled": _prefilled(markers),
        "generation_prompt": prompt,
        "complete": markers.complete,
    }


def _lines(model: str, markers: Markers, prompt: str) -> list[str]:
    core = str(markers.response[0])
    resumed = [text for text in map(str, markers.response) if not text.startswith(core)]
    facts = {
        "stops": _listed(markers.eots) + "  # trained: they end an answer",
        "others": _listed(markers.others)
        + "  # system, tool and what begins a conversation: masked" * bool(markers.others),
        "prefilled": _listed(_prefilled(markers))
        + "  # behind the header, not sampled: masked" * bool(_prefilled(markers)),
        "also_response": _listed(resumed) + "  # the model also speaks behind these",
        "generation_prompt": repr(prompt) + "  # none: the header always stands there" * (not prompt),
    }
    if not resumed:
        del facts["also_response"]
    whole = "yes" if markers.complete else "no: rows with tools need their messages column"
    return [
        f"# {model}: read from the chat template, proven on rendered conversations",
        f"instruction_part = {_literal(markers.instruction)}",
        f"response_part = {core!r}",
        "",
        *(f"{name} = {value}" for name, value in facts.items()),
        "",
        f"# all that the template writes is known: {whole}",
        "trainer = train_on_responses_only(trainer)  # finds the same by itself, or:",
        "trainer = train_on_responses_only(",
        f"    trainer, instruction_part={_literal(markers.instruction)}, response_part={core!r}",
        ")",
    ]


def _literal(texts: Any) -> str:
    return repr(texts[0]) if len(texts) == 1 else _listed(texts)


def _listed(texts: Any) -> str:
    return repr(list(texts))
