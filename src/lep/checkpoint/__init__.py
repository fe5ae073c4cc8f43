"""Checkpoints: file formats of models, read lazily, rewritten tensor by tensor."""
