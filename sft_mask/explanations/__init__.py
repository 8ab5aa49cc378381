"""Why each token of a row is trained or not."""
