"""Recipes and their stages: typed, fingerprinted, resumable."""
