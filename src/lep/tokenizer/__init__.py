"""Tokenizers: tokens as bytes, extension, loading and publishing."""
