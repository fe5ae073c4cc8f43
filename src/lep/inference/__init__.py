"""Loaded models at work: likelihoods and greedy answers."""
