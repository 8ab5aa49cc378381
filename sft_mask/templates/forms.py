"""Whether a trained turn is what inference shows: the same context, the same words, after a generation prompt.

At inference an answer is sampled after ``P = render(messages[:k], add_generation_prompt=True)``, and finished it is
what ``F = render(messages[: k + 1])`` ends with. Reasoning templates render earlier answers otherwise, so that one row
of the whole conversation, ``R``, trains them in a form that is never sampled (Qwen3, the reasoning is ``r``)::

    F of answer 1    <user>q1 <assistant><think>r1</think>a1<end>
    R                <user>q1 <assistant>a1<end> <user>q2 <assistant><think>r2</think>a2<end>
                                         ~~ trained to come without its reasoning, after the prompt that asks for it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sft_mask.errors import DataError
from sft_mask.templates.fields import Field, FieldKind

if TYPE_CHECKING:
    from sft_mask.templates.align import TextTurn
    from sft_mask.templates.prompts import Arguments, Prompt
    from sft_mask.templates.turns import ConversationAligner, TextConversation

Message = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Form:
    """How a turn in a row compares with the turn that inference shows.

    Attributes:
        same: whether context and words are those of inference.
        lost_reasoning: whether inference shows reasoning that the row lacks.
        prompt: arguments of the generation prompt that ends where the turn begins, spelled as one types them; ``None``
            if no prompt does.
    """

    same: bool
    lost_reasoning: bool
    prompt: str | None


@dataclass(frozen=True, slots=True)
class Sampled:
    """An answer as inference shows it: the conversation that ends with it.

    Attributes:
        conversation: rendered up to the answer.
        turn: the answer's turn in it, the last one.
    """

    conversation: TextConversation
    turn: TextTurn

    @property
    def text(self) -> str:
        """The text up to the end of the answer."""
        return self.conversation.rendered.text[: self.turn.end]

    @property
    def stops(self) -> bool:
        """Whether the template ends the last answer with an end-of-turn token."""
        return self.turn.end > self.turn.eot_start


class InferenceForms:
    """What inference shows of one conversation.

    Args:
        aligner: renders it.
        messages: the conversation.
        tools: its tool definitions.
        variables: further variables of the template.
    """

    def __init__(
        self,
        aligner: ConversationAligner,
        messages: Sequence[Message],
        tools: object = None,
        variables: Mapping[str, object] | None = None,
    ) -> None:
        self._aligner, self._messages = aligner, messages
        self._tools, self._variables = tools, variables
        self._sampled: dict[int, Sampled | None] = {}

    def sampled(self, message: int) -> Sampled | None:
        """The answer of a message as inference shows it; ``None`` if the template does not render it at the end."""
        if message not in self._sampled:
            self._sampled[message] = self._read(message)
        return self._sampled[message]

    def _read(self, message: int) -> Sampled | None:
        conversation = self._up_to(message)
        turn = conversation.turns[-1] if conversation is not None and conversation.turns else None
        if conversation is None or turn is None or turn.message != message:
            return None
        return Sampled(conversation, turn)

    def _up_to(self, message: int) -> TextConversation | None:
        """The conversation that ends with a message; ``None`` if the template refuses it."""
        try:
            return self._aligner.conversation(self._messages[: message + 1], self._tools, self._variables)
        except DataError:
            return None

    def is_unwritten(self, message: int) -> bool:
        """Whether the template writes nothing of an answer that ends the conversation."""
        conversation = self._up_to(message)
        return conversation is not None and not conversation.written.has_any(message)

    def prompt_before(self, context: str, messages: int) -> Prompt | None:
        """The generation prompt after the first messages that a context is; ``None`` if it is none of them."""
        for prompt in self._aligner.prompts:
            if self._prompt_text(messages, prompt.arguments) == context:
                return prompt
        return None

    def opens(self, sampled: Sampled) -> bool:
        """Whether some generation prompt is a beginning of a finished answer, as it must be at inference."""
        text, first = sampled.text, sampled.turn.opens_message
        prompts = (self._prompt_text(first, prompt.arguments) for prompt in self._aligner.prompts)
        return any(prompt is not None and text.startswith(prompt) for prompt in prompts)

    def _prompt_text(self, messages: int, arguments: Arguments) -> str | None:
        try:
            return self._aligner.template.render(
                self._messages[:messages],
                tools=self._tools,
                add_generation_prompt=True,
                variables={**arguments, **(self._variables or {})},
            ).text
        except DataError:
            return None

    def compare(self, conversation: TextConversation, turn: TextTurn) -> Form:
        """The form of a turn in a rendered conversation.

        A last answer that its template leaves open (the end of turn is the next header) is compared without its end.
        """
        context = conversation.rendered.text[: turn.start]
        prompt = self.prompt_before(context, turn.opens_message)
        spelled = None if prompt is None else str(prompt)
        if turn.message == len(self._messages) - 1:
            return Form(True, False, spelled)
        sampled = self.sampled(turn.message)
        if sampled is None:
            return Form(False, False, spelled)
        end = turn.end if sampled.stops else turn.eot_start
        same = conversation.rendered.text[:end] == sampled.text and turn.start == sampled.turn.start
        return Form(same, not same and self._lost_reasoning(conversation, sampled, turn.message), spelled)

    def _lost_reasoning(self, conversation: TextConversation, sampled: Sampled, message: int) -> bool:
        reasoning = Field(message, FieldKind.REASONING)
        shown, kept = sampled.conversation.written, conversation.written
        return shown.holds(reasoning, self._messages) and not kept.holds(reasoning, self._messages)
