"""Judging a model on clips: decode them in batches, score the texts, split the scores, keep every prediction."""
