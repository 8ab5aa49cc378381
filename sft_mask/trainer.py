"""``train_on_responses_only``: one call between building the trainer and ``.train()``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sft_mask._compat import is_main_process, main_process_first
from sft_mask.constants import IGNORE_INDEX
from sft_mask.dataset import LabelBatch, label_dataset, label_stream
from sft_mask.errors import DataError, LabelsChangedError, NothingToTrainError, UnsupportedError
from sft_mask.masking import Masker, OnAmbiguous
from sft_mask.messages import ExactRoad
from sft_mask.policy import Policy
from sft_mask.report import MarkerSummary, MaskReport, SplitReport
from sft_mask.resolution import Resolved, resolve
from sft_mask.template import ChatTemplate
from sft_mask.tokens import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_SAMPLED_ROWS = 256
_COLLATED_ROWS = 4
_VERSION = "1"
"""Part of every fingerprint; changes when a mask can change."""


@dataclass(frozen=True)
class Toolkit:
    """A tokenizer with what was read from it."""

    tokenizer: Any
    vocabulary: Vocabulary
    template: ChatTemplate | None


def read_tokenizer(tokenizer: Any, chat_template: str | None = None) -> Toolkit:
    """Reads a tokenizer once.

    Raises:
        UnsupportedError: it is a processor with images, or a slow tokenizer without a tokenizers backend.
    """
    if hasattr(tokenizer, "image_processor") or hasattr(tokenizer, "feature_extractor"):
        raise UnsupportedError(
            f"{type(tokenizer).__name__} is a processor for images or audio: its labels are made while collating, from "
            "what the processor renders, and are not masked here. For text-only data pass processing_class="
            "processor.tokenizer to the trainer; for images use TRL's assistant_only_loss."
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedError(
            f"{type(tokenizer).__name__} is a slow tokenizer: the text of its ids cannot be read exactly. Load the fast one "
            "(AutoTokenizer.from_pretrained(..., use_fast=True))."
        )
    vocabulary = read_vocabulary(tokenizer)
    return Toolkit(tokenizer, vocabulary, ChatTemplate.of(tokenizer, vocabulary, chat_template))


def build_masker(
    toolkit: Toolkit,
    rows: Sequence[NDArray[np.integer]],
    *,
    instruction_part: object,
    response_part: object,
    policy: Policy,
    on_ambiguous: OnAmbiguous,
    max_length: int | None = None,
) -> tuple[Masker, tuple[object, ...]]:
    """The masker for some settings, and the key that stands for it in fingerprints."""
    if on_ambiguous not in ("error", "drop", "mask"):
        raise DataError(f"on_ambiguous={on_ambiguous!r} is unknown. Use 'error', 'drop' or 'mask'.")
    resolved = resolve(
        toolkit.vocabulary,
        toolkit.tokenizer,
        toolkit.template,
        instruction=instruction_part,
        response=response_part,
        rows=rows,
        max_length=max_length,
    )
    masker = Masker(resolved.finder, resolved.markers, policy, _road(toolkit, resolved), on_ambiguous)
    source = toolkit.template.source if toolkit.template is not None else None
    key = (_VERSION, resolved.markers, policy, on_ambiguous, source, _digest(toolkit))
    return masker, key


def _road(toolkit: Toolkit, resolved: Resolved) -> ExactRoad | None:
    if toolkit.template is None or not resolved.from_template:
        return None
    return ExactRoad(toolkit.template, resolved.markers, toolkit.vocabulary, toolkit.tokenizer)


def _digest(toolkit: Toolkit) -> str:
    """Stands for the tokenizer in fingerprints: its vocabulary and its added tokens."""
    from datasets.fingerprint import Hasher

    vocabulary = toolkit.vocabulary
    added = sorted((piece.token_id, piece.content, piece.special) for piece in vocabulary.added.values())
    return str(
        Hasher.hash(("\0".join(token or "" for token in vocabulary.tokens), added, toolkit.tokenizer.pad_token_id))
    )


# reading the trainer


@dataclass(frozen=True)
class Plan:
    """What was read from a trainer; nothing of it is changed before every split is masked."""

    toolkit: Toolkit
    train: Any
    evals: dict[str, Any]
    eval_is_dict: bool


def read_trainer(trainer: Any, tokenizer: Any, chat_template: str | None) -> Plan:
    """Reads a built trainer.

    Raises:
        UnsupportedError: not an ``SFTTrainer``, or one for images.
        DataError: there is no train dataset.
    """
    from trl import SFTTrainer

    if not isinstance(trainer, SFTTrainer):
        raise UnsupportedError(
            f"train_on_responses_only needs a trl.SFTTrainer, not {type(trainer).__name__}. For another trainer or your own "
            "loop, mask the data before: mask_dataset(dataset, tokenizer)."
        )
    if getattr(trainer, "_is_vision_dataset", False):
        raise UnsupportedError(
            "The trainer's dataset holds images: TRL makes its labels while collating, and they are not masked here. Use "
            "TRL's assistant_only_loss, or train on text."
        )
    if trainer.train_dataset is None:
        raise DataError("The trainer has no train_dataset. Give it one before train_on_responses_only.")
    template = chat_template or getattr(trainer, "chat_template", None)
    toolkit = read_tokenizer(tokenizer or trainer.processing_class, template)
    evals = trainer.eval_dataset
    is_dict = isinstance(evals, dict)
    splits = dict(evals) if is_dict else ({} if evals is None else {"eval": evals})
    return Plan(toolkit, trainer.train_dataset, splits, is_dict)


def sample_rows(dataset: Any, count: int = _SAMPLED_ROWS) -> list[NDArray[np.integer]]:
    """Some rows of ids, spread over the dataset (the first ones of a stream)."""
    if hasattr(dataset, "__len__"):
        if "input_ids" not in dataset.column_names or not len(dataset):
            return []
        picked = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64))
        rows = dataset.select(picked).with_format(None)["input_ids"]
    else:
        rows = [row["input_ids"] for row in dataset.take(min(count, 32)) if "input_ids" in row]
    return [np.asarray(row, np.int64) for row in rows if row is not None]


def _check_rows(dataset: Any, name: str) -> None:
    if not hasattr(dataset, "__len__"):
        return
    if "input_ids" not in dataset.column_names:
        raise DataError(
            f"The {name} dataset has no input_ids column (it has {', '.join(dataset.column_names) or 'no columns'}). Let the "
            "SFTTrainer prepare it (no skip_prepare_dataset), or tokenize it first."
        )
    if not len(dataset):
        raise DataError(f"The {name} dataset is empty. Give the trainer rows, or leave this split out.")


# masking the splits


@dataclass
class _Stream:
    """The report of a stream, filled as its rows are read."""

    report: SplitReport = SplitReport()

    def add(self, more: SplitReport) -> None:
        self.report = self.report + more


def mask_split(
    dataset: Any, masker: Masker, key: tuple[object, ...], name: str, max_length: int | None = None
) -> tuple[Any, SplitReport]:
    """Masks a Dataset, or a stream as it is read.

    Raises:
        NothingToTrainError: no row of the split would train anything.
    """
    if not hasattr(dataset, "__len__"):
        stream = _Stream()
        return label_stream(dataset, masker, stream.add), stream.report
    _check_rows(dataset, name)
    with main_process_first():
        labelled, report = label_dataset(dataset, masker, key, name=name)
    if not len(labelled):
        raise _nothing(dataset, name, report, masker, max_length)
    return labelled, report


def _nothing(
    dataset: Any, name: str, report: SplitReport, masker: Masker, max_length: int | None
) -> NothingToTrainError:
    rows = sample_rows(dataset, 64)
    full = sum(len(row) >= max_length for row in rows) if max_length else 0
    text = masker.finder.vocabulary.text(rows[0][:120].tolist())[:400]
    seen = f"All {report.rows_dropped} rows of the {name} dataset would be masked completely: nothing would be trained."
    if full * 2 > len(rows):
        why = (
            f"{full} of {len(rows)} rows looked at are {max_length} tokens long, the trainer's max_length: truncation ate "
            "the answers. Raise max_length, shorten the prompts, or use truncation_mode='keep_end'."
        )
    else:
        why = (
            "No row holds an answer that is not masked already (labels that were IGNORE_INDEX stay so). Check the markers "
            f"{', '.join(map(repr, masker.markers.response))} against the first row, and the labels it came with."
        )
    return NothingToTrainError(f"{seen} {why} The first row begins\n    {text!r}\nwith ids {rows[0][:24].tolist()}.")


def check_collator(trainer: Any, dataset: Any) -> None:
    """Runs a few rows through the trainer's collator: the trained labels must come out as they went in.

    Raises:
        LabelsChangedError: the collator drops or rebuilds labels.
    """
    if not hasattr(dataset, "__len__"):
        return
    rows = [dict(row) for row in dataset.select(range(min(_COLLATED_ROWS, len(dataset)))).with_format(None)]
    if trainer.args.remove_unused_columns:
        trainer._set_signature_columns_if_needed()
        rows = [{name: row[name] for name in trainer._signature_columns if name in row} for row in rows]
    wanted = [_trained_ids(row["labels"], row.get("seq_lengths")) for row in rows]
    name = type(trainer.data_collator).__name__
    try:
        given = trainer.data_collator(rows)
    except (ValueError, TypeError, KeyError) as error:
        raise LabelsChangedError(
            f"The trainer's data collator ({name}) cannot collate rows that have labels: {error} Use TRL's default collator, "
            "or one that pads the dataset's labels."
        ) from error
    labels = given.get("labels") if hasattr(given, "get") else None
    if labels is None:
        raise LabelsChangedError(
            f"The trainer's data collator ({name}) returns no labels, so the loss would not see the mask. Use TRL's default "
            "collator, or one that pads the dataset's labels."
        )
    out = [int(label) for label in labels.reshape(-1).tolist() if label != IGNORE_INDEX]
    if out != [token for row in wanted for token in row] and out != [
        int(label) for row in rows for label in row["labels"] if label != IGNORE_INDEX
    ]:
        raise LabelsChangedError(
            f"The trainer's data collator ({name}) changes labels: {sum(map(len, wanted))} trained tokens went in, "
            f"{len(out)} came out. It rebuilds them from input_ids, so the prompts would be trained. Use TRL's default "
            "collator, or one that pads the dataset's labels."
        )


def _trained_ids(labels: Sequence[int], lengths: Sequence[int] | None) -> list[int]:
    """Trained labels of a row without the first of each document, which padding-free collators mask."""
    firsts = {0} if lengths is None else {0, *np.cumsum(lengths).tolist()}
    return [int(label) for at, label in enumerate(labels) if label != IGNORE_INDEX and at not in firsts]


def trained_vocabulary(datasets: Sequence[Any], size: int) -> NDArray[np.bool_] | None:
    """``(size,)`` which ids any row of the datasets trains; ``None`` where one of them is a stream."""
    seen = np.zeros(size, np.bool_)
    for dataset in datasets:
        if not hasattr(dataset, "__len__"):
            return None
        for chunk in dataset.data.column("labels").chunks:
            values = chunk.flatten().to_numpy(zero_copy_only=False)
            kept = values[values != IGNORE_INDEX]
            if len(kept) and int(kept.max()) >= len(seen):
                seen = np.append(seen, np.zeros(int(kept.max()) + 1 - len(seen), np.bool_))
            seen[kept] = True
    return seen


# the call


def train_on_responses_only(
    trainer: Any = None,
    instruction_part: object = None,
    response_part: object = None,
    force_match: bool = True,
    tokenizer: Any = None,
    return_function: bool = False,
    num_proc: int | None = None,
    last_response_only: bool = False,
    *,
    policy: Policy | None = None,
    on_ambiguous: OnAmbiguous = "error",
    chat_template: str | None = None,
) -> Any:
    """Trains a built ``trl.SFTTrainer`` on the model's own words only.

    Labels of ``train_dataset`` and ``eval_dataset`` become response-only: the token itself where the model would have to
    sample it at inference (the answer and the stop token that ends it), ``IGNORE_INDEX`` everywhere else. Rows that would
    train nothing are dropped and counted. Later ``evaluate(other)`` and ``predict(other)`` are masked alike, and the
    ``compute_loss`` path checks that the mask arrives. Calling it twice is calling it once.

    Args:
        trainer: a built ``SFTTrainer``; not needed with ``return_function``.
        instruction_part: text before the user's words, several texts, or token ids. Leave both parts out to have them read
            from the chat template.
        response_part: text before the model's words, likewise.
        force_match: kept for callers of the function of the same name elsewhere; matching is always exact.
        tokenizer: the tokenizer, where the trainer's ``processing_class`` is not it.
        return_function: return a function from a batch (``{"input_ids": rows}``) to ``{"labels": rows}`` instead.
        num_proc: accepted and not needed: one process labels about as fast as memory is copied.
        last_response_only: train only the last answer of each conversation; short for ``Policy(turns="last")``.
        policy: which turns and stops are trained.
        on_ambiguous: what happens to a row whose markers and messages disagree and that the chat template does not render
            to its ids: ``"error"``, ``"drop"`` or ``"mask"``.
        chat_template: the template that rendered the rows, where it is not the trainer's.

    Returns:
        The same trainer, with ``trainer.mask_report``.

    Raises:
        MarkerError: one marker for both roles, an empty one, only one of two, or one that occurs in no row.
        DetectionError: no markers were given and the chat template does not show them.
        DataError: no train dataset, no ``input_ids``, an empty split, or a malformed row.
        NothingToTrainError: every row of a split would be masked.
        UnsupportedError: another trainer, images, or a slow tokenizer.
        LabelsChangedError: the trainer's collator does not let the labels through.

    The trainer is left as it was when anything is raised.
    """
    del force_match, num_proc
    chosen = policy or Policy()
    if last_response_only:
        chosen = replace(chosen, turns="last")
    settings = {
        "instruction_part": instruction_part,
        "response_part": response_part,
        "policy": chosen,
        "on_ambiguous": on_ambiguous,
    }
    if return_function:
        toolkit = read_tokenizer(tokenizer or trainer.processing_class, chat_template)
        return LabelFunction(toolkit, settings)
    plan = read_trainer(trainer, tokenizer, chat_template)
    for name, split in {"train": plan.train, **plan.evals}.items():
        _check_rows(split, name)
    max_length = getattr(trainer.args, "max_length", None)
    rows = sample_rows(plan.train)
    masker, key = build_masker(plan.toolkit, rows, max_length=max_length, **settings)  # type: ignore[arg-type]
    masked = {
        name: mask_split(split, masker, key, name, max_length)
        for name, split in {"train": plan.train, **{f"eval:{n}": d for n, d in plan.evals.items()}}.items()
    }
    check_collator(trainer, masked["train"][0])
    report = _report(masked, masker, plan.eval_is_dict)
    state = _state(plan, masker, key, [split for split, _ in masked.values()])
    _assign(trainer, plan, masked, report, state)
    return trainer


class LabelFunction:
    """Batch to labels, for any loop or ``datasets.map(batched=True)``; what ``return_function=True`` gives.

    Markers that are not complete without rows (a tokenizer without a chat template) are settled on the first batch.
    """

    def __init__(self, toolkit: Toolkit, settings: Mapping[str, Any]) -> None:
        self._toolkit = toolkit
        self._settings = dict(settings)
        build_masker(toolkit, [], **self._settings)  # refuses bad markers now, not at the first batch
        self._label: LabelBatch | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[list[int]]]:
        if self._label is None:
            rows = [np.asarray(row, np.int64) for row in batch["input_ids"]]
            self._label = LabelBatch(build_masker(self._toolkit, rows, **self._settings)[0])
        return self._label(batch)


def marker_summary(masker: Masker) -> MarkerSummary:
    """The markers in use, as a report shows them."""
    text = masker.finder.vocabulary.text

    def spelled(marker: Any) -> str:
        return marker if isinstance(marker, str) else text(list(marker))

    markers = masker.markers
    return MarkerSummary(
        spelled(markers.instruction[0]),
        spelled(markers.response[0]),
        tuple(dict.fromkeys(spelled(stop) for stop in markers.stops)),
        markers.detected,
    )


def _report(masked: Mapping[str, tuple[Any, SplitReport]], masker: Masker, eval_is_dict: bool) -> MaskReport:
    prefix = "" if eval_is_dict else "eval:"
    splits = {name.removeprefix(prefix) if prefix else name: report for name, (_, report) in masked.items()}
    return MaskReport(splits, marker_summary(masker))


def _state(plan: Plan, masker: Masker, key: tuple[object, ...], splits: Sequence[Any]) -> Any:
    from sft_mask.loss import MaskState

    def relabel(dataset: Any, name: str) -> Any:
        return mask_split(dataset, masker, key, name)[0]

    def text(ids: list[int]) -> str:
        return plan.toolkit.vocabulary.text(ids)

    relabel_fn: Callable[[Any, str], Any] = relabel
    return MaskState(relabel_fn, trained_vocabulary(splits, plan.toolkit.vocabulary.size), text)


def _assign(
    trainer: Any, plan: Plan, masked: Mapping[str, tuple[Any, SplitReport]], report: MaskReport, state: Any
) -> None:
    """The only place where the trainer is changed."""
    from sft_mask.loss import hook

    trainer.train_dataset = masked["train"][0]
    evals = {name: masked[f"eval:{name}"][0] for name in plan.evals}
    if plan.eval_is_dict:
        trainer.eval_dataset = evals
    elif evals:
        trainer.eval_dataset = evals["eval"]
    trainer.mask_report = report
    hook(trainer, state)
    if is_main_process():
        for warning in report.warnings:
            logger.warning(warning)


# without a trainer


def mask_dataset(
    dataset: Any,
    tokenizer: Any,
    instruction_part: object = None,
    response_part: object = None,
    *,
    policy: Policy | None = None,
    on_ambiguous: OnAmbiguous = "error",
    chat_template: str | None = None,
    return_report: Literal[False, True] = False,
) -> Any:
    """Response-only labels before there is a trainer: exact under any packing and truncation that follows.

    Args:
        dataset: has ``input_ids``, or ``messages`` (also prompt and completion), or ``text``, which are then tokenized as
            ``SFTTrainer`` does. A ``DatasetDict`` is masked split by split.
        tokenizer: a fast tokenizer.
        instruction_part: see :func:`train_on_responses_only`; so are the other arguments.
        return_report: also return the :class:`~sft_mask.report.MaskReport`.

    Returns:
        The dataset with ``input_ids`` and ``labels``, ready for ``SFTTrainer``.
    """
    toolkit = read_tokenizer(tokenizer, chat_template)
    is_dict = isinstance(dataset, dict)
    splits = dict(dataset) if is_dict else {"train": dataset}
    ready = {name: _tokenized(split, toolkit, chat_template) for name, split in splits.items()}
    for name, split in ready.items():
        _check_rows(split, name)
    masker, key = build_masker(
        toolkit,
        sample_rows(next(iter(ready.values()))),
        instruction_part=instruction_part,
        response_part=response_part,
        policy=policy or Policy(),
        on_ambiguous=on_ambiguous,
    )
    masked = {name: mask_split(split, masker, key, name) for name, split in ready.items()}
    report = MaskReport({name: counts for name, (_, counts) in masked.items()}, marker_summary(masker))
    made = {name: split for name, (split, _) in masked.items()}
    answer = type(dataset)(made) if is_dict else made["train"]
    return (answer, report) if return_report else answer


def _tokenized(dataset: Any, toolkit: Toolkit, chat_template: str | None) -> Any:
    columns = dataset.column_names or list(next(iter(dataset)).keys())
    if "input_ids" in columns:
        return dataset
    if not {"messages", "prompt", "conversations", "text"} & set(columns):
        raise DataError(
            f"The dataset has no input_ids, messages, conversations, prompt and completion, or text (it has "
            f"{', '.join(columns)}). Give it one of these."
        )
    arguments = {"tokenizer": toolkit.tokenizer, "chat_template": chat_template}
    return dataset.map(tokenize_row, fn_kwargs=arguments)


def tokenize_row(row: Mapping[str, Any], tokenizer: Any, chat_template: str | None) -> dict[str, list[int]]:
    """Ids of one row, as TRL's ``SFTTrainer`` makes them."""
    import json

    conversation = row.get("messages") or row.get("conversations")
    if conversation is None and "prompt" in row:
        conversation = row["prompt"] + row["completion"]
    if conversation is None:
        conversation = row["text"]
    if isinstance(conversation, str):
        eos = tokenizer.eos_token or ""
        text = conversation if conversation.endswith(eos) else conversation + eos
        return {"input_ids": tokenizer(text)["input_ids"]}
    tools = row.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    arguments = row.get("chat_template_kwargs") or {}
    encoded = tokenizer.apply_chat_template(
        conversation, tools=tools or None, tokenize=True, return_dict=True, chat_template=chat_template, **arguments
    )
    return {"input_ids": encoded["input_ids"]}
