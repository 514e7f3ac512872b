"""Readers of other people's corpora, by the kind of source: tables, JSON, folders, known layouts."""
