"""The one number of the library that a framework chose for us."""

from typing import Final

IGNORE_INDEX: Final = -100
"""The label that ``torch.nn.functional.cross_entropy`` and every Hugging Face loss leave out."""
