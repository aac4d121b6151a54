"""Pre-training: a GPT-2 of any shape, with any format for its matrices, from scratch on plain text."""
