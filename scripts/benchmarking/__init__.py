"""What the benchmark scripts share: arms that take turns, conversations, training steps, peak memory."""
