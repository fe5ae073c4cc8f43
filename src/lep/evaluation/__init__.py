"""Measures that compare models with different tokenizers: bits per byte, tokens, copying, exact answers."""
