"""Pictures of ranks and entropies: every module in one cell, every number as given, and nothing drawn of nothing."""

from __future__ import annotations

import math
import re
import struct
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sonotune.errors import AdapterError
from sonotune.reports.canvas import TITLE_INCHES, Picture, elide, shown
from sonotune.reports.entropies import entropy_distributions, entropy_over_time
from sonotune.reports.module_names import OUTSIDE, Place, arrange, group_titles, place
from sonotune.reports.rank_heatmap import (
    budget_bar,
    heat_map,
    plan_pictures,
    run_pictures,
    save_pictures,
)
from sonotune.reports.record import build_html

SVG = "{http://www.w3.org/2000/svg}"
HEBREW = "דגם.מקודד.layers.3.הטלה"


def names(stack: str, layers: int, *kinds: str) -> list[str]:
    return [f"{stack}.{layer}.{kind}" for layer in range(layers) for kind in kinds]


ATTENTION = ("k_proj", "v_proj", "q_proj", "out_proj")
SELF, CROSS = ([f"{block}.{kind}" for kind in ATTENTION] for block in ("self_attn", "encoder_attn"))
WHISPER_LARGE = [
    *names("model.encoder.layers", 32, *SELF, "fc1", "fc2"),
    *names("model.decoder.layers", 32, *SELF, *CROSS, "fc1", "fc2"),
]
QWEN3_ASR = [
    *names("model.audio_tower.layers", 24, *SELF, "fc1", "fc2"),
    "model.multi_modal_projector.linear_1",
    "model.multi_modal_projector.linear_2",
    *names("model.language_model.layers", 28, *SELF[:3], "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"),
    "lm_head",
]


def numbered(modules: list[str]) -> dict[str, int]:
    """A rank for each that tells where it is."""
    return {module: 4 + 4 * (index % 15) for index, module in enumerate(modules)}


def history(modules: list[str], steps: range, **changes: Any) -> list[dict[str, Any]]:
    return [
        {
            "kind": "adapter_entropy",
            "step": step,
            "entropy": {module: 0.9 - 0.001 * index for index, module in enumerate(modules)},
            "effective_rank": {module: 8.0 - 0.01 * index for index, module in enumerate(modules)},
        }
        | changes
        for step in steps
    ]


def read(svg: str | bytes) -> ET.Element:
    return ET.fromstring(svg)  # noqa: S314  (our own SVG)


def titles(picture: Picture) -> list[str]:
    return [element.text or "" for element in read(picture.svg()).iter(f"{SVG}title")]


def texts(picture: Picture) -> list[str]:
    return [element.text or "" for element in read(picture.svg()).iter(f"{SVG}text")]


# --- where a module stands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stack", "layer", "kind"),
    [
        ("model.encoder.layers.3.self_attn.q_proj", "model.encoder.layers", 3, "self_attn.q_proj"),
        ("model.decoder.layers.0.encoder_attn.k_proj", "model.decoder.layers", 0, "encoder_attn.k_proj"),
        ("model.language_model.layers.27.mlp.gate_proj", "model.language_model.layers", 27, "mlp.gate_proj"),
        ("model.audio_tower.layers.2.fc1", "model.audio_tower.layers", 2, "fc1"),
        ("multi_modal_projector.linear_1", "multi_modal_projector", None, "linear_1"),
        ("wav2vec2.encoder.layers.0.attention.k_proj", "wav2vec2.encoder.layers", 0, "attention.k_proj"),
        ("audio_spectrogram_transformer.layers.4.mlp.fc2", "audio_spectrogram_transformer.layers", 4, "mlp.fc2"),
        ("wavlm.encoder.layers.1.attention.gru_rel_pos", "wavlm.encoder.layers", 1, "attention.gru_rel_pos"),
        (
            "wav2vec2_conformer.encoder.layers.1.conv_module.pointwise_conv1",
            "wav2vec2_conformer.encoder.layers",
            1,
            "conv_module.pointwise_conv1",
        ),
        ("model.layers.3.mlp.experts.5.w1", "model.layers", 3, "mlp.experts.5.w1"),
        ("projector.2", "projector", 2, ""),
        ("0.fc", "", 0, "fc"),
        ("lm_head", "", None, "lm_head"),
        ("encoder.layers.03.fc", "encoder.layers.03", None, "fc"),
        ("encoder.layers.٣.fc", "encoder.layers.٣", None, "fc"),
        ("", "", None, ""),
        (HEBREW, "דגם.מקודד.layers", 3, "הטלה"),
    ],
)
def test_names_are_read(name: str, stack: str, layer: int | None, kind: str) -> None:
    assert place(name) == Place(stack=stack, layer=layer, kind=kind)


