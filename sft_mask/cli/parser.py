"""The parser of commands: wrong usage is one line that names what was meant."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NoReturn

WRONG_USE = 2


class Parser(argparse.ArgumentParser):
    """Errors are one line and the way to the help; a mistyped command or option is corrected. Exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong, and what was probably meant."""
        sys.stderr.write(f"sft-mask: {self._explained(message)} See `{self.prog} --help`.\n")
        sys.exit(WRONG_USE)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Lets a closed pipe be noticed, where argparse ignores it."""
        (file or sys.stderr).write(message)

    def _explained(self, message: str) -> str:
        names = list(self.commands())
        if names and "required: COMMAND" in message:
            return f"Give a command: {', '.join(names)}."
        mistyped = re.search(r"argument COMMAND: invalid choice: '(.*)' \(", message)
        if mistyped:
            return (
                f"There is no command {mistyped[1]}. {_meant(mistyped[1], names)}The commands are {', '.join(names)}."
            )
        unknown = re.search(r"unrecognized arguments: (.*)", message)
        if unknown:
            first = next((word for word in unknown[1].split() if word.startswith("-")), "")
            given = first.partition("=")[0]
            meant = _meant(given, list(dict.fromkeys(self.options()))) if given else ""
            return f"{unknown[1]} is not understood. {meant}".rstrip()
        return f"{message[:1].upper()}{message[1:]}."

    def commands(self) -> dict[str, Parser]:
        """The commands by name."""
        return {
            name: parser
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name, parser in action.choices.items()
        }

    def options(self) -> Iterator[str]:
        """The options of this command and of those below it."""
        yield from (name for action in self._actions for name in action.option_strings if name.startswith("--"))
        for parser in self.commands().values():
            yield from parser.options()


def _meant(given: str, names: list[str]) -> str:
    """A question, if a name is close to what was given.

    >>> _meant("previw", ["preview", "check"]), _meant("xyz", ["preview", "check"])
    ('Did you mean preview? ', '')
    """
    close = get_close_matches(given, names, 1, 0.6)
    return f"Did you mean {close[0]}? " if close else ""
