"""The page, several studies together, TensorBoard's files, and the warm-start figures."""

import html
import html.parser
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from ht_ray.errors import SettingError
from ht_ray.report import MissingDataError, load_study, write_report, write_reports
from ht_ray.report.__main__ import main
from ht_ray.report.continual.curves import epoch_curves
from ht_ray.report.continual.maps import adam_map
from ht_ray.report.continual.method_bars import method_bars
from ht_ray.report.continual.warm_start_grid import grid_figure, grid_table
from ht_ray.report.data.combine import combine
from ht_ray.report.indicators.figures import indicator_curves, indicator_scatter

SETTINGS = {"data": "mnist", "model": "mlp", "seeds": 2, "train_limit": None, "test_limit": None}
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(html.parser.HTMLParser):
    """The elements of a page, in order, and its text; closing tags must match."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def words(path):
    texts = re.findall(r"<(?:text|tspan)[^>]*>([^<]*)<", path.read_text(encoding="utf-8"))
    return [html.unescape(text).strip() for text in texts if text.strip()]


def test_the_page_is_whole_and_needs_nothing_else(write_study, grid_trials):
    grid_trials[1].status, grid_trials[1].error = "failed", "ValueError: <b>not & bold</b>"
    root = write_study(
        grid_trials,
        command=["tune_configs/ablation.py", "--data", "a b"],
        versions={"torch": "2.15.0"},
        settings={**SETTINGS, "momenta": [0.9, 0.99], "clip": None},
    )
    write_report(root)
    source = (root / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert len(page.all("img")) == len(list((root / "figures").glob("*.png")))
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.all("img"))
    assert not page.all("script") and not page.all("link") and "http" not in source
    assert len(page.all("table")) == 3  # summary, best settings, drops
    for text in (
        "python tune_configs/ablation.py --data 'a b'",
        f"python -m ht_ray.report {root}",
        "ValueError: <b>not & bold</b>",
        "18 trials planned: 17 finished, 1 failed",
        "2.15.0",
        "0.9, 0.99",
    ):
        assert text in page.text, text
    write_report(root)
    assert (root / "report.html").read_text(encoding="utf-8") == source


def test_reports_go_elsewhere_and_leave_the_study_alone(write_study, grid_trials, tmp_path):
    root = write_study(grid_trials)
    before = sorted(root.rglob("*"))
    written = write_report(root, out=tmp_path / "out")
    assert sorted(root.rglob("*")) == before
    assert all(path.is_relative_to(tmp_path / "out") and path.is_file() for path in written)


def test_studies_that_agree_have_a_table_together(write_study, planned, tmp_path, capsys):
    first = write_study([planned("Plain", seed, [[0.5]]) for seed in (0, 1)], name="one", settings=SETTINGS)
    second = write_study(
        [planned("EMA", seed, [[0.6]], "ema") for seed in (0, 1)], name="two", settings=SETTINGS | {"seeds": 4}
    )
    assert main([str(first), str(second), "--out", str(tmp_path / "out")]) == 0
    text = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "Summary of one + two" in text
    assert "+10.00" in text
    assert text.index("Summary of one + two") < text.index("Summary of one:") < text.index("Summary of two:")
    for name in ("one", "two"):
        assert (tmp_path / "out" / name / "table.csv").is_file()
        assert not (tmp_path / name / "table.md").exists()
    assert "Summary of one + two" in capsys.readouterr().out


def test_studies_that_differ_are_not_mixed_and_say_in_what(write_study, planned, tmp_path):
    first = write_study([planned("Plain", 0, [[0.5]])], name="one", settings=SETTINGS | {"epochs": 5})
    second = write_study([planned("EMA", 0, [[0.6]])], name="two", settings=SETTINGS | {"epochs": 20})
    write_reports([first, second], tmp_path / "out")
    text = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8")).text
    assert "one and two differ in epochs = 5 and 20." in text
    assert "one + two" not in text


def test_the_same_trial_twice_is_not_mixed(write_study, planned):
    studies = [
        load_study(write_study([planned("Plain", 3, [[0.5]])], name=name, settings=SETTINGS)) for name in ("one", "two")
    ]
    assert combine(studies) == (None, ("Plain, seed 3, stands in both one and two.",))


def test_studies_of_one_name_are_refused(write_study, planned, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
    roots = [write_study([planned("Plain", 0, [[0.5]])], name=f"{parent}/study") for parent in ("a", "b")]
    with pytest.raises(SettingError, match="overwrite"):
        write_reports(roots, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_of_no_planned_trial_are_left_out_and_reported(write_study, planned):
    root = write_study([planned("Plain", 0, [[0.5]])])
    stray = root / "trials" / "other-seed0"
    stray.mkdir()
    (stray / "results.jsonl").write_text("{}\n")
    study = load_study(root)
    assert [trial.id for trial in study.trials] == ["plain--s0"]
    assert study.problems == ("trials/other-seed0 is no trial of this study: it is left out.",)


def test_tensorboard_overlays_the_labels_and_shows_the_figures(write_study, planned):
    trials = [planned("A & B", seed, [[0.4, 0.5 + 0.1 * seed], [0.6, 0.7]], "plain") for seed in (0, 1)]
    trials += [planned("A + B", 0, [[0.2, 0.3], [0.3, 0.4]], "ema"), planned("A B", 0, [[0.2] * 2] * 2, "l2")]
    root = write_study(trials)
    write_report(root)
    write_report(root)  # replaces the first
    runs = {path.parent.relative_to(root).as_posix() for path in root.glob("report/**/*.report")}
    assert runs == {"report", "report/A_B", "report/A_+_B", "report/A_B_2"}
    assert len(list(root.glob("report/**/*.report"))) == 4
    own = EventAccumulator(str(root / "report" / "A_B")).Reload()
    mean, low = ([event.value for event in own.Scalars(f"mean/epoch/test_accuracy{end}")] for end in ("", "/low"))
    assert mean == pytest.approx([0.4, 0.55, 0.6, 0.7])
    assert low == pytest.approx([0.4, 0.55 - 0.1 / 2**0.5, 0.6, 0.7])
    report = EventAccumulator(str(root / "report")).Reload()
    assert "figures/epoch_curves" in report.Tags()["images"]
    assert (
        report.Images("figures/epoch_curves")[0].encoded_image_string
        == (root / "figures" / "epoch_curves.png").read_bytes()
    )
    layout = layout_pb2.Layout.FromString(report.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    values = [
        series.value for category in layout.category for chart in category.chart for series in chart.margin.series
    ]
    assert values == ["mean/epoch/test_accuracy", "mean/phase/test_accuracy"]
    assert set(values) <= set(own.Tags()["scalars"])


def test_a_warm_start_grid_is_reported_as_a_matrix(write_study, warm):
    trials = [
        warm(f"ratio {ratio} noise {noise}", 0, 0.9 + ratio / 20 - noise / 20, ratio=ratio, noise=noise)
        for ratio in (0.1, 1.0)
        for noise in (0.0, 0.5)
    ]
    root = write_study(trials, settings=SETTINGS)
    said = []
    written = write_report(root, log=said.append)
    names = {path.relative_to(root).as_posix() for path in written if path.parent != root / "report"}
    assert {
        "grid.csv",
        "table.csv",
        "figures/grid_final_accuracy.png",
        "figures/grid_final_train_accuracy.pdf",
    } <= names
    assert not any("Skipped" in text for text in said)
    text = Page((root / "report.html").read_text(encoding="utf-8")).text
    assert "Largest difference to the paper" in text
    svg = root / "grid.svg"
    grid_figure(load_study(root), svg)
    shown = words(svg)
    assert {"90.50", "(98)", "88.00", "(97)", "95.00", "noise 0.5"} <= set(shown)


def test_methods_of_a_warm_start_are_bars_with_the_papers_values(write_study, warm, tmp_path):
    trials = [warm("Plain", seed, 0.7 + seed / 100, data="cifar10") for seed in (0, 1)]
    trials += [warm("Fresh", seed, 0.8, data="cifar10", method="fresh", epochs=20) for seed in (0, 1)]
    study = load_study(write_study(trials, settings=SETTINGS))
    method_bars(study, ("final_accuracy", "final_train_accuracy"), tmp_path / "bars.svg")
    text = " ".join(words(tmp_path / "bars.svg"))
    for part in ("Plain", "Fresh", "70.50", "80.00", "Final train accuracy (%)", "appendix B.3", "20 of 100 epochs"):
        assert part in text, part
    assert "does not start at 0" in text
    with pytest.raises(MissingDataError, match="fewer than two labels"):
        trials[2].status = trials[3].status = "missing"
        method_bars(load_study(write_study(trials, name="b")), ("final_accuracy",), tmp_path / "x.svg")


def test_adams_settings_are_a_map(write_study, warm, tmp_path):
    trials = []
    for index, (beta1, epsilon) in enumerate(((0.5, 1e-8), (0.9, 1e-8), (0.9, 1e-2))):
        trial = warm(f"β1={beta1} β2=0.99 ε={epsilon:g}", 0, 0.5 + index / 10, method="adam")
        trial.settings |= {"beta1": beta1, "beta2": 0.99, "epsilon": epsilon}
        trials.append(trial)
    root = write_study(trials, settings=SETTINGS)
    adam_map(load_study(root), "final_accuracy", tmp_path / "adam.svg")
    shown = words(tmp_path / "adam.svg")
    assert {"50.00", "60.00", "70.00", "ε = 1e-08", "ε = 0.01", "0.99", "β1", "β2"} <= set(shown)
    assert {path.stem for path in write_report(root) if path.suffix == ".png"} >= {"adam_final_accuracy"}


def test_indicators_are_scattered_against_the_final_accuracy(write_study, warm, tmp_path):
    trials = []
    for seed, (value, top) in enumerate(((1.0, 0.5), (2.0, 0.6), (4.0, 0.7), (3.0, 0.8))):
        trial = warm("Plain", seed, top)
        nan = float("nan")
        trial.measured = {"srank": [[nan, value], [nan, 100.0]]}
        trials.append(trial)
    indicator_scatter(load_study(write_study(trials, settings=SETTINGS)), tmp_path / "scatter.svg")
    text = " ".join(words(tmp_path / "scatter.svg"))
    assert "r = +0.80, 4 runs" in text  # of 1 2 4 3 and 5 6 7 8, by hand
    assert "at the end of warm-starting" in text
    with pytest.raises(MissingDataError, match="indicator_scatter"):
        indicator_scatter(load_study(write_study([warm("Plain", 0, 0.5)], name="b")), tmp_path / "x.svg")


def test_drops_of_a_few_lines_are_marked(write_study, planned, drawn, tmp_path):
    def arrows(labels):
        trials = [planned(f"R{index}", 0, [[0.5, 0.6], [0.3, 0.5], [0.7, 0.8]]) for index in range(labels)]
        epoch_curves(load_study(write_study(trials, name=f"s{labels}")), tmp_path / f"{labels}.svg")
        (axis,) = drawn[-1].axes
        return [(text.xy, text.xyann) for text in axis.texts]

    ((low, level),) = arrows(1)
    assert low == pytest.approx((3, 30)) and level == pytest.approx((3, 60))
    assert "Arrows" in " ".join(words(tmp_path / "1.svg"))
    assert len(arrows(4)) == 4
    assert arrows(5) == []


def test_an_adam_setting_that_is_not_complete_is_not_framed(write_study, warm, drawn, tmp_path):
    trials = []
    for beta1, values in ((0.5, (0.5, 0.6)), (0.9, (0.9, 0.9))):
        for seed, value in enumerate(values):
            trial = warm(f"β1={beta1}", seed, value, method="adam")
            trial.settings |= {"beta1": beta1, "beta2": 0.99, "epsilon": 1e-8}
            trials.append(trial)
    trials[-1].status = "failed"
    adam_map(load_study(write_study(trials)), "final_accuracy", tmp_path / "adam.svg")
    shown = " ".join(words(tmp_path / "adam.svg"))
    assert "(1 of 2)" in shown and "the best of those finished on all seeds" in shown
    (framed,) = (patch for patch in drawn[0].axes[0].patches if patch.get_facecolor()[3] == 0)
    assert framed.get_x() == pytest.approx(0.02)


def test_bars_start_at_zero_or_are_none(write_study, warm, drawn, tmp_path):
    values = {"Plain": (0.90, 0.30), "L2": (0.92, 0.80)}
    trials = [warm(label, 0, test, train=train) for label, (test, train) in values.items()]
    method_bars(load_study(write_study(trials)), ["final_accuracy", "final_train_accuracy"], tmp_path / "bars.svg")
    cut, whole = drawn[0].axes
    assert not cut.patches and cut.get_xlim()[0] > 0
    assert len(whole.patches) == 2 and whole.get_xlim()[0] == 0
    assert [list(line.get_xdata()) for line in cut.lines if line.get_marker() == "s"] == [[90.0], [92.0]]
    assert "Bars and squares: mean" in " ".join(words(tmp_path / "bars.svg"))


def test_a_fresh_network_is_seen_over_the_second_phase(write_study, warm, drawn, tmp_path):
    trials = [warm("Plain", 0, 0.8), warm("Fresh", 0, 0.9, method="fresh")]
    trials[1].phases = [[0.7, 0.9]]
    for trial in trials:
        trial.measured = {"srank": [[4.0, 5.0] for _ in trial.phases]}
    study = load_study(write_study(trials))
    epoch_curves(study, tmp_path / "epochs.svg")
    indicator_curves(study, tmp_path / "indicators.svg")
    lines = {line.get_label(): list(line.get_xdata()) for line in drawn[0].axes[0].lines if len(line.get_xdata()) > 1}
    assert lines["Plain"] == [0.5, 1.0, 1.5, 2.0] and lines["Fresh"] == [1.5, 2.0]
    assert "A fresh network has the second alone" in " ".join(words(tmp_path / "epochs.svg"))
    assert {line.get_label(): list(line.get_xdata()) for line in drawn[1].axes[0].lines} == {
        "Plain": [1.0, 2.0],
        "Fresh": [2.0],
    }


def test_a_grid_begun_shows_the_noises_it_has(write_study, warm, drawn, tmp_path):
    trials = [warm(f"noise {noise}", seed, 0.9, noise=noise) for noise in (0.0, 0.5) for seed in (0, 1)]
    trials = [*trials[:2], *(trial for trial in trials[2:3])]
    trials[2].status = "missing"
    study = load_study(write_study(trials))
    grid_figure(study, tmp_path / "grid.svg")
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == ["noise 0"]
    assert any("without ± it is a single one" in note for note in grid_table(study).notes)
