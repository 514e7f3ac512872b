"""Which settings change nothing under the other settings."""

from __future__ import annotations

from sonotune.config.adapter import AllocationConfig, ReallocationConfig, RegularizationConfig
from sonotune.config.distillation import DistillationConfig
from sonotune.config.schema import RunConfig


def _effects(config: RunConfig) -> list[tuple[bool, str, str, tuple[str, ...]]]:
    """Rows of (the settings do nothing, because, section, settings)."""
    full = config.adapter.kind == "none"
    bits = config.quantization.bits
    sound = config.augmentation
    return [
        (
            config.training.objective not in ("auto", "ctc_mix"),
            f"training.objective is {config.training.objective}, which mixes in no CTC",
            "model",
            ("ctc_share",),
        ),
        (
            config.training.objective != "star",
            f"training.objective is {config.training.objective}",
            "training",
            ("star_bypass_penalty", "star_speech_penalty"),
        ),
        (
            config.training.objective != "distill",
            f"training.objective is {config.training.objective}, which learns from transcripts alone",
            "distillation",
            tuple(DistillationConfig.model_fields),
        ),
        (
            full,
            "adapter.kind is none: the whole model trains, without adapters",
            "adapter",
            ("rank", "alpha", "scaling", "dropout", "targets", "stem", "unfreeze", "split", "allocator", "budget"),
        ),
        (
            config.adapter.kind in ("none", "lora", "conv_lora"),
            f"adapter.kind is {config.adapter.kind}, which has no gates",
            "adapter",
            ("gate_groups", "gate_seed"),
        ),
        (
            config.adapter.kind in ("none", "lora", "gated_lora", "clip_gated_lora", "shuffled_gated_lora"),
            f"adapter.kind is {config.adapter.kind}, which has no filters over time",
            "adapter",
            ("conv_kernel",),
        ),
        *(
            (full, "adapter.kind is none: the whole model trains, without adapters", section, tuple(model.model_fields))
            for section, model in (
                ("allocation", AllocationConfig),
                ("regularization", RegularizationConfig),
                ("reallocation", ReallocationConfig),
            )
        ),
        *(
            (config.adapter.split == "measured" and not full, "adapter.split is measured", section, settings)
            for section, settings in (("adapter", ("stem",)), ("allocation", ("group_weights",)))
        ),
        *(
            (config.allocation.file is not None and not full, "allocation.file has the ranks", section, settings)
            for section, settings in (
                ("adapter", ("rank", "allocator", "budget")),
                (
                    "allocation",
                    (
                        "gamma",
                        "rank_step",
                        "min_rank",
                        "max_rank",
                        "group_weights",
                        "group_floors",
                        "cross_modality",
                        "draw",
                    ),
                ),
            )
        ),
        (config.regularization.entropy == "off", "regularization.entropy is off", "regularization", ("weight", "ramp")),
        (not config.reallocation.at, "reallocation.at is empty", "reallocation", ("share", "shrink")),
        (full or bits == 16, "no weight is quantised", "quantization", ("double", "skip")),
        (bits == 8, "double quantisation belongs to 4 bits", "quantization", ("double",)),
        *(
            (
                getattr(config.frame_merging, ratio) in ("auto", 0),
                f"nothing is merged by frame_merging.{ratio}",
                "frame_merging",
                settings,
            )
            for ratio, settings in (
                ("ratio", ("layers", "rule", "noise_weight", "min_positions")),
                ("audio_ratio", ("audio_method",)),
            )
        ),
        (
            config.frame_merging.rule not in ("noise_aware", "noise_shuffled"),
            f"frame_merging.rule is {config.frame_merging.rule}, which looks at no noise",
            "frame_merging",
            ("noise_weight",),
        ),
        (
            config.model.context == "full",
            "model.context is full: every batch has the whole window",
            "model",
            ("full_context_share",),
        ),
        *(
            (config.model.task == "transcribe", "transcription has no classes", section, settings)
            for section, settings in (
                ("model", ("num_labels",)),
                ("data", ("multi_label",)),
                ("training", ("class_weights",)),
                ("augmentation", ("mixup_probability", "mixup_alpha", "mixup_domain")),
            )
        ),
        *(
            (config.model.task == "classify", "classes have no text", section, settings)
            for section, settings in (
                ("model", ("language", "tokenizer", "ctc_share")),
                ("data", ("max_label_tokens", "text_training", "text_scoring")),
                ("evaluation", ("verbalize_numbers", "speech_check", "scores", "confidence", "length_penalty")),
            )
        ),
        (
            config.data.eval is not None,
            "data.eval names the evaluation clips",
            "data",
            ("eval_speakers", "eval_fraction"),
        ),
        (bool(config.data.eval_speakers), "data.eval_speakers names the held-out part", "data", ("eval_fraction",)),
        *(
            (getattr(sound, switch) == 0, f"augmentation.{switch} is 0", "augmentation", settings)
            for switch, settings in (
                ("speed_probability", ("speed_low", "speed_high")),
                ("gain_probability", ("gain_low_db", "gain_high_db")),
                ("noise_probability", ("snr_low_db", "snr_high_db")),
                ("tilt_probability", ("tilt_db",)),
                ("pad_probability", ("pad_max_s",)),
                (
                    "packet_loss_probability",
                    (
                        "packet_loss_low",
                        "packet_loss_high",
                        "packet_burst_low",
                        "packet_burst_high",
                        "packet_concealment",
                    ),
                ),
                ("mixup_probability", ("mixup_alpha", "mixup_domain")),
                ("frequency_masks", ("frequency_mask_bins",)),
                ("time_masks", ("time_mask_frames", "time_mask_fraction")),
            )
        ),
        (not sound.chains, "augmentation.chains is empty", "augmentation", ("chain_probability",)),
        (not config.evaluation.keep, "evaluation.keep names no panel", "evaluation", ("keep_clips",)),
        (config.evaluation.beam_size == 1, "evaluation.beam_size is 1", "evaluation", ("length_penalty",)),
        (config.evaluation.augment == "none", "evaluation.augment is none", "evaluation", ("augment_seed",)),
        (
            config.ensemble.method == "mbr",
            "ensemble.method is mbr, which takes a whole text",
            "ensemble",
            ("votes", "deletion_confidence"),
        ),
        (
            config.ensemble.votes == "count",
            "ensemble.votes is count",
            "ensemble",
            ("deletion_confidence",),
        ),
        (
            config.training.schedule == "constant",
            "training.schedule is constant",
            "training",
            ("min_learning_rate_ratio",),
        ),
        *(
            (bool(config.training.stages), "training.stages says what trains, and until when", section, settings)
            for section, settings in (
                ("adapter", ("unfreeze", "split")),
                ("training", ("max_epochs", "max_steps", "patience", "warmup_steps")),
            )
        ),
        (
            config.training.eval_steps == "never",
            "training.eval_steps is never",
            "training",
            ("patience", "average_checkpoints"),
        ),
        (config.sweep.method != "optuna", f"sweep.method is {config.sweep.method}", "sweep", ("pruning",)),
        (config.sweep.method == "grid", "sweep.method is grid, which draws nothing", "sweep", ("seed",)),
    ]


def without_effect(config: RunConfig) -> dict[str, str]:
    """Settings that change nothing under the other settings: dotted name -> because of what."""
    return {
        f"{section}.{name}": because
        for idle, because, section, settings in _effects(config)
        if idle
        for name in settings
    }
