"""What people notice when the labels of a fine-tune are wrong; every finding has one of these."""

from __future__ import annotations

from typing import Final

ECHOES: Final = "the model echoes the user"
SYSTEM: Final = "the model writes system prompts"
IMITATES: Final = "the model writes tool results itself"
WRONG_WORDS: Final = "the loss does not go down, or goes down on the wrong words"
ENDLESS: Final = "the model never stops"
NOTHING: Final = "the loss is 0 or NaN"
INCOMPARABLE: Final = "the evaluation loss cannot be compared"
POOR: Final = "training looks fine, but the answers are poor"
BROKEN: Final = "the labels do not reach the loss as they are in the dataset"
SILENT: Final = "the model answers with nothing after a tool would be called"
THOUGHTLESS: Final = "the model stopped thinking in later turns"
FORGETFUL: Final = "long conversations lose their last answers"
