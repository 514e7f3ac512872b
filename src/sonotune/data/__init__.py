"""Manifests and what fills them: importers, transcripts, splits, joined recordings, synthetic speech."""
