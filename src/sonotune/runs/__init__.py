"""A run's directory, and what makes a run repeatable: seeds, digests, atomic writes, the environment."""

from sonotune.runs.directory import ResumeMode, RunDirectory, read_events
from sonotune.runs.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    clear_drafts,
    digest_bytes,
    digest_file,
    digest_json,
    make_folder,
    redact,
    sync_directory,
    to_plain,
    write_error,
)
from sonotune.runs.machine import code_version, environment
from sonotune.runs.predictions import read_predictions
from sonotune.runs.record import RECORD_SCHEMA, read_record, record_from_json, record_to_json
from sonotune.runs.seeds import generator, torch_seed

__all__ = [
    "RECORD_SCHEMA",
    "ResumeMode",
    "RunDirectory",
    "atomic_write_bytes",
    "atomic_write_json",
    "atomic_write_text",
    "clear_drafts",
    "code_version",
    "digest_bytes",
    "digest_file",
    "digest_json",
    "environment",
    "generator",
    "make_folder",
    "read_events",
    "read_predictions",
    "read_record",
    "record_from_json",
    "record_to_json",
    "redact",
    "sync_directory",
    "to_plain",
    "torch_seed",
    "write_error",
]
