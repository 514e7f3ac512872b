"""Pretrained models: what they are made of, how they are loaded, quantised and called."""
