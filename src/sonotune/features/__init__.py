"""Waveforms to model inputs: frontends, SpecAugment, batches."""
