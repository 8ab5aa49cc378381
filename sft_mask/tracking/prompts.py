"""Prompts as a caller gives them, and as the trained model is shown them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.errors import DataError
from sft_mask.trainer.inference import prompt_arguments, prompt_text, rendering_template

Messages = Sequence[Mapping[str, object]]
_WAY_OUT = 'Give a text, or a list of messages such as [{"role": "user", "content": "..."}].'


@dataclass(frozen=True, slots=True)
class Shown:
    """A prompt as the model is shown it.

    Attributes:
        given: what the user said last.
        ids: its tokens, generation prompt included.
    """

    given: str
    ids: tuple[int, ...]


def checked_prompts(prompts: object) -> list[str | Messages]:
    """The prompts, after a look at each.

    Raises:
        DataError: not a list of prompts, an empty one, or a prompt that is neither text nor messages.

    >>> checked_prompts(["Hi?"])
    ['Hi?']
    """
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence):
        raise DataError(
            f"The prompts are a {type(prompts).__name__}, {prompts!r:.80}. Give a list of prompts, each a text or a "
            "list of messages."
        )
    if not prompts:
        raise DataError("There are no prompts. Give at least one.")
    return [_checked(prompt, number) for number, prompt in enumerate(prompts)]


def _checked(prompt: object, number: int) -> str | Messages:
    if isinstance(prompt, Mapping):
        raise DataError(f"Prompt {number} is a single message. Put it in a list: [{prompt!r:.80}].")
    if not isinstance(prompt, str) and not (
        isinstance(prompt, Sequence) and all(isinstance(message, Mapping) for message in prompt)
    ):
        raise DataError(f"Prompt {number} is {prompt!r:.80}, of type {type(prompt).__name__}. {_WAY_OUT}")
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise DataError(f"Prompt {number} is empty. {_WAY_OUT}")
    if not isinstance(prompt, str):
        _check_messages(prompt, number)
    return prompt


def _check_messages(messages: Messages, number: int) -> None:
    for at, message in enumerate(messages):
        if not isinstance(message.get("role"), str) or message.get("content") is None:
            raise DataError(f"Message {at} of prompt {number} has no role or no content: {message!r:.80}. {_WAY_OUT}")
        if not _is_text(message["content"]):
            raise DataError(
                f"Message {at} of prompt {number} holds more than text: {message['content']!r:.80}. Only prompts of "
                "text are answered; leave images and audio out."
            )
    if messages[-1]["role"] in ASSISTANT_ROLES:
        raise DataError(
            f"Prompt {number} ends with a message of the assistant, so there is nothing left to answer. End it with "
            "the user's."
        )


def _is_text(content: object) -> bool:
    """Whether a content is text, or a list of parts that are."""
    if isinstance(content, str):
        return True
    return isinstance(content, Sequence) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    )


def show_prompts(
    trainer: Any, prompts: Sequence[str | Messages], arguments: Mapping[str, object] | None
) -> list[Shown]:
    """The prompts as a masked trainer's model is to be shown them.

    Args:
        trainer: a masked trainer.
        prompts: texts and messages. A text is what the user says; where the rows are in a format of their own, without
            a chat template, it is the whole prompt.
        arguments: of the chat template; ``None`` for those of the generation prompt that was trained most.

    Raises:
        DataError: a prompt that the template refuses, or that does not end where an answer begins.
    """
    template = rendering_template(trainer)
    if template is None:
        return [_whole(trainer, prompt, number) for number, prompt in enumerate(prompts)]
    given = prompt_arguments(trainer) if arguments is None else arguments
    tokenizer = trainer._sft_mask.tokenizer
    shown = []
    for number, prompt in enumerate(prompts):
        messages: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        try:
            text = prompt_text(template, messages, given)
        except DataError as error:
            raise DataError(f"Prompt {number} cannot be rendered by the chat template: {error}") from error
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        shown.append(Shown(str(messages[-1]["content"]), tuple(ids)))
    return shown


def _whole(trainer: Any, prompt: str | Messages, number: int) -> Shown:
    """A prompt in the rows' own format."""
    masker, tokenizer = trainer._sft_mask.masker, trainer._sft_mask.tokenizer
    headers = [text for text in masker.markers.response if isinstance(text, str)] if masker is not None else []
    if not isinstance(prompt, str):
        raise DataError(
            f"Prompt {number} is a list of messages, but no chat template rendered the rows. Write the prompt as the "
            "rows are written, up to the answer."
        )
    if headers and not any(prompt.rstrip().endswith(header.rstrip()) for header in headers):
        raise DataError(
            f"Prompt {number} ends with {prompt[-30:]!r}, not with a marker that opens an answer "
            f"({', '.join(map(repr, headers))}), and no chat template adds one. Write the prompt as the rows are "
            "written, up to the answer."
        )
    ids = list(tokenizer(prompt)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        ids.pop()  # some tokenizers end every text with it
    return Shown(prompt, tuple(ids))
