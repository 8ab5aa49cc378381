"""The mask and the model's answers in the experiment tracker that a trainer reports to."""
