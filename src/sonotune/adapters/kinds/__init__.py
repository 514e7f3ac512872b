"""Kinds of adapters: how each is attached, saved, loaded, resized and merged."""
