"""Training with Hugging Face Trainer: tables on plain text, low-rank adapters on answers."""
