"""A/B experiments around the life of a request. Tokenizer process; stands on `tokenizer`."""
