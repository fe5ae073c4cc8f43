"""Training on Hugging Face Trainer: embedding tables on plain text, low-rank adapters on answers."""
