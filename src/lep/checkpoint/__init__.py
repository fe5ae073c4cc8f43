"""Checkpoints: read lazily, changed only in their embedding tables, written whole or not at all."""
