"""Audio without torch: decoding, augmentation of waveforms, voice activity.

Everything outside this package reads and writes audio through `io`. Behind it, `opening` lets only sound files pass to
the decoder and `containers` reads their headers.
"""
