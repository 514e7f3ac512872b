"""The report: complete, escaped, self-contained, and the same bytes every time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sonotune.errors import RunDirectoryError
from sonotune.reports.record import build_html, show_seconds
from sonotune.runs import read_predictions


@pytest.fixture(scope="module")
def html(run_record, run_events, run_predictions) -> str:
    return build_html(run_record, run_events, run_predictions)


@pytest.fixture(scope="module")
def page(html: str, read_page):
    return read_page(html)


def test_every_element_is_closed_and_every_section_is_there(page) -> None:
    assert page.open == []
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    training = ["findings", "data", "scores", "training", "predictions", "slices"]
    assert sections == [*training, "model", "time", "settings", "environment"]
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links == [f"#{name}" for name in sections]


def test_a_stage_is_a_row_for_each_group_and_its_tensors_are_folded(html: str, run_record) -> None:
    stage = html.split("Stage 1: train</h3>")[1].split("</section>")[0]
    shown, folded = stage.split("<details>")
    assert '<td>adapters</td><td class="n">0.001</td><td>yes</td><td class="n">98\u202f304</td>' in shown
    assert "max_steps" not in shown  # without a limit
    assert "All 9 tensors" in folded
    for group in run_record.stages[0]["groups"]:
        for tensor in group["tensors"]:
            assert tensor in folded
            assert tensor not in shown


def test_the_same_run_gives_the_same_bytes(html: str, run_record, run_events, run_predictions) -> None:
    assert build_html(run_record, iter(run_events), run_predictions) == html


def test_nothing_is_loaded_from_elsewhere(html: str, page) -> None:
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    addresses = set(re.findall(r"https?://[^\s\"')]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "default-src 'none'" in html


def test_transcripts_are_data(html: str, page) -> None:
    assert "<script" not in html
    assert "<script>alert(1)</script>" in page.flat("predictions")


def test_ids_are_unique(page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_scores_stand_with_interval_counts_and_parts(page, run_record) -> None:
    after = run_record.scores["after"]["wer"]
    shown = page.flat("scores")
    for key in ("value", "low", "high"):
        assert f"{100 * after[key]:.1f} %" in shown
    assert re.search(r"after\s*WER\s*41\.2 %.*?6\s*3\s*2\s*2\s*17\s*speaker", " ".join(page.text["scores"].split()))
    assert "123.5 % → 41.2 %" in page.flat("")
    assert "−82.4 points, −67 % relative" in page.flat("")


def test_curves_show_what_the_events_say(page) -> None:
    labels = [attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"]
    assert labels == [
        "WER with 95 % intervals",
        "CER with 95 % intervals",
        "Scores over steps",
        "Training loss over steps",
        "Learning rate over steps",
        "Training throughput over steps",
        "Seconds by phase",
    ]
    assert "adapter" in page.flat("training")
    assert "stem" in page.flat("training")


def test_worst_predictions_come_first_with_their_edits(html: str, page) -> None:
    shown = re.findall(r'<code dir="auto">(\w+)</code>', html)
    assert shown == ["a4", "a1", "a3", "a5", "a2"]  # two errors at 67 %, two at 50 %, then one at 100, 33 and 25 %
    assert (
        '<del title="substituted: said"><bdi>ארבע</bdi></del><ins title="substituted: recognised"><bdi>ארבה</bdi></ins>'
        in html
    )
    assert '<ins title="inserted"><bdi>שש</bdi></ins>' in html
    assert '<del title="deleted"><bdi>stop</bdi></del>' in html
    assert "nothing recognised" in page.flat("predictions")
    assert "5 of 5 texts with errors, out of 6" in page.flat("predictions")
    assert html.count('<div class="words" dir="ltr">') == 4
    assert html.count('<div class="words" dir="rtl">') == 1  # the Hebrew one


def test_the_scored_form_is_what_is_compared(run_record, read_page) -> None:
    row = {"id": "x", "reference": "Stop!", "hypothesis": "STOP", "duration_s": 1.0}
    assert "No errors in 1" in read_page(
        build_html(run_record, [], [row | {"scored_reference": "stop", "scored_hypothesis": "stop"}])
    ).flat("predictions")
    assert "100 % WER" in read_page(build_html(run_record, [], [row])).flat("predictions")


def test_slices_are_made_from_the_predictions(page) -> None:
    shown = page.flat("slices")
    for by in ("By domain", "By duration", "By speaker", "By language"):
        assert by in shown
    assert "phone3" in shown.replace(" ", "")
    assert "30.0 %" in shown


def test_only_the_worst_of_many_slices_are_shown(run_record, read_page) -> None:
    rows = [
        {
            "id": str(index),
            "reference": "a b c d",
            "hypothesis": "a b c x" if index == 99 else "a b c d",
            "speaker": f"s{index:03}",
        }
        for index in range(100)
    ]
    shown = read_page(build_html(run_record, [], rows)).flat("slices")
    assert "s099" in shown
    assert "60 more with lower rates" in shown


def test_findings_stand_worst_first_with_their_clips(html: str, page) -> None:
    shown = page.flat("findings")
    assert shown.index("audio.truncated") < shown.index("data.no_speaker")
    assert "Measured 1.1 s, allowed 3.2 s" in shown
    assert "audio/<b7>.wav" in shown
    assert "b7 and 4 more" in shown


def test_settings_say_where_they_come_from(page) -> None:
    shown = page.flat("settings")
    assert re.search(r"training\.learning_rate ?0\.001 ?command line: training\.learning_rate=1e-3", shown)
    before, defaults = shown.split("4 settings at their default")
    assert "adapter.targets" in defaults
    assert "adapter.targets" not in before


def test_model_and_environment_are_complete(page) -> None:
    model = page.flat("model")
    assert re.search(r"stem ?120\u202f?\s?000", model)
    assert "50.0 %" in model
    assert "7.83 %" in page.flat("")  # 180 000 of 2 300 000
    assert "model.encoder.layers.0.fc1" in model
    assert "4 because the command line asked for it" in model
    assert "packages.torch" in page.flat("environment")
    assert "ab" * 32 in page.flat("environment")


def test_an_empty_run_has_a_report_too(run_record, read_page) -> None:
    bare = replace(
        run_record,
        status="failed",
        scores={},
        findings=(),
        model={},
        ranks={},
        stages=(),
        choices={},
        config={},
        environment={},
        code={},
        config_origin={},
        data_digest={},
        energy_joules=7200.0,
    )
    page = read_page(build_html(bare))
    assert page.open == []
    assert "The record has no scores" in page.flat("scores")
    assert "No predictions were kept" in page.flat("predictions")
    assert "None: no clip was left out" in page.flat("findings")
    assert "Trained" not in page.flat("")
    assert "2 Wh" in page.flat("")


def test_components_may_be_counts_by_name(run_record, read_page) -> None:
    model = {"components": {"stem": 10, "encoder": {"parameters": 30, "trainable": 15}}}
    shown = read_page(build_html(replace(run_record, model=model))).flat("model")
    assert re.search(r"stem ?10 ?encoder ?30 ?15 ?50\.0 %", shown)


def test_the_last_event_of_a_repeated_step_counts_and_odd_events_do_no_harm(run_record) -> None:
    steps = [{"step": step, "loss": 1.0, "learning_rate": 1e-3} for step in (1, 2, 3)]
    odd = [{"kind": "note"}, {"step": "x", "loss": 1}, {"step": 4, "loss": None}, {"step": 5, "scores": {"wer": 0.5}}]
    repeated = [{"step": 2, "loss": 99.0, "learning_rate": 1e-3}, *steps]
    assert build_html(run_record, [*repeated, *odd]) == build_html(run_record, steps)


def test_time_by_phase_is_that_of_the_last_event(run_record, read_page) -> None:
    events = [
        {"kind": "spent", "seconds": {"forward": 1.0}},
        {"kind": "spent", "seconds": {"forward": 3.0, "data": 1.0}},
    ]
    events.append({"kind": "step", "seconds": 0.5})
    shown = read_page(build_html(replace(run_record, seconds=4.0), events)).flat("time")
    assert re.search(r"forward ?3\.0 s ?75\.0 % ?data ?1\.0 s ?25\.0 %", shown)


def test_times_add_up_to_the_wall_time(run_record, read_page) -> None:
    events = [{"kind": "spent", "seconds": {"forward": 48.0}}]
    shown = read_page(build_html(replace(run_record, seconds=150.0), events)).flat("time")
    assert re.search(r"forward ?48 s ?32\.0 % ?loading, scoring before and after, other ?1 min 42 s ?68\.0 %", shown)


def test_scores_over_steps_begin_before_training(run_record) -> None:
    same_axis = {"low": 0.1, "high": 0.9}  # so that one picture has more than the other for its points alone
    scores = {
        point: {name: {**score, **same_axis} for name, score in found.items()}
        for point, found in run_record.scores.items()
    }
    run_record = replace(run_record, scores=scores)
    events = [{"step": 5, "scores": run_record.scores["after"]}, {"step": 9, "scores": run_record.scores["after"]}]
    assert "wer" in run_record.scores["before"]
    started = curve_of_scores(build_html(run_record, events))
    without = {name: scores for name, scores in run_record.scores.items() if name != "before"}
    assert len(started) > len(curve_of_scores(build_html(replace(run_record, scores=without), events)))
    again = [{"step": 0, "scores": run_record.scores["before"]}, *events]  # which the run itself has kept
    assert curve_of_scores(build_html(run_record, again)) == started


def curve_of_scores(html: str) -> str:
    return html.partition("<figcaption>Scores over steps</figcaption>")[2].partition("</figure>")[0]


def test_clips_that_name_no_language_have_that_of_the_run(run_record, read_page) -> None:
    model = {**run_record.model, "language": "sw"}
    data = {name: {**run_record.data["eval"], "clips": 7} for name in ("eval", "test")}
    shown = read_page(build_html(replace(run_record, model=model, data=data))).flat("data")
    assert shown.count("none named sw") == 2 or shown.count("none namedsw") == 2


def test_losses_that_are_not_numbers_leave_a_gap(run_record, read_page) -> None:
    events = [{"step": step, "loss": float("nan") if step == 2 else 1.0} for step in (1, 2, 3)]
    assert read_page(build_html(run_record, events)).open == []


def test_a_damaged_transcript_does_not_stop_the_report(run_record) -> None:
    row = {"id": "x", "reference": "a \ud800", "hypothesis": "b \x00 \x1b[31m", "duration_s": 1.0}
    html = build_html(run_record, [], [row])
    html.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)
    assert "\ufffd[31m" in html


def test_predictions_are_read_back(tmp_path: Path, run_predictions) -> None:
    path = tmp_path / "after.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in run_predictions) + "\n", "utf-8")
    assert read_predictions(path) == run_predictions


@pytest.mark.parametrize("line", ["[1]", "{", '"x"'])
def test_damaged_predictions_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "after.jsonl"
    path.write_text('{"id": "a"}\n' + line + "\n", "utf-8")
    with pytest.raises(RunDirectoryError, match=re.escape(f"{path}:2")):
        read_predictions(path)
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        read_predictions(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (18_130, "5 h 2 min"),
    ],
)
def test_durations_as_people_say_them(seconds: float, expected: str) -> None:
    assert show_seconds(seconds) == expected


def test_a_report_needs_no_torch() -> None:
    program = (
        "import sys\nfrom sonotune.reports.record import build_html\n"
        "from sonotune.reports.figures import bars\n"
        "assert 'matplotlib' not in sys.modules, 'matplotlib is imported before a figure is drawn'\n"
        "bars('a', {'b': 1.0}, x_label='s', title='t')\n"
        "found = {'torch', 'transformers', 'peft', 'matplotlib.pyplot'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_slices_are_of_the_rate_that_decides(run_record, run_predictions, read_page) -> None:
    def shown(primary: str) -> str:
        scores = {
            where: {name: {**score, "role": "primary" if name == primary else "plain"} for name, score in each.items()}
            for where, each in run_record.scores.items()
        }
        return read_page(build_html(replace(run_record, scores=scores), [], run_predictions)).flat("slices")

    words, characters = shown("wer"), shown("cer")
    assert "WER" in words
    assert "CER" not in words
    assert "CER" in characters
    assert "WER" not in characters
