"""``expand=True``: conversations to the fewest rows in which every trained turn is as inference shows it.

Each row holds the beginning of a conversation and a column ``expansion``: which conversation it came from, and which
messages are trained in it and in no other row. Everything after reads that column: the decision of each row, the mean
over a conversation (``reduction="sequence"``), and the account of the messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.data.faults.wellformed import PAIR, check_row
from sft_mask.data.read import Row
from sft_mask.data.read.conversations import EXPANSION, Conversation, as_chatml, mappings, read_tools, read_variables
from sft_mask.data.read.formats import column_names, plain
from sft_mask.data.read.rows import LOSS_WEIGHTS
from sft_mask.errors import DataError, UnsupportedError
from sft_mask.templates.expand import ExpandedRow, expanded_rows

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Ids, Ints
    from sft_mask.data.masker import Masker
    from sft_mask.templates.turns import ConversationAligner

EXPANSION_TYPE = pa.struct(
    {
        "conversation": pa.int64(),
        "tokens": pa.int64(),
        "is_last": pa.bool_(),
        "trained": pa.list_(pa.int64()),
        "owned": pa.list_(pa.int64()),
        "refused": pa.string(),
    }
)
"""The column ``expansion``."""
_CONVERSATIONS_AT_ONCE = 64
_MESSAGES = ("messages", "conversations", "prompt", "completion")


def refuse_what_cannot_expand(dataset: object, name: str) -> None:
    """Refuses rows without messages, or whose tokens were made already.

    Raises:
        UnsupportedError: there is nothing to expand.
    """
    columns = column_names(dataset)
    if "input_ids" in columns or LOSS_WEIGHTS in columns:
        raise UnsupportedError(
            f"The {name} dataset has {'input_ids' if 'input_ids' in columns else LOSS_WEIGHTS}: its rows are made, and "
            "expand=True makes other rows. Give the conversations alone."
        )
    if not {"messages", "conversations"} & set(columns) and not {*PAIR} <= set(columns):
        raise UnsupportedError(
            f"expand=True needs messages, and the {name} dataset has {', '.join(columns) or 'no columns'}. Give it "
            "messages, or leave expand out."
        )


@dataclass(frozen=True, slots=True)
class Expander:
    """Expands batches of conversations, as ``datasets.map`` gives them.

    Attributes:
        masker: renders conversations, and knows which messages are trained.
        name: of the dataset, for errors.
    """

    masker: Masker
    name: str

    def __call__(self, batch: Row, numbers: Sequence[int]) -> dict[str, list[Any]]:
        """The rows of some conversations, with ``messages``, ``input_ids`` and ``expansion``."""
        kept = [column for column in batch if column not in _MESSAGES]
        made: dict[str, list[Any]] = {column: [] for column in (*kept, "messages", "input_ids", EXPANSION)}
        for place, number in enumerate(numbers):
            row = {column: batch[column][place] for column in batch}
            try:
                check_row(row)
                rows = self._rows(row, int(number))
            except DataError as error:
                raise type(error)(f"In the {self.name} dataset: Row {number}: {error}") from error
            for each in rows:
                for column in kept:
                    made[column].append(row[column])
                for column, value in each.items():
                    made[column].append(value)
        return made

    def _rows(self, row: Row, number: int) -> list[dict[str, Any]]:
        talk = _conversation(row)
        aligner = self.masker.decider.aligner
        if aligner is None:
            raise UnsupportedError("expand=True needs a chat template, and there is none. Give chat_template=.")
        refused = None
        try:
            trained = self._trained(talk)
            text, found = expanded_rows(aligner, talk.messages, trained, tools=talk.tools, variables=talk.variables)
        except DataError as error:
            refused = str(error)
            text = _text_of(talk, self.masker)
            found = [ExpandedRow(len(talk.messages), text, [], list(range(len(talk.messages))))]
        texts = dict.fromkeys((text, *(each.text for each in found)))  # a row can be the whole conversation
        ids = {each: _ids(aligner, each) for each in texts}
        return [
            {
                "messages": list(talk.messages[: each.count]),
                "input_ids": ids[each.text],
                EXPANSION: {
                    "conversation": number,
                    "tokens": len(ids[text]) if each is found[0] else 0,
                    "is_last": each is found[-1],
                    "trained": each.trained,
                    "owned": each.owned,
                    "refused": refused,
                },
            }
            for each in found
        ]

    def _trained(self, talk: Conversation) -> list[int]:
        policy = self.masker.policy
        weights = policy.message_weights(talk.messages)
        given = 0 if self.masker.decider.prompt_answers else talk.prompt
        chosen = [at for at, weight in enumerate(weights) if weight and at >= given]
        if policy.turns == "last":
            own = [at for at in chosen if talk.messages[at].get("role") in ASSISTANT_ROLES]
            return own[-1:]
        return chosen


def _conversation(row: Row) -> Conversation:
    example = as_chatml(row)
    names = ("prompt", "completion") if example.keys() >= {*PAIR} else ("messages",)
    parts = [mappings(name, example[name]) for name in names]  # type: ignore[arg-type]
    prompt = len(parts[0]) if len(parts) > 1 else 0
    tools, variables = read_tools(example.get("tools")), read_variables(example.get("chat_template_kwargs"))
    return Conversation([message for part in parts for message in part], tools, variables, prompt)


def _text_of(talk: Conversation, masker: Masker) -> str:
    aligner = masker.decider.aligner
    assert aligner is not None
    return aligner.template.render(talk.messages, tools=talk.tools, variables=talk.variables).text


def _ids(aligner: ConversationAligner, text: str) -> list[int]:
    """The ids of a rendered text; a processor has its tokenizer add a BOS that the template did not write."""
    template = aligner.template
    added = template.in_parts and not (template.bos and text.startswith(template.bos))
    ids: list[int] = aligner.tokenizer(text, add_special_tokens=added)["input_ids"]
    return ids


def expanded_dataset(dataset: Any, masker: Masker, name: str) -> object:
    """A dataset with its conversations expanded; a stream as it is, which is expanded while it is read.

    Raises:
        DataError: the dataset is empty, or a row is malformed.
    """
    if not hasattr(dataset, "__len__"):
        return dataset
    if not len(dataset):
        raise DataError(f"There are no rows in the {name} dataset. Give it rows, or leave this split out.")
    from datasets.fingerprint import Hasher

    shown = dataset.format
    made = plain(dataset).map(
        Expander(masker, name),
        batched=True,
        batch_size=_CONVERSATIONS_AT_ONCE,
        with_indices=True,
        remove_columns=dataset.column_names,
        features=_features(dataset),
        new_fingerprint=str(Hasher.hash((dataset._fingerprint, "expand", *map(repr, masker.key)))),
        desc=f"Expanding {name}",
    )
    columns = [column for column in shown["columns"] if column not in _MESSAGES]
    if shown["type"] is not None or set(shown["columns"]) != set(dataset.column_names):
        made.set_format(shown["type"], [*columns, "messages", "input_ids"], shown["output_all_columns"])
    return made


def _features(dataset: Any) -> object:
    """The features of the expanded dataset; ``None`` where they must be learnt from its rows."""
    from datasets import Features, List, Value

    given = dict(dataset.features)
    messages = given.get("messages", given.get("conversations"))
    messages = given["prompt"] if messages is None and given.get("prompt") == given.get("completion") else messages
    fields = getattr(messages, "feature", None)
    if messages is None or (isinstance(fields, Mapping) and {"from", "value"} & set(fields)):
        return None
    kept = {name: feature for name, feature in given.items() if name not in _MESSAGES}
    expansion = Features.from_arrow_schema(pa.schema({EXPANSION: EXPANSION_TYPE}))
    return Features({**kept, "messages": messages, "input_ids": List(Value("int32")), **expansion})


# what the rows say of themselves


@dataclass(frozen=True, slots=True)
class Expansion:
    """How the rows of a batch belong to conversations.

    Attributes:
        conversation: ``(rows,)`` number of the conversation.
        tokens: ``(rows,)`` its tokens in one row, in its first row; 0 in the others.
        is_last: ``(rows,)`` whether a row is its conversation's last.
    """

    conversation: Ints
    tokens: Ints
    is_last: Bools

    @property
    def units(self) -> Ints:
        """``(rows,)`` number of each row's conversation in the batch."""
        changes = np.append(True, self.conversation[1:] != self.conversation[:-1])[: len(self.conversation)]
        return np.cumsum(changes) - 1


def expansion_of(table: pa.Table) -> Expansion | None:
    """How the rows belong to conversations; ``None`` where every row is one."""
    if EXPANSION not in table.column_names:
        return None
    column = table[EXPANSION].combine_chunks()
    conversation, tokens, is_last = (column.field(name) for name in ("conversation", "tokens", "is_last"))
    return Expansion(np.asarray(conversation, np.int64), np.asarray(tokens, np.int64), np.asarray(is_last, np.bool_))


def shared_beginnings(ids: Ids, offsets: Ints, units: Ints) -> Bools:
    """``(tokens,)`` whether an earlier row of the same conversation begins with the row up to this token."""
    shared = np.zeros(len(ids), np.bool_)
    for row in range(1, len(units)):
        own, longest = ids[offsets[row] : offsets[row + 1]], 0
        earlier = row - 1
        while earlier >= 0 and units[earlier] == units[row]:
            other = ids[offsets[earlier] : offsets[earlier + 1]]
            size = min(len(own), len(other))
            differs = np.flatnonzero(own[:size] != other[:size])
            longest = max(longest, int(differs[0]) if len(differs) else size)
            earlier -= 1
        shared[offsets[row] : offsets[row] + longest] = True
    return shared
