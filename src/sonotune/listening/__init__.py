"""Listening: a blind comparison of two models, an error browser with sound, and corrections of transcripts."""
