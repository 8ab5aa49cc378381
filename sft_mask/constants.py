"""What frameworks chose for us: one number, and the names of roles."""

from typing import Final

IGNORE_INDEX: Final = -100
"""The label that ``torch.nn.functional.cross_entropy`` and every Hugging Face loss leave out."""

ROLES: Final = ("system", "user", "assistant", "tool", "developer", "model", "other")
"""Roles of messages that the library tells apart; every further one is the last."""

ASSISTANT: Final = ROLES.index("assistant")

ASSISTANT_ROLES: Final = frozenset({"assistant", "model"})
"""Names that chat templates have for the model."""

FLAGS: Final = ("train", "training", "trainable", "loss", "weight", "loss_weight", "loss_scale")
"""Fields in which a message says itself whether, and how much, it is trained."""

SPAN_FLAGS: Final = ("train_detail", "training_detail")
"""Fields in which a message says which of its characters are trained; they are reported, not read."""

REASONING: Final = ("reasoning_content", "thinking", "reasoning")
"""Fields in which a message holds its reasoning."""
