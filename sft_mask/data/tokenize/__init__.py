"""Chats or texts to token ids, as TRL's ``SFTTrainer`` makes them, in batches, shards and processes."""