def test_a_stack_is_a_panel_in_the_order_of_the_model() -> None:
    panels = arrange(QWEN3_ASR)
    assert [panel.title for panel in panels] == ["audio_tower", "multi_modal_projector", "language_model", OUTSIDE]
    assert [len(panel.cells) for panel in panels] == [144, 2, 168, 1]
    assert panels[0].kinds == (*SELF, "fc1", "fc2")
    assert panels[0].layers == tuple(range(24))
    assert panels[1].layers == ()
    assert panels[2].cells[27, "mlp.gate_proj"] == "model.language_model.layers.27.mlp.gate_proj"
    assert panels[3].cells == {(None, "lm_head"): "lm_head"}
    assert [panel.title for panel in arrange(["lm_head", "classifier", "adapter.one"])] == [OUTSIDE]


def test_panels_of_one_short_name_are_told_apart() -> None:
    stacks = ["model.a.layers.0.fc", "a.blocks.0.fc", "a.one", "a.two", "outside the layers.0.fc", "head"]
    found = [panel.title for panel in arrange(stacks)]
    assert len(set(found)) == len(found) == 5
    assert found[:3] == ["model.a.layers", "a.blocks", "a, outside the layers"]


PIECES = st.sampled_from(["0", "1", "12", "layers", "fc", "", "model", "03", "דגם", "h"])


@given(st.lists(st.lists(PIECES, min_size=1, max_size=5).map(".".join), max_size=12))
def test_every_module_has_exactly_one_cell(modules: list[str]) -> None:
    panels = arrange(modules)
    cells = [name for panel in panels for name in panel.cells.values()]
    assert sorted(cells) == sorted(set(modules))
    assert len({panel.title for panel in panels}) == len(panels)
    assert all({kind for _, kind in panel.cells} == set(panel.kinds) for panel in panels)
    assert group_titles(modules).keys() == set(modules)


# --- the heat map --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modules", [WHISPER_LARGE, QWEN3_ASR, [HEBREW], names("h", 64, *"abcdefghij")])
def test_every_value_is_told_once_as_it_is(modules: list[str]) -> None:
    ranks = numbered(modules)
    assert sorted(titles(heat_map(ranks))) == sorted(f"{name}: rank {rank}" for name, rank in ranks.items())


def test_numbers_stand_in_their_cells() -> None:
    ranks = numbered(WHISPER_LARGE)
    written = Counter(texts(heat_map(ranks)))
    empty = Counter(texts(heat_map(dict.fromkeys(ranks, 1_000_000))))  # numbers of layers alone: these do not fit
    ends = Counter({"4": 1, "60": 1, "32": 1})  # of the colour bar, and its middle
    expected = Counter(map(str, ranks.values())) + Counter(
        {text: times for text, times in empty.items() if len(text) < 3}
    )
    assert {text: written[text] for text in expected} == {text: expected[text] + ends[text] for text in expected}


def test_numbers_without_room_are_left_to_the_pointer() -> None:
    wide = {name: 1_000_000 + index for index, name in enumerate(names("h", 64, "a"))}
    assert not [text for text in texts(heat_map(wide)) if re.fullmatch(r"10000(1\d|2\d)", text)]
    assert f"h.63.a: rank {1_000_063:.6g}" in titles(heat_map(wide))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((2, 3), {"2", "3", "2.5", "2 modules, rank 2 to 3, median 2.5"}),
        ((1.5, 30.25), {"1.5", "30.2", "2 modules, rank 1.5 to 30.2, median 15.9"}),
        ((12.5, 1234.6), {"12", "1235", "2 modules, rank 12 to 1235, median 624"}),
        ((0.004, 0.0412), {"0.004", "0.041"}),
        ((3e-8, 5e-8), {"3.0e-08", "5.0e-08", "2 modules, rank 3.0e-08 to 5.0e-08, median 4.0e-08"}),
        ((8, 8), {"8", "2 modules, rank 8"}),
    ],
)
def test_numbers_have_the_decimals_that_tell_them_apart(values: tuple[float, float], expected: set[str]) -> None:
    assert expected <= set(texts(heat_map({f"a.{index}.x": value for index, value in enumerate(values)})))


