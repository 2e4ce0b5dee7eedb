"""The figures in a report's tables, by hand; and the statistics behind them."""

import dataclasses

import pandas as pd
import pytest

from ctsam3d.data.labels import NAMES
from ctsam3d.evaluation import paper, report_figures, report_tables
from ctsam3d.evaluation.report_cost import cost_of_weights, network_cost
from ctsam3d.evaluation.report_groups import GROUPS, OTHERS, TUMOURS, grouped, in_order, is_tumour
from ctsam3d.model import build
from ctsam3d.model.build import PRESETS

NAMES_OF = {"dsc": "DSC", "nsd": "NSD at 5 mm"}


def frame_of(runs, clicks=(1, 3, 5)):
    """A frame from {(case, structure, seed): DSC after each number of clicks}; NSD is half of it."""
    rows = [
        {"case": c, "structure": s, "seed": seed, "clicks": n, "dsc": v, "nsd": v / 2, "seconds": 1.0, "patches": 1}
        for (c, s, seed), values in runs.items()
        for n, v in zip(clicks, values)
    ]
    return pd.DataFrame(rows)


FRAME = frame_of(
    {
        ("a", "liver", 0): (0.2, 0.6, 0.9),
        ("a", "liver", 1): (0.4, 0.8, 0.9),
        ("b", "liver", 0): (0.7, 0.9, 0.95),
        ("b", "spleen", 0): (0.1, 0.2, 0.3),
    }
)


def row(table, name):
    return dict(zip(table.header, next(row for row in table.rows if row[0] == name)))


def test_means_are_over_seeds_then_patients_then_structures():
    means = report_tables.structure_means(FRAME, "dsc")
    assert means.loc["liver", 1] == pytest.approx((0.3 + 0.7) / 2)  # not (0.2 + 0.4 + 0.7) / 3
    assert means.loc["spleen", 1] == pytest.approx(0.1)
    assert list(means.index) == ["spleen", "liver"]  # labels 1 and 5
    scans = frame_of({("a1", "liver", 0): (0.2,), ("a2", "liver", 0): (0.4,), ("b", "liver", 0): (0.9,)}, (1,))
    one = report_tables.structure_means(scans.assign(patient=["a", "a", "b"]), "dsc")
    assert one.loc["liver", 1] == pytest.approx((0.3 + 0.9) / 2)
    assert report_tables.by_case(FRAME, "dsc").loc["b", 1] == pytest.approx((0.7 + 0.1) / 2)


def test_organs_have_their_scores_and_the_clicks_that_they_need():
    table = report_tables.organ_table(FRAME, NAMES_OF, {"a"})
    liver = row(table, "liver")
    assert liver["cases"] == "2 (1 trained on)" and liver["DSC"] == "0.925" and liver["NSD at 5 mm"] == "0.463"
    assert liver["95 % interval"] == "0.900 to 0.950" and row(table, "spleen")["95 % interval"] == "–"
    assert liver["NoC@90"] == "4.3"  # 5, 5 and 3
    assert row(table, "spleen")["NoC@85"] == "5.0 (1 of 1 failed)"
    assert "DSC, paper" not in table.header


def test_published_figures_of_organs_have_columns_of_their_own():
    published = [
        paper.Published("btcv", paper.METHOD, 5, 0.97, 0.99, "a table", "liver"),
        paper.Published("btcv", paper.METHOD, 1, 0.1, 0.1, "a table", "liver"),
        paper.Published("btcv", "another", 5, 0.2, 0.2, "a table", "spleen"),
    ]
    table = report_tables.organ_table(FRAME, NAMES_OF, (), published)
    assert row(table, "liver")["DSC, paper"] == "0.970" and row(table, "liver")["NSD, paper"] == "0.990"
    assert row(table, "spleen")["DSC, paper"] == "–"


def test_clicks_are_told_apart_by_what_was_trained_on():
    table = report_tables.click_table(FRAME, NAMES_OF, {"a"})
    assert table.header == ("", "1 click", "3 clicks", "5 clicks")
    assert row(table, "**DSC**")["1 click"] == "**0.300**"  # liver 0.5, spleen 0.1
    # a has a liver of 0.3, b one of 0.7 and a spleen of 0.1: a alone, a quarter of the draws, is 0.3, b alone 0.4
    assert row(table, "95 % interval")["1 click"] == "0.300 to 0.400"
    assert row(table, "**DSC**, cases not trained on")["1 click"] == "**0.400**"
    assert row(table, "**DSC**, cases trained on")["1 click"] == "**0.300**"
    for all_or_none in ((), {"a", "b"}):
        assert len(report_tables.click_table(FRAME, NAMES_OF, all_or_none).rows) == 4


def test_automatic_methods_have_a_table_where_the_paper_has_them():
    assert report_tables.automatic_table(paper.SCORES) is None
    rows = report_tables.automatic_table([paper.Published("btcv", "net", None, 0.8, None, "a table")]).rows
    assert rows == (("net (a table)", "0.800", "–"),)


