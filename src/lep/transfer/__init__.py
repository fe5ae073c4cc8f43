"""Verbs that move rows from one checkpoint to another."""