def test_cells_stand_at_their_layer_and_kind() -> None:
    ranks = {"enc.layers.0.a": 4, "enc.layers.2.a": 8, "enc.layers.2.b": 16, "dec.layers.1.a": 32}
    places = {}
    for group in read(heat_map(ranks).svg()).iter(f"{SVG}g"):
        title, path = group.find(f"{SVG}title"), group.find(f"{SVG}path")
        if title is not None and path is not None:
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d") or "")]
            places[(title.text or "").split(":")[0]] = (min(numbers[0::2]), min(numbers[1::2]))
    assert places.keys() == ranks.keys()
    column = {name: x for name, (x, _) in places.items()}
    row = {name: y for name, (_, y) in places.items()}
    step = column["dec.layers.1.a"] - column["enc.layers.0.a"]
    assert step > 0
    assert column["enc.layers.2.a"] - column["enc.layers.0.a"] == pytest.approx(2 * step, abs=0.01)
    assert column["enc.layers.2.b"] == column["enc.layers.2.a"]
    assert row["enc.layers.0.a"] == row["enc.layers.2.a"] < row["enc.layers.2.b"] < row["dec.layers.1.a"]


def opacities(picture: Picture) -> dict[str, float]:
    found = {}
    for group in read(picture.svg()).iter(f"{SVG}g"):
        title, path = group.find(f"{SVG}title"), group.find(f"{SVG}path")
        if title is not None and path is not None:
            opacity = re.search(r"opacity: ([\d.]+)", path.get("style") or "")
            found[(title.text or "").split(":")[0]] = float(opacity[1]) if opacity else 1.0
    return found


def test_a_larger_value_is_darker_on_one_scale_for_all_panels() -> None:
    ranks = {"enc.layers.0.a": 4, "enc.layers.1.a": 20, "dec.layers.0.a": 36, "dec.layers.1.a": 4}
    seen = opacities(heat_map(ranks))
    assert seen["enc.layers.0.a"] == seen["dec.layers.1.a"] == pytest.approx(0.16, abs=0.01)
    assert seen["dec.layers.0.a"] == 1.0
    assert seen["enc.layers.1.a"] == pytest.approx(0.58, abs=0.01)
    logarithmic = opacities(heat_map({"a.0.x": 1.0, "a.1.x": 10.0, "a.2.x": 100.0}))
    assert logarithmic["a.1.x"] == pytest.approx(0.58, abs=0.01)
    assert opacities(heat_map({"a.0.x": -5.0, "a.1.x": 0.0, "a.2.x": 5.0}))["a.1.x"] == pytest.approx(0.58, abs=0.01)


def test_five_hundred_modules_take_less_than_five_seconds() -> None:
    ranks = numbered(WHISPER_LARGE)
    assert len(ranks) == 512
    start = time.process_time()
    picture = heat_map(ranks)
    picture.page()
    picture.png()
    picture.svg()
    assert time.process_time() - start < 5


def test_the_page_has_it_at_its_size_in_the_colours_of_the_page() -> None:
    svg = heat_map(numbered(WHISPER_LARGE)).page()
    root = read(svg)
    assert root.get("aria-label") == "Rank of every adapter"
    width = re.fullmatch(r"width: (\d+)px", root.get("style") or "")
    assert width
    assert 800 < int(width[1]) <= 1040, "a large model fits the card"
    assert not re.search(r"#[0-9a-f]{6}(?![0-9a-f])", svg)
    assert set(re.findall(r"var\((--[\w-]+)\)", svg)) == {"--ink", "--ink-2", "--card", "--series-2", "--font"}
    assert len(svg) < 400_000
    small = read(heat_map(numbered(names("encoder.layers", 2, "q", "v"))).page()).get("style")
    assert int((small or "").removeprefix("width: ").removesuffix("px")) < 500, "a small one is not blown up"


