"""Publishing: the card of a model, the terms of its licence, the push to the hub."""
