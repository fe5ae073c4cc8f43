"""Models that come from other formats: GGUF files, pickled weights, SentencePiece."""