def test_layers_far_apart_do_not_make_an_endless_picture() -> None:
    picture = heat_map({"a.layers.0.x": 1, "a.layers.900000.x": 2})
    assert picture.size[0] < 10
    assert {"0", "900000"} & set(texts(picture))


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan", "-inf"])
def test_a_number_that_is_none_is_a_question_mark(value: Any) -> None:
    picture = heat_map({"a.0.x": value, "a.1.x": 3.0})
    assert texts(picture).count("?") == 1
    assert f"a.0.x: rank {float(value)}" in titles(picture)
    assert texts(heat_map({"a.0.x": value})).count("?") == 1


def test_odd_names_are_drawn() -> None:
    odd = {HEBREW: 8, "a.0.$\\frac{$": 8, "a.0.<b>&\"'": 4, "a.0.\x00\ud800\n": 2, "中文.0.层": 1, "x" * 300: 3}
    picture = heat_map(odd)
    found = titles(picture)
    assert f"{HEBREW}: rank 8" in found
    assert "a.0.<b>&\"': rank 4" in found
    assert "a.0.\ufffd\ufffd\ufffd: rank 2" in found
    assert "הטלה" in texts(picture)
    assert len(picture.png()) > 1000
    assert all(len(text) < 60 for text in texts(picture))
    assert heat_map({f"{'stack' * 90}.0.{'kind' * 90}": 1}).size[0] < 15


def test_long_names_lose_their_middle() -> None:
    assert elide("abcdefghij", 10) == "abcdefghij"
    assert elide("abcdefghijk", 10) == "abc…fghijk"
    assert shown("a\x00b\u202e") == "a\ufffdb\ufffd"


# --- the budget ----------------------------------------------------------------------------------------------------


def test_the_budget_is_split_as_it_was_spent() -> None:
    groups = {"encoder": 600_000, "projector": 20_000, "decoder": 300_000, "decoder.cross_attention": 0}
    picture = budget_bar(groups, budget=1_000_000)
    assert titles(picture) == [
        "encoder: 600000 parameters",
        "projector: 20000 parameters",
        "decoder: 300000 parameters",
        "not spent: 80000 parameters",
    ]
    assert {"60 %", "60.0 %", "2.0 %", "30.0 %", "8.0 %", "600\u202f000"} <= set(texts(picture))
    widths = {}
    for group in read(picture.svg()).iter(f"{SVG}g"):
        title, path = group.find(f"{SVG}title"), group.find(f"{SVG}path")
        if title is not None and path is not None:
            across = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d") or "")][0::2]
            widths[(title.text or "").split(":")[0]] = max(across) - min(across) + 0.72  # the gap of one pixel
    assert widths["encoder"] / widths["decoder"] == pytest.approx(2.0, rel=0.01)
    assert sum(widths.values()) == pytest.approx(360, rel=0.01)


def test_a_budget_that_is_spent_has_nothing_left() -> None:
    assert "not spent" not in texts(budget_bar({"encoder": 10}, budget=10))
    assert "not spent" not in texts(budget_bar({"encoder": 10}))
    many = budget_bar({f"group {index}": 1 + index for index in range(9)})
    assert len(titles(many)) == 9


# --- entropies -----------------------------------------------------------------------------------------------------


def test_distributions_have_a_row_for_each_stack_with_its_medians() -> None:
    before = {module: float(index + 1) for index, module in enumerate(QWEN3_ASR)}
    after = {module: 2 * value for module, value in before.items()}
    picture = entropy_distributions(before, after)
    written = texts(picture)
    assert {"before", "after", "audio_tower", "language_model", "multi_modal_projector", OUTSIDE} <= set(written)
    assert {"72.5", "145", "230", "461"} <= set(written), "of the audio tower and of the language model"
    assert picture.title.endswith("before and after training")


def test_distributions_may_lack_a_moment_or_a_module() -> None:
    before = {"a.layers.0.x": 3.0, "b.layers.0.x": 5.0, "c.layers.0.x": math.nan}
    alone = entropy_distributions(before, {})
    assert alone.title.endswith("before training")
    assert "after" not in texts(alone)
    both = texts(entropy_distributions(before, {"a.layers.0.x": 30.0}))
    assert {"3", "30", "5", "a", "b"} <= set(both)
    assert "c" not in both


def test_wide_distributions_have_a_readable_logarithmic_axis() -> None:
    written = texts(entropy_distributions({"a.0.x": 2.0, "a.1.x": 900.0}, {}))
    assert {"10", "100"} <= set(written)
    assert not [text for text in written if "math" in text or "^" in text]


