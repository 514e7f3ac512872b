"""Normalisers of transcripts for one language or script each; `sonotune.data.text` has the contract and the others."""
