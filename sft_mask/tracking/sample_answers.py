"""``SampleAnswers``: what the model answers while it is trained, and whether it stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft_mask.errors import DataError, UnsupportedError, extra
from sft_mask.tracking.generation import Answer, answers
from sft_mask.tracking.log_mask import is_last_step, require_mask
from sft_mask.tracking.pages import answers_page
from sft_mask.tracking.prompts import Messages, Shown, checked_prompts, show_prompts
from sft_mask.tracking.trackers import trackers_of
from sft_mask.trainer.inference import stops_of

with extra("train", "SampleAnswers"):
    from transformers import Trainer, TrainerCallback


class SampleAnswers(TrainerCallback):
    """Lets the model answer some prompts before the first step, every few steps, and after the last one.

    The model is shown what inference shows it, the generation prompt that was trained included, and stops where the
    mask says that an answer ends. Answers are greedy. The share of answers that the model ended itself is logged as
    ``samples/stop_rate``, the mean number of their tokens (without the end) as ``samples/mean_length``, and prompts
    and answers go to the trackers (``samples``) if the trainer reports to trackio, tensorboard, wandb or mlflow.

    The main process generates, in evaluation mode and without gradients; module modes and random state are the same
    afterwards. Works with PEFT, gradient checkpointing and DDP (ZeRO-1 and 2 too).

    Args:
        trainer: a trainer that :func:`~sft_mask.train_on_responses_only` was called on.
        prompts: texts or lists of messages; a text is what the user says. Where rows are text in a format of their own
            (Alpaca), a prompt is the text up to the answer, marker included.
        every: number of optimizer steps.
        max_new_tokens: the most tokens of an answer, its end included.
        chat_template_kwargs: arguments of the chat template; by default those of the generation prompt that most
            trained answers come after.

    Raises:
        UnsupportedError: the trainer was not masked, the model cannot generate, or its weights are split over
            processes (FSDP, ZeRO-3, tensor parallelism).
        DataError: a prompt is empty, is neither text nor messages, is refused by the chat template, or is too long for
            the model; or a number is not positive.

    >>> from sft_mask import SampleAnswers, train_on_responses_only
    >>> trainer = train_on_responses_only(trainer)  # doctest: +SKIP
    >>> trainer.add_callback(SampleAnswers(trainer, ["Who are you?"], every=50))  # doctest: +SKIP
    """

    def __init__(
        self,
        trainer: Any,
        prompts: Sequence[str | Messages],
        every: int,
        *,
        max_new_tokens: int = 128,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> None:
        require_mask(trainer, "SampleAnswers")
        refuse_to_generate(trainer)
        for name, value in (("every", every), ("max_new_tokens", max_new_tokens)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DataError(f"SampleAnswers({name}={value!r}) is not a positive whole number. Give 1 or more.")
        self._trainer, self._every, self._most = trainer, every, max_new_tokens
        self._prompts, self._arguments = checked_prompts(prompts), chat_template_kwargs
        self._check_lengths(self._shown())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._sample(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0 or is_last_step(state, control):
            self._sample(state, control)

    def _shown(self) -> list[Shown]:
        return show_prompts(self._trainer, self._prompts, self._arguments)

    def _check_lengths(self, shown: Sequence[Shown]) -> None:
        config: Any = getattr(self._trainer.model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        most = getattr(config, "max_position_embeddings", None)
        for number, prompt in enumerate(shown):
            if most is not None and len(prompt.ids) + self._most > most:
                raise DataError(
                    f"Prompt {number} has {len(prompt.ids)} tokens, and with max_new_tokens={self._most} that is more "
                    f"than the {most} positions of the model. Shorten it, or lower max_new_tokens."
                )

    def _sample(self, state: Any, control: Any) -> None:
        if not state.is_world_process_zero:
            return
        trainer, shown = self._trainer, self._shown()
        found = answers(
            trainer.model,
            trainer._sft_mask.tokenizer,
            [prompt.ids for prompt in shown],
            stops_of(trainer),
            max_new_tokens=self._most,
            batch_size=trainer.args.per_device_eval_batch_size,
        )
        numbers = {
            "samples/stop_rate": sum(answer.stopped for answer in found) / len(found),
            "samples/mean_length": sum(len(answer.ids) for answer in found) / len(found),
        }
        # Not trainer.log: it adds up and empties over all processes what was measured since the last log.
        due = control.should_log
        Trainer.log(trainer, numbers)
        control.should_log = due
        table = [self._row(state.global_step, *pair) for pair in zip(shown, found, strict=True)]
        page = answers_page(table)
        for tracker in trackers_of(trainer):
            tracker.safely(lambda each: each.table("samples", table, page, state.global_step))

    def _row(self, step: int, prompt: Shown, answer: Answer) -> dict[str, object]:
        return {
            "step": step,
            "stopped": answer.stopped,
            "tokens": len(answer.ids),
            "prompt": prompt.given,
            "answer": self._trainer._sft_mask.tokenizer.decode(answer.ids, skip_special_tokens=False),
        }


def refuse_to_generate(trainer: Any) -> None:
    """Refuses a model that one process cannot generate with.

    Raises:
        UnsupportedError: with what splits its weights.
    """
    zero3 = trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3
    split = {
        "FSDP": trainer.is_fsdp_enabled,
        "DeepSpeed ZeRO-3": zero3,
        "tensor parallelism": trainer.get_tp_size() > 1,
    }
    found = [name for name, there in split.items() if there]
    if found:
        raise UnsupportedError(
            f"SampleAnswers does not work with {' and '.join(found)}: each process has a part of the weights, and the "
            "main one cannot generate alone. Leave it out, and ask the saved model: recipes/answer.py."
        )
    if not hasattr(trainer.model, "generate"):
        raise UnsupportedError(
            f"SampleAnswers needs a model with generate(), and {type(trainer.model).__name__} has none. Leave it out."
        )