def test_entropies_over_time_name_the_lowest_modules() -> None:
    picture = entropy_over_time(history(QWEN3_ASR, range(0, 500, 50)))
    written = texts(picture)
    for expected in ("audio_tower, median of 144", "language_model, median of 168", "lm_head: 0.586"):
        assert expected in written
    assert sum(text.startswith("model.language_model.layers.27.mlp") for text in written) == 2
    ranks = entropy_over_time(history(QWEN3_ASR, range(0, 500, 50)), key="effective_rank")
    assert "effective rank" in texts(ranks)
    assert (picture.name, ranks.name) == ("adapter_entropy", "adapter_effective_rank")


def test_the_last_event_of_a_step_counts_and_gaps_do_no_harm() -> None:
    steps = history(["a.0.x", "a.1.x"], range(1, 4))
    wrong = history(["a.0.x"], range(2, 3), entropy={"a.0.x": 0.1})
    odd = [
        {"kind": "note"},
        {"kind": "adapter_entropy", "step": "x", "entropy": {"a.0.x": 0.1}},
        {"kind": "adapter_entropy", "step": 9, "entropy": {"a.0.x": "nan"}},
        {"kind": "adapter_entropy", "step": 9, "entropy": None},
    ]
    plain = entropy_over_time(steps).svg()
    assert entropy_over_time([*wrong, *odd, *reversed(steps)]).svg() == plain
    partly = history(["b.0.x"], range(4, 5))
    assert "b, median of 1" in texts(entropy_over_time([*steps, *partly]))


def test_many_groups_and_long_runs_are_thinned() -> None:
    modules = [f"stack{index}.layers.{layer}.x" for index in range(9) for layer in range(index + 1)]
    written = texts(entropy_over_time(history(modules, range(1))))
    assert "others, median of 15" in written
    assert sum("median of" in text for text in written) == 5
    assert len(entropy_over_time(history(modules[:4], range(5000))).svg()) < 60_000


# --- nothing, and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "wanted"),
    [
        (lambda: heat_map({}), "at least one module"),
        (lambda: heat_map({"a": "many"}), "a has 'many'"),
        (lambda: heat_map({"a": None}), "a has None"),  # type: ignore[dict-item]
        (lambda: budget_bar({}), "a group with adapter parameters"),
        (lambda: budget_bar({"encoder": 0}), "a group with adapter parameters"),
        (lambda: budget_bar({"": -1}), "group '' has -1"),
        (lambda: budget_bar({"encoder": math.nan}), "group 'encoder' has nan"),
        (lambda: entropy_distributions({}, {}), "finite number of at least one module"),
        (lambda: entropy_distributions({"a": math.nan}, {}), "finite number of at least one module"),
        (lambda: entropy_over_time([]), "needs an event of kind adapter_entropy"),
        (lambda: entropy_over_time(history(["a"], range(1), entropy={"a": math.nan})), "needs an event"),
        (lambda: entropy_over_time([], key="rank"), "entropy and effective_rank"),
        (lambda: entropy_over_time([], kind="activation_entropy"), "allowed: effective_rank"),
    ],
)
def test_nothing_is_drawn_of_nothing(draw: Any, wanted: str) -> None:
    with pytest.raises(AdapterError, match=re.escape(wanted)):
        draw()


def plan() -> dict[str, Any]:
    ranks = numbered(QWEN3_ASR)
    return {
        "allocator": "entropy",
        "ranks": ranks,
        "parameters": 5000,
        "budget": 6000,
        "evidence": {name: 100.0 + rank for name, rank in ranks.items()},
        "groups": {"encoder": 2000, "projector": 1000, "decoder": 2000},
    }


