"""Clips that a run was trained on are known again by what their recordings contain, or by their ids."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonotune.data.trained_on import check_trained_on, write_trained_on
from sonotune.errors import RunDirectoryError
from sonotune.runs import digest_file
from sonotune.runs.directory import TRAINED_ON
from sonotune.types import Clip


def recorded(folder: Path, name: str, *, seconds: float = 2.0) -> Clip:
    folder.mkdir(parents=True, exist_ok=True)
    noise_S = np.random.default_rng(sum(name.encode())).uniform(-0.5, 0.5, round(8000 * seconds))
    soundfile.write(folder / f"{name}.wav", noise_S, 8000)
    return Clip(id=name, path=folder / f"{name}.wav", duration_s=seconds, text="one")


def keep(run: Path, *clips: Clip, add: bool = False) -> None:
    run.mkdir(exist_ok=True)
    digests = {clip.path.absolute(): digest_file(clip.path) for clip in clips if clip.path.is_file()}
    write_trained_on(run, clips, digests, add=add)


def test_recordings_are_known_again_under_other_names(tmp_path: Path):
    heard, other = recorded(tmp_path / "wav", "heard"), recorded(tmp_path / "wav", "other")
    keep(tmp_path / "run", heard)
    again = replace(heard, id="x1", path=Path(shutil.copy(heard.path, tmp_path / "copy.wav")))
    (finding,) = check_trained_on(tmp_path / "run", [again, other])
    assert (finding.check, finding.clip_ids, finding.measured) == ("leak.audio", ("x1",), 1.0)
    assert finding.message.startswith("1 of 2 clips that are scored")
    assert check_trained_on(tmp_path / "run", [other]) == []


def test_other_seconds_of_a_long_recording_were_not_trained_on(tmp_path: Path):
    long = recorded(tmp_path, "long", seconds=4.0)
    keep(tmp_path / "run", replace(long, duration_s=2.0))
    assert check_trained_on(tmp_path / "run", [replace(long, id="later", start_s=2.0, duration_s=2.0)]) == []
    (finding,) = check_trained_on(tmp_path / "run", [replace(long, id="both", start_s=1.0, duration_s=2.0)])
    assert finding.clip_ids == ("both",)


def test_an_id_counts_where_the_length_is_the_same(tmp_path: Path):
    """The same clip in another encoding; ids that are numbers come back in any corpus."""
    heard = recorded(tmp_path, "7")
    keep(tmp_path / "run", heard)
    encoded = recorded(tmp_path / "flac", "encoded")
    (finding,) = check_trained_on(tmp_path / "run", [replace(encoded, id="7")])
    assert (finding.check, finding.clip_ids) == ("leak.id", ("7",))
    assert check_trained_on(tmp_path / "run", [replace(encoded, id="7", duration_s=1.2)]) == []


def test_clips_of_an_earlier_session_stay_and_those_of_another_run_do_not(tmp_path: Path):
    first, second = recorded(tmp_path, "first"), recorded(tmp_path, "second")
    keep(tmp_path / "run", first)
    keep(tmp_path / "run", second, add=True)
    keep(tmp_path / "run", second, add=True)
    assert len((tmp_path / "run" / TRAINED_ON).read_text("utf-8").splitlines()) == 2
    (finding,) = check_trained_on(tmp_path / "run", [first, second])
    assert finding.clip_ids == ("first", "second")
    keep(tmp_path / "run", second)
    assert check_trained_on(tmp_path / "run", [first]) == []


def test_missing_files_and_older_runs_say_nothing_and_a_damaged_list_is_refused(tmp_path: Path):
    gone = Clip(id="gone", path=tmp_path / "gone.wav", duration_s=1.0)
    assert check_trained_on(tmp_path, [gone]) == []
    keep(tmp_path / "run", gone)
    (finding,) = check_trained_on(tmp_path / "run", [gone])
    assert finding.check == "leak.id"
    (tmp_path / "run" / TRAINED_ON).write_text('{"id": 1}\n')
    with pytest.raises(RunDirectoryError, match=r"trained_on\.jsonl:1"):
        check_trained_on(tmp_path / "run", [gone])
