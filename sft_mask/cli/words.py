"""Messages of the library in words for the shell: options instead of arguments of Python."""

from __future__ import annotations

import re

_OPTIONS = (
    "instruction_part",
    "response_part",
    "chat_template",
    "on_ambiguous",
    "turns",
    "roles",
    "tool_calls",
    "prompt_weight",
    "stop",
    "cut_answers",
    "max_length",
    "packing",
)
_NAMES = "|".join(_OPTIONS)
_SETTINGS = "turns|roles|tool_calls|prompt_weight|stop|cut_answers"
_PHRASES = (
    (r"Choose one with chat_template=tokenizer\.chat_template\[NAME\]", "Write one to a file for --chat-template FILE"),
    (r"AutoTokenizer\.from_pretrained\(\.\.\.\), or pass it as tokenizer=", "a tokenizer.json in MODEL"),
    (r"let mask_dataset tokenize the messages", "leave input_ids out of the data, so that the messages are tokenized"),
    (r"(?:Make the rows with )?mask_dataset\(\.\.\., expand=True\)", "--expand"),
    (r"A dataset needs its tokenizer: preview_rows\(dataset, tokenizer\)", "Give MODEL"),
    (
        r"Region\(start=('.*?'), end=('.*?'), .*: give both .*",
        r"--mask-region \1 \2: give two texts that are not empty.",
    ),
    (r":(\s+)((?:[^\n]*\n)?[^\n]*dataset = dataset\.map)", r" in the file. In Python:\1\2"),
)
_ARGUMENT = re.compile(rf"(?<![\w.'\"-])({_NAMES})=((?:'[^']*'(?: or '[^']*')*)|\.\.\.|\[[^\]]*\]|[\w.-]*\w|)")
_POLICY = re.compile(rf"(?:policy=)?Policy\(((?:{_SETTINGS})=(?:[^()]|\([^()]*\))*)\)")
_NAME = re.compile(r"(?<![\w.'\"=-])(instruction_part|response_part|chat_template)(?![\w('\"=])")


def in_shell_words(text: str) -> str:
    """The text with the options of the command line for the arguments of Python.

    >>> in_shell_words("Give another template as chat_template=, or choose on_ambiguous='drop' or 'mask'.")
    'Give another template as --chat-template, or choose --on-ambiguous drop or mask.'
    >>> in_shell_words("Choose Policy(turns='flagged') to have them decide.")
    'Choose --turns flagged to have them decide.'
    """
    for pattern, words in _PHRASES:
        text = re.sub(pattern, words, text)
    text = _POLICY.sub(lambda found: re.sub(rf", (?=({_SETTINGS})=)", " ", found[1]), text)
    text = _ARGUMENT.sub(lambda found: f"{_option(found[1])} {_value(found[2])}".rstrip(), text)
    return _NAME.sub(lambda found: _option(found[1]), text)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value(written: str) -> str:
    """A value as it is typed.

    >>> _value("'drop' or 'mask'"), _value("['assistant', 'tool']"), _value("...")
    ('drop or mask', 'assistant,tool', '')
    """
    if written == "...":
        return ""
    bare = written.strip("[]").replace("'", "")
    return bare.replace(", ", ",") if written.startswith("[") else {"True": "yes", "False": "no"}.get(bare, bare)