def test_files_are_valid_and_the_same_every_time(tmp_path: Path) -> None:
    written = save_pictures(plan(), tmp_path / "figures")
    expected = {f"{name}.{ending}" for name in ("ranks", "evidence", "budget") for ending in ("png", "svg")}
    assert {path.name for path in written} == {path.name for path in (tmp_path / "figures").iterdir()} == expected
    sizes = {picture.name: picture.size for picture in plan_pictures(plan())}
    for path in written:
        data = path.read_bytes()
        if path.suffix == ".png":
            assert data.startswith(b"\x89PNG\r\n\x1a\n")
            assert data.endswith(b"IEND\xaeB`\x82")
            wide, high = sizes[path.stem]
            width, height = struct.unpack(">II", data[16:24])
            assert (width, height) == (
                pytest.approx(200 * wide, abs=1),
                pytest.approx(200 * (high + TITLE_INCHES), abs=1),
            )
        else:
            root = read(data)
            assert root.tag == f"{SVG}svg"
            assert "viewBox" in root.attrib
            assert b"var(--" not in data, "a file has no style sheet"
    before = {path.name: path.read_bytes() for path in written}
    assert {path.name: path.read_bytes() for path in save_pictures(plan(), tmp_path / "figures")} == before


def test_a_plan_without_anything_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="nothing to draw"):
        save_pictures({"ranks": {}, "evidence": None, "groups": {"encoder": 0}}, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_a_plan_of_a_uniform_allocator_has_no_evidence() -> None:
    assert [picture.name for picture in plan_pictures(plan() | {"evidence": {}})] == ["ranks", "budget"]


# --- the report ----------------------------------------------------------------------------------------------------


def moments(modules: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "kind": "activation_entropy",
            "step": step,
            "moment": moment,
            "effective_rank": {module: start + index for index, module in enumerate(modules)},
        }
        for step, moment, start in ((0, "before", 99.0), (0, "before", 10.0), (500, "after", 20.0), (1, "later", 1.0))
    ]


def test_the_report_has_them_all(run_record, run_events, read_page) -> None:
    record = replace(run_record, ranks=numbered(QWEN3_ASR))
    events = [*run_events, *moments(QWEN3_ASR), *history(QWEN3_ASR, range(0, 500, 100))]
    page = read_page(html := build_html(record, iter(events), (), plan()))
    assert page.open == []
    captions = [
        "Rank of every adapter",
        "What the ranks follow: effective rank",
        "Adapter parameters by group",
        "Effective rank of activations, before and after training",
        "Entropy of the adapters over steps",
        "Effective rank of the adapters over steps",
    ]
    labels = [attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"]
    assert [label for label in labels if label in captions] == captions
    assert all(caption in page.flat("ranks") for caption in captions)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "model.audio_tower.layers.0.fc1: rank" in page.flat("ranks")
    assert build_html(record, events, (), plan()) == html
    assert "Training loss over steps" in labels, "events may be an iterator"


def test_the_last_measurement_of_a_moment_counts() -> None:
    pictures = run_pictures({}, moments(["a.layers.0.x"]))
    assert [picture.name for picture in pictures] == ["activation_entropy"]
    assert {"10", "20"} <= set(texts(pictures[0]))
    assert "99" not in texts(pictures[0])


def test_inputs_are_followed_over_the_steps_where_they_were_heard_between() -> None:
    heard = history(["a.layers.0.x"], range(0, 30, 10), kind="activation_entropy", moment="during")
    drawn = {picture.name: picture for picture in run_pictures({}, [*moments(["a.layers.0.x"]), *heard])}
    assert list(drawn) == ["activation_entropy", "activation_effective_rank"]
    assert "Effective rank of the inputs over steps" in drawn["activation_effective_rank"].title


def test_a_report_without_them_has_no_section(run_record, run_events) -> None:
    for ranks in ({}, {"a.0.x": 1, "a.1.x": 2}):
        html = build_html(replace(run_record, ranks=ranks), run_events)
        assert 'id="ranks"' not in html
        assert ".whole" not in html
    odd = [{"kind": "adapter_entropy", "step": 1}, {"kind": "activation_entropy", "moment": ["before"]}]
    assert run_pictures({}, [*odd, {"kind": "activation_entropy", "moment": "before", "effective_rank": [1]}]) == []


@settings(max_examples=15, deadline=None)
@example(values={"": 8.132860771546735e-285, "0": 1.4620387975800604e24})
@given(st.dictionaries(st.text(max_size=20), st.floats() | st.integers(-(10**6), 10**6), min_size=1, max_size=4))
def test_any_name_and_number_can_be_drawn(values: dict[str, float]) -> None:
    picture = heat_map(values)
    assert len(titles(picture)) == len(values)
    assert picture.png().startswith(b"\x89PNG")
