"""Clips that stand in a corpus twice: by their audio, or by a text too long to be said twice by chance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sonotune.data import text as text_module
from sonotune.data.similar_texts import near_copies

MIN_LETTERS: Final = 40
"""A shorter text ("yes", the digits) is often said again, by the same person too."""


def duplicate_audio(digests: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Clips with the same audio.

    Args:
        digests: Clip id -> digest of its samples (`audio.quality.samples_digest`).

    Returns:
        The ids of each group of two or more, in the order given.
    """
    groups: dict[str, list[str]] = {}
    for clip_id, digest in digests.items():
        groups.setdefault(digest, []).append(clip_id)
    return [tuple(members) for members in groups.values() if len(members) > 1]


def duplicate_texts(
    texts: Mapping[str, str], *, normalizer: str = "basic", min_letters: int = MIN_LETTERS, near: bool = False
) -> list[tuple[str, ...]]:
    """Clips with the same long text.

    Args:
        texts: Clip id -> transcript.
        normalizer: Texts are compared in its scoring form (registry name).
        min_letters: Texts with fewer characters, spaces left out, are passed over.
        near: Take near copies too (`data.similar_texts.SIMILARITY`).

    Returns:
        The ids of each group of two or more, in the order given.
    """
    scoring = text_module.get(normalizer).scoring
    forms = {clip_id: scoring(text) for clip_id, text in texts.items()}
    forms = {clip_id: form for clip_id, form in forms.items() if len(form.replace(" ", "")) >= min_letters}
    if not near:
        return duplicate_audio(forms)
    clusters = near_copies(list(forms.values())).tolist()
    return duplicate_audio({clip_id: str(cluster) for clip_id, cluster in zip(forms, clusters, strict=True)})
