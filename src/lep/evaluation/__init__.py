"""Measures that compare models with different tokenizers: bits per byte, copying, exact answers."""
