"""The hook on a TRL trainer, and what it needs of the loss."""
