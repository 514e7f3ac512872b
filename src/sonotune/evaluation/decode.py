"""What belongs between batches and predictions: the order of the clips, those not decoded, and texts that were cut."""

from __future__ import annotations

from collections.abc import Sequence

from sonotune.types import DecodingSettings, Finding, Prediction

_SHOWN_IDS = 20


def in_clip_order(
    clip_ids: Sequence[str], predictions: Sequence[Prediction], findings: Sequence[Finding]
) -> tuple[list[Prediction], list[Finding]]:
    """One prediction per clip, in the order of the clips, whatever the order of the batches.

    A clip without a prediction gets an empty text, which counts as deletions, and must be in a finding: one is added
    for those that no finding names, so that nothing is dropped in silence.

    Returns:
        Predictions in clip order, and all findings.

    Raises:
        ValueError: A clip was predicted twice, or a prediction is for a clip that was not asked for.
    """
    by_id = {prediction.clip_id: prediction for prediction in predictions}
    if len(by_id) != len(predictions) or not by_id.keys() <= set(clip_ids):
        raise ValueError("a task must return exactly one prediction for each clip of its batch, with the clip's id.")
    missing = [clip_id for clip_id in clip_ids if clip_id not in by_id]
    explained = {clip_id for finding in findings for clip_id in finding.clip_ids}
    all_findings = list(findings)
    if unexplained := tuple(clip_id for clip_id in missing if clip_id not in explained):
        all_findings.append(
            Finding(
                check="evaluation.not_decoded",
                severity="warning",
                message=f"{len(unexplained)} clips came out of no batch and count as empty texts: "
                f"{some_of(unexplained)}. Check that their files can be read with `sonotune data stats`.",
                clip_ids=unexplained,
                measured=float(len(unexplained)),
                unit="clips",
            )
        )
    ordered = [by_id.get(clip_id, Prediction(clip_id=clip_id, text="")) for clip_id in clip_ids]
    return ordered, all_findings


def cut_texts(predictions: Sequence[Prediction], settings: DecodingSettings) -> list[Finding]:
    """A warning that names the texts which end because they reached their limit of tokens."""
    cut = tuple(prediction.clip_id for prediction in predictions if prediction.cut)
    if not cut:
        return []
    limit = settings.max_new_tokens
    asked = "what the model can write" if limit is None else f"evaluation.max_new_tokens={limit}"
    return [
        Finding(
            check="decode.token_limit",
            severity="warning",
            message=f"{len(cut)} of {len(predictions)} texts reached their limit of tokens ({asked}) and end there: "
            f"{some_of(cut)}. What was said after that is missing. Raise evaluation.max_new_tokens, if the model can "
            "write more, or cut the clips.",
            clip_ids=cut,
            measured=float(len(cut)),
            unit="clips",
        )
    ]


def some_of(clip_ids: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    shown = ", ".join(clip_ids[:_SHOWN_IDS])
    return shown if len(clip_ids) <= _SHOWN_IDS else f"{shown} and {len(clip_ids) - _SHOWN_IDS} more"
