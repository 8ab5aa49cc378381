"""Errors about data whose format is ambiguous, or is not one to fine-tune on; each shows the argument that decides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from sft_mask.constants import ROLES
from sft_mask.data.formats.names import kind_of
from sft_mask.errors import DataError

_MEANS = {
    "messages": "the conversation",
    "prompt": "what is asked",
    "response": "the answer",
    "input": "what is asked about",
    "text": "text that was rendered already",
}
_FIELDS = "messages, prompt, input, response, completion, system, history, tools, text; inside a message role, content"


def argument(**columns: str) -> str:
    """The argument, as it is typed, for columns by their field."""
    return _typed({column: field for field, column in columns.items()})


def _typed(columns: Mapping[str, str | None]) -> str:
    inside = ", ".join(
        f"{json.dumps(column, ensure_ascii=False)}: {json.dumps(field) if field else None}"
        for column, field in columns.items()
    )
    return f"columns={{{inside}}}"


def check_arguments(columns: object, roles: object) -> None:
    """Refuses ``columns`` and ``roles`` that are not names by name, or name a role that is none.

    Raises:
        DataError: as above.
    """
    for name, given, example in (("columns", columns, '{"ask": "prompt"}'), ("roles", roles, '{"bob": "assistant"}')):
        if given is not None and not isinstance(given, Mapping):
            raise DataError(
                f"{name}={given!r:.80} is not a mapping. Give names in the data with what they are: {name}={example}."
            )
    for role, meant in roles.items() if isinstance(roles, Mapping) else ():
        if kind_of(meant) is None:
            close = get_close_matches(str(meant), ROLES[:-1], 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise DataError(
                f"roles makes {role!r} {meant!r}, which is not a role.{hint} Use one of {', '.join(ROLES[:-1])}."
            )


def unknown_field(column: str, field: object) -> DataError:
    """A column is to be something that no conversation has."""
    return DataError(
        f"columns gives {column!r} the name {field!r}, which is not a part of a conversation. A column of the dataset "
        f"can be called one of {_FIELDS}; None leaves it out: {_typed({column: 'prompt'})}."
    )


def unknown_column(where: str, column: str, field: object, there: Sequence[str]) -> DataError:
    """A column that was named is not there."""
    seen = f"columns names {column!r}, which is not in {where} (it has {', '.join(there) or 'no columns'})."
    if isinstance(field, str) and field in there:
        return DataError(
            f"{seen} The names are the wrong way round, the dataset's come first: {_typed({field: column})}."
        )
    if field in ("role", "content"):
        seen = (
            f"columns names {column!r}, which is not a key of the messages in {where} (they have {', '.join(there)})."
        )
    return DataError(f"{seen} Name what is there, spelled as it is there.")


def given_twice(field: str, first: str, second: str) -> DataError:
    """Two columns are to be the same."""
    return DataError(
        f"columns makes both {first!r} and {second!r} the {field}. Give it one of them; None leaves the other out: "
        f"{_typed({first: field, second: None})}."
    )


def several(where: str, field: str, there: Sequence[str], made: Mapping[str, str] | None = None) -> DataError:
    """Several columns could be the same thing."""
    known = {column: name for name, column in (made or {}).items()}
    choices = " or ".join(_typed({**known, column: field}) for column in there[:3])
    return DataError(
        f"The columns {' and '.join(there)} of {where} could each be {_MEANS.get(field, field)}. Say which one is: "
        f"{choices}."
    )


def leftover(where: str, column: str, made: Mapping[str, str]) -> DataError:
    """A column may be part of the conversation, and nothing says of which message."""
    read = ", ".join(f"{name} as the {field}" for field, name in made.items() if field in _MEANS)
    return DataError(
        f"The column {column} of {where} may be part of the conversation, beside {read}, and nothing says where. "
        f"{_typed({column: 'input'})} puts it after the prompt, {_typed({column: 'system'})} into a system message, "
        f"and {_typed({column: None})} leaves it out. To train it, write it into the answer with dataset.map first."
    )


def nothing_to_read(where: str, columns: Sequence[str], texts: Sequence[str], made: Mapping[str, str]) -> DataError:
    """No column is a conversation, a question or an answer by its name."""
    there = ", ".join(columns) or "no columns"
    others = [name for name in texts if name not in made.values()]
    missing = [field for field in ("prompt", "response") if field not in made]
    named = [*others[: len(missing)], *(f"<{field} column>" for field in missing[len(others) :])]
    guessed = {**{name: field for field, name in made.items()}, **dict(zip(named, missing, strict=True))}
    half = f" Only {' and '.join(made.values())} can be read by name." if made else ""
    other = next((name for name in columns if name not in made.values()), "<column>")
    return DataError(
        f"{where[0].upper()}{where[1:]} has no input_ids, messages, conversations, prompt and completion, text, or "
        f"columns of questions and answers (it has {there}).{half} Say what is asked and what is answered, such as "
        f"{_typed(guessed)}; or which column holds the conversation: {argument(messages=other)}."
    )


def lists_of_text(where: str, column: str, value: object) -> DataError:
    """A conversation whose messages do not say who speaks."""
    made = f'{{"role": ("user", "assistant")[at % 2], "content": text}} for at, text in enumerate(row["{column}"])'
    return DataError(
        f"The column {column} of {where} holds lists of text, {value!r:.80}: nothing says who speaks. If user and "
        "assistant take turns, make messages of them:\n\n"
        f'    dataset = dataset.map(lambda row: {{"messages": [{made}]}})'
    )


def not_chats(where: str, column: str, value: object) -> DataError:
    """A column that was called the conversation holds something else."""
    return DataError(
        f"The column {column} of {where} holds {value!r:.120}: not a list of messages. A message is a mapping that "
        "says who speaks and what is said. If its keys have other names, say which they are: "
        'columns={"speaker": "role", "utterance": "content"}; if it is one text, call it '
        f"{argument(prompt=column)} or {argument(text=column)}."
    )


def unknown_keys(where: str, column: str, message: Mapping[str, object]) -> DataError:
    """No key of a message is known."""
    keys = list(map(str, message))
    named = dict(zip(("role", "content"), [*keys, "role", "content"][:2], strict=True))
    return DataError(
        f"The messages in the column {column} of {where} have the keys {', '.join(keys)}: none says who speaks. Say "
        f"which keys are the role and the content: {argument(**named)}."
    )


def preferences(where: str, there: Sequence[str], better: object) -> DataError:
    """Pairs of a better and a worse answer."""
    chosen = next((name for name in there if name.lower() == "chosen"), None)
    seen = (
        f"{where[0].upper()}{where[1:]} has the columns {' and '.join(there)}: preferences between answers, which "
        "TRL's DPOTrainer trains on."
    )
    if chosen is None:
        left = _typed(dict.fromkeys(there))
        return DataError(f"{seen} To fine-tune on the other columns alone, leave these out: {left}.")
    field = "messages" if _begins_with_a_question(better) else "response"
    if isinstance(better, str) and "\n\nAssistant:" in better:
        return DataError(
            f"{seen} To fine-tune on the better answers alone: {argument(text=chosen)}, with instruction_part="
            "'\\n\\nHuman:' and response_part='\\n\\nAssistant:'."
        )
    return DataError(f"{seen} To fine-tune on the better answers alone: {argument(**{field: chosen})}.")


def _begins_with_a_question(value: object) -> bool:
    first = value[0] if isinstance(value, (list, tuple)) and value else None
    said = {str(first.get(key)).lower() for key in ("role", "from")} if isinstance(first, Mapping) else set()
    return bool(said & {"user", "human", "system"})


def no_roles(where: str, columns: Sequence[str]) -> DataError:
    """Roles were given, and there are no messages."""
    return DataError(
        f"roles says what the roles of messages are, and {where} has no messages (it has {', '.join(columns)}). Leave "
        f"roles out, or say which column holds the conversation: {argument(messages=columns[0])}."
    )


def unpaired_preferences(where: str, label: str) -> DataError:
    """Answers that are labelled good or bad."""
    return DataError(
        f"The column {label} of {where} is false in some rows: TRL's KTOTrainer reads it as a bad answer, and here it "
        "would be trained like a good one. Keep the good ones: "
        f'dataset = dataset.filter(lambda row: row["{label}"]).remove_columns("{label}")'
    )
