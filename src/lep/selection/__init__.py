"""The choice of a propagation method by behaviour."""