def test_failures_are_listed_from_the_worst():
    frame = frame_of({("a", f"s{n}", 0): (0.1, n / 10, n / 20) for n in range(9)})
    table, count = report_tables.failure_table(frame, 0.75, most=3)
    assert count == 8 and [line[1] for line in table.rows] == ["s0", "s1", "s2"]
    assert table.rows[1] == ("a", "s1", "0", "5", "0.050", "0.100")


def test_groups_are_the_papers_and_hold_every_label_once():
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(NAMES)
    found = grouped(["unicorn", "rib_left_1", "brain", "colon_tumour", "face"])
    assert list(found.values())[:2] == [["brain", "face"], ["rib_left_1"]]
    assert found[TUMOURS] == ["colon_tumour"] and found[OTHERS] == ["unicorn"] and list(found)[-1] == OTHERS
    assert in_order(["unicorn", "liver", "spleen", "liver"]) == ["spleen", "liver", "unicorn"]
    assert is_tumour("Tumor") and is_tumour("liver_lesion") and not is_tumour("liver")


def test_groups_can_be_others():
    table = report_tables.group_table(FRAME, NAMES_OF, {"left": ("spleen",), "right": ("liver",)})
    assert [line[:3] for line in table.rows] == [("left", "1", "1"), ("right", "1", "2")]
    assert row(table, "right")["DSC, median (quartiles)"] == "0.925 (0.912 to 0.938)"


def test_a_network_with_fourier_features_is_counted_too():
    cost, tiny = (network_cost(dataclasses.replace(PRESETS["tiny"], prompt=prompt)) for prompt in ("rff", "psap"))
    assert cost.encode == tiny.encode and 0 < cost.decode != tiny.decode


def test_networks_are_counted_as_they_stand():
    cost, network = network_cost(PRESETS["tiny"], feedback=2), build("tiny")
    parameters = cost.encoder_parameters + cost.decoder_parameters + cost.proposer_parameters
    assert parameters == sum(p.numel() for p in network.parameters())
    assert (cost.preset, cost.feedback) == ("tiny", 2)
    base = network_cost(PRESETS["base"])
    assert base.encode / 1e9 == pytest.approx(2.6, abs=0.05)  # measured once on the published network
    # The published decoder's head has a second channel: 27 x 64 multiply-adds more in each of 64³ voxels.
    assert (base.decode + 27 * 64 * 64**3) / 1e9 == pytest.approx(125.2, abs=0.1)
    assert base.propose / 1e9 == pytest.approx(1.5, abs=0.05)


def test_cost_is_left_out_where_the_weights_are_others():
    assert cost_of_weights("default", "another digest") is None
    assert cost_of_weights("nowhere.safetensors", "") is None
    table = report_tables.cost_table(None, None)
    assert row(table, "S: parameters, millions") == {
        "": "S: parameters, millions",
        "ours": "–",
        table.header[2]: "72.5",
    }
    assert row(report_tables.cost_table(None, 1234.5), "most memory of the run, MB")["ours"] == "1234"
    assert row(table, "most memory of the run, MB")["ours"] == "–"
    assert report_tables.cost_table(network_cost(PRESETS["tiny"]), None).header[1] == "ours (tiny)"
    other = dataclasses.replace(network_cost(PRESETS["tiny"]), preset="own")
    assert report_tables.cost_table(other, None).header[1] == "ours (no preset)"


def test_bars_show_every_structure_in_its_place():
    ax = report_figures.structure_bars(FRAME, "dsc", "DSC", GROUPS).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["spleen", "liver"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.3, 0.925])


def test_many_bars_stand_in_two_columns():
    columns = report_figures._columns({"one": ["a", "b"], "two": ["c"]})
    assert columns == [{"a": 0, "b": 1, "c": 2.8}]  # a gap of 0.8 between groups
    first, second = report_figures._columns(grouped(NAMES))
    assert len(first) + len(second) == len(NAMES) and next(iter(second)) == "rib_left_1" and second["rib_left_1"] == 0


def test_curves_show_the_cases_the_groups_and_the_paper():
    published = [paper.Published("btcv", paper.METHOD, 5, 0.97, None, "a table")]
    dsc, nsd = report_figures.click_curves(FRAME, NAMES_OF, {"one": ("liver",)}, published).axes
    lines = {line.get_label(): line.get_ydata() for line in dsc.lines}
    assert lines["mean over structures"] == pytest.approx([0.3, 0.5, (0.925 + 0.3) / 2])
    assert lines["one"] == pytest.approx([0.5, 0.8, 0.925]) and lines[OTHERS] == pytest.approx([0.1, 0.2, 0.3])
    assert lines["CT-SAM3D, paper"] == pytest.approx([0.97])
    assert "CT-SAM3D, paper" not in {line.get_label() for line in nsd.lines}
