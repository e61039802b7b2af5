"""Atari studies: what their tables and figures say, and what they do not mix."""

import csv
import html
import io
import json
import re

import numpy as np
import pytest

from ht_ray.errors import SettingError
from ht_ray.report import MissingDataError, human_normalized, load_study, write_report, write_reports
from ht_ray.report.atari.curves import efficiency_figure, game_curves_figure
from ht_ray.report.atari.figures import aggregates_figure, atari_heat_map, profile_figure
from ht_ray.report.atari.reference import atari_games, reference_scores
from ht_ray.report.atari.scores import aggregate_scores
from ht_ray.report.atari.tables import aggregates_table, games_table, improvement_table
from ht_ray.report.summary import summarize

FIGURES = (aggregates_figure, profile_figure, efficiency_figure, game_curves_figure)


@pytest.fixture
def write_atari(write_study, planned):
    """Write an Atari study from normalised final scores, ``{variant: {game: one for each seed}}``.

    A score of None is a trial that was not started. Each run has two evaluations: half its final score, and all of it.
    """

    def write(scores, *, steps=100_000, episodes=100, name="study", change=lambda settings, config: None):
        trials, curves = [], {}
        for variant, games in scores.items():
            for game, values in games.items():
                random, human = reference_scores().get(game, (0.0, 1.0))
                for seed, value in enumerate(values):
                    settings = {"game": game, "variant": variant, "steps": steps, "episodes": episodes}
                    config = {}
                    change(settings, config)
                    final = None if value is None else random + (human - random) * value
                    half = None if value is None else random + (human - random) * value / 2
                    trial = planned(
                        f"{variant}, {game}",
                        seed,
                        [[0.0]],
                        "hare_tortoise" if "H&T" in variant else "plain",
                        status="missing" if value is None else "finished",
                        settings=settings,
                        summary={"final_score": final},
                        config=config,
                    )
                    trials.append(trial)
                    curves[trial.id] = [{"step": steps // 2, "score": half}, {"step": steps, "score": final}]
        root = write_study(trials, name=name, metric="final_score", settings={})
        for path in root.glob("trials/*/results.jsonl"):
            line = json.loads(path.read_text())
            line["curves"] = {"evaluation": curves[path.parent.name]}
            line["summary"] = {"final_score": line["summary"]["final_score"]}
            path.write_text(json.dumps(line) + "\n")
        return root

    return write


def full(scale=1.0):
    rng = np.random.default_rng(0)
    return {game: (scale * rng.lognormal(-1, 1, 3)).tolist() for game in atari_games()}


SMALL = {
    "DrQ": {"Pong": [0.1, 0.2, 0.3], "Breakout": [0.3, 0.5, 0.4]},
    "DrQ + H&T": {"Pong": [0.4, 0.5, 0.6], "Breakout": [0.5, 0.2, 0.5]},
}


def rows(table):
    return list(csv.DictReader(io.StringIO(table.to_csv())))


def words(path):
    texts = re.findall(r"<(?:text|tspan)[^>]*>([^<]*)<", path.read_text(encoding="utf-8"))
    return " ".join(html.unescape(text).strip() for text in texts if text.strip())


def test_aggregates_stand_over_the_papers_rows(write_atari):
    table = aggregates_table(load_study(write_atari({"DrQ": full(), "DrQ + H&T": full(1.5)})))
    found = rows(table)
    assert [(row["variant"], row["source"]) for row in found[:4]] == [
        ("DrQ", "ours"),
        ("DrQ", "paper"),
        ("DrQ + H&T", "ours"),
        ("DrQ + H&T", "paper"),
    ]
    assert len(found) == 2 + 9
    expected = aggregate_scores(full())
    for metric in ("iqm", "median", "mean", "optimality_gap"):
        own = getattr(expected, metric)
        written = [float(found[0][f"{metric}{end}"]) for end in ("", "_low", "_high")]
        assert written == pytest.approx([own.value, own.low, own.high], abs=1e-9)
    assert (found[1]["iqm"], found[3]["iqm"], found[1]["iqm_low"]) == ("0.243", "0.287", "")
    text = table.to_markdown()
    assert "Not the protocol's" not in text and "of 26 games (" not in table.title
    own = [cell.best for cell in table.rows[2][4:]]
    assert own == [True] * 4 and not any(cell.best for cell in table.rows[0])


def test_a_part_of_the_benchmark_is_named_as_a_part(write_atari, tmp_path):
    study = load_study(write_atari(SMALL, steps=1000, episodes=10))
    table = aggregates_table(study)
    assert table.title.endswith("2 of 26 games (Breakout, Pong)")
    assert table.rows[0][1].text == "2 of 26" and table.rows[0][3].text == "1 000"
    note = "DrQ, DrQ + H&T: 2 of 26 games (Breakout, Pong); 1 000 of 100 000 steps; 10 of 100 evaluation episodes"
    for made in (table, games_table(study), improvement_table(study)):
        assert note in made.to_markdown()
    for draw in FIGURES[:3]:
        draw(study, tmp_path / "figure.svg")
        shown = words(tmp_path / "figure.svg")
        assert "2 of 26 games, 3 runs per game; 1 000 of 100 000 steps; 10 of 100 evaluation episodes" in shown, draw


def test_other_differences_are_noted(write_atari):
    def change(settings, config):
        if "H&T" in settings["variant"]:
            config["differs"] = ["batch 64 (paper: 32)"]

    text = aggregates_table(load_study(write_atari(SMALL, change=change))).to_markdown()
    assert "DrQ + H&T: 2 of 26 games (Breakout, Pong); batch 64 (paper: 32)." in text
    assert "they are no comparison" in text and "**" not in text


def test_missing_games_are_named_and_mixed_with_nothing(write_atari):
    scores = {"DrQ": full(), "DrQ + H&T": full(1.5)}
    scores["DrQ + H&T"]["Qbert"] = [None] * 3
    scores["DrQ + H&T"]["Hero"][0] = None
    table = aggregates_table(load_study(write_atari(scores)))
    text = table.to_markdown()
    assert "| DrQ + H&T | 25 of 26 | 2–3 |" in text
    assert "DrQ + H&T: 25 of 26 games (without Qbert)." in text
    assert "DrQ + H&T: planned, and without a finished run: Qbert." in text
    assert "DrQ + H&T: 2 to 3 runs per game; in the IQM" in text
    assert "DrQ + H&T, Hero, seed 0: not started." in text
    assert "they are no comparison" in text and "**" not in text


def test_the_best_has_all_its_runs(write_atari):
    scores = {**SMALL, "DrQ + HR 20k": {"Pong": [0.9, None, 0.9], "Breakout": [0.9, 0.9, 0.9]}}
    table = aggregates_table(load_study(write_atari(scores)))
    marked = {row[0].text: [cell.best for cell in row[4:]] for row in table.rows if any(cell.best for cell in row)}
    assert marked == {"DrQ + H&T": [True] * 4}


def test_scores_by_game(write_atari):
    scores = {"DrQ": {"Pong": [0.1, 0.3], "Hero": [0.5, 0.7]}, "DrQ + H&T": {"Pong": [0.4, None], "Hero": [0.8, 0.9]}}
    table = games_table(load_study(write_atari(scores)))
    hero, pong = rows(table)
    assert (hero["game"], pong["game"], pong["random"], pong["human"]) == ("Hero", "Pong", "-20.7", "14.6")
    assert float(pong["DrQ: normalised"]) == pytest.approx(0.2)
    assert human_normalized("Pong", float(pong["DrQ: mean"])) == pytest.approx(0.2)
    assert float(pong["DrQ: sd"]) == pytest.approx(35.3 * np.std([0.1, 0.3], ddof=1))
    assert (pong["DrQ + H&T: runs"], pong["DrQ + H&T: sd"]) == ("1", "")
    assert [cell.best for cell in table.rows[0]] == [False, False, False, False, True]
    # One of two runs is no contest.
    assert not any(cell.best for cell in table.rows[1])
    assert "(n=1)" in table.rows[1][4].text


def test_improvement_is_over_common_games(write_atari):
    scores = {"DrQ": {"Pong": [0.1, 0.3], "Hero": [0.5, 0.7]}, "DrQ + H&T": {"Pong": [0.2, 0.4]}}
    (found,) = rows(improvement_table(load_study(write_atari(scores))))
    assert (found["games"], found["probability"]) == ("1", "0.75")
    study = load_study(write_atari(SMALL, name="other"))
    (back,) = rows(improvement_table(study, "DrQ + H&T"))
    assert (back["variant"], back["baseline"]) == ("DrQ", "DrQ + H&T")
    with pytest.raises(SettingError, match="Did you mean 'DrQ'"):
        improvement_table(study, "DRQ")


def test_runs_of_two_budgets_are_not_one_variant(write_atari):
    def change(settings, config):
        if settings["game"] == "Pong":
            settings["steps"] = 50_000

    with pytest.raises(SettingError, match="one has 50 000 of 100 000 steps, the other the protocol"):
        aggregates_table(load_study(write_atari(SMALL, change=change)))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [("game", "Pnog", "Did you mean 'Pong'"), ("game", None, "game = None"), ("variant", None, "name of an agent")],
)
def test_what_is_no_atari_trial_is_refused(write_atari, setting, value, message):
    def change(settings, config):
        settings[setting] = value

    with pytest.raises(SettingError, match=message):
        aggregates_table(load_study(write_atari({"DrQ": {"Pong": [0.5]}}, change=change)))


def test_two_runs_of_one_seed_are_refused(write_atari):
    def change(settings, config):
        settings["variant"] = "DrQ"

    with pytest.raises(SettingError, match="both 'DrQ' on Pong with seed 0"):
        games_table(load_study(write_atari(SMALL, change=change)))


def test_efficiency_is_the_iqm_at_each_common_step(write_atari, drawn, tmp_path):
    root = write_atari(SMALL)
    efficiency_figure(load_study(root), tmp_path / "figure.png")
    (axis,) = drawn[0].axes
    for line, games in zip(axis.lines, SMALL.values(), strict=True):
        final = aggregate_scores(games, resamples=1).iqm.value
        np.testing.assert_allclose(line.get_xdata(), [50_000, 100_000])
        np.testing.assert_allclose(line.get_ydata(), [final / 2, final])


def test_profile_and_aggregates_draw_our_values_and_the_papers(write_atari, drawn, tmp_path):
    study = load_study(write_atari(SMALL))
    profile_figure(study, tmp_path / "profile.png")
    curves = [line for line in drawn[0].axes[0].lines if len(line.get_xdata()) > 2]
    for line, games in zip(curves, SMALL.values(), strict=True):
        every = np.concatenate([*games.values()])
        for tau, share in zip(line.get_xdata()[::40], line.get_ydata()[::40], strict=True):
            assert share == pytest.approx((every > tau).mean())
    aggregates_figure(study, tmp_path / "aggregates.png")
    iqm = drawn[1].axes[0]
    ours = [line.get_xdata()[0] for line in iqm.lines if line.get_marker() != "D"]
    paper = [line.get_xdata()[0] for line in iqm.lines if line.get_marker() == "D"]
    assert ours == pytest.approx([aggregate_scores(games, resamples=1).iqm.value for games in SMALL.values()])
    assert paper == [0.243, 0.287]
    for bar in iqm.patches:
        low, high = iqm.get_xlim()
        assert low < bar.get_x() and bar.get_x() + bar.get_width() < high


def test_each_game_has_a_panel(write_atari, drawn, tmp_path):
    scores = {**SMALL, "DrQ + HR 20k": {"Pong": [0.5, None, 0.7], "Breakout": [None] * 3}}
    game_curves_figure(load_study(write_atari(scores)), tmp_path / "figure.svg")
    panels = {axis.get_title(loc="left"): axis for axis in drawn[0].axes if axis.axison}
    assert list(panels) == ["Breakout", "Pong"]
    means = [
        line.get_ydata()[-1]
        for line in panels["Pong"].lines
        if len(line.get_xdata()) == 2 and line.get_label()[0] == "D"
    ]
    assert human_normalized("Pong", means) == pytest.approx([0.2, 0.5, 0.6])
    assert "Not all runs: Pong, DrQ + HR 20k (2 of 3 seeds)" in words(tmp_path / "figure.svg")


def test_the_legend_of_few_panels_is_whole(write_atari, drawn, tmp_path):
    scores = {f"DrQ + H&T m=0.99 r={number}000": {"Pong": [0.1 * number] * 2} for number in range(1, 6)}
    game_curves_figure(load_study(write_atari(scores)), tmp_path / "figure.png")
    legend = drawn[0].axes[-1].get_legend().get_window_extent()
    assert legend.x1 <= drawn[0].bbox.x1 and legend.y0 >= 0


def test_one_evaluation_is_no_curve(write_atari, tmp_path):
    root = write_atari(SMALL)
    for path in root.glob("trials/*/results.jsonl"):
        line = json.loads(path.read_text())
        line["curves"]["evaluation"] = line["curves"]["evaluation"][-1:]
        path.write_text(json.dumps(line) + "\n")
    for draw in (efficiency_figure, game_curves_figure):
        with pytest.raises(MissingDataError, match="evaluations at two steps"):
            draw(load_study(root), tmp_path / "figure.png")


def test_the_report_of_an_atari_study(write_atari):
    root = write_atari(SMALL, steps=1000)
    said = []
    written = {path.relative_to(root).as_posix() for path in write_report(root, log=said.append)}
    stems = ("atari_aggregates", "atari_profiles", "atari_efficiency", "atari_games")
    expected = {f"figures/{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}
    expected |= {f"{stem}.csv" for stem in ("atari_aggregates", "atari_improvement", "atari_games")}
    assert {name for name in written if not name.startswith("report/")} == expected | {"table.md", "report.html"}
    assert not any(text.startswith("Skipped") for text in said), said
    page = (root / "report.html").read_text()
    assert "DrQ + H&amp;T (paper)" in page and "1 000 of 100 000 steps" in page


def grid_of(write_atari, scores, change=lambda settings, config: None, **more):
    """Write a study whose variants say their momentum and interval in their names."""

    def cell(settings, config):
        match = re.search(r"m=(\S+) r=(\S+)", settings["variant"])
        if match:
            settings["momentum"], settings["reset_interval"] = float(match[1]), int(match[2])
        change(settings, config)

    return write_atari(scores, change=cell, **more)


GRID = {
    "DrQ": {"Pong": [0.1, 0.2], "Breakout": [0.3, 0.5]},
    "DrQ + H&T m=0.99 r=1000": {"Pong": [0.2, 0.3], "Breakout": [0.4, 0.6]},
    "DrQ + H&T m=0.99 r=4000": {"Pong": [0.6, 0.5], "Breakout": [0.7, 0.8]},
    "DrQ + H&T m=0.995 r=1000": {"Pong": [0.5, None], "Breakout": [1.0, 0.9]},
    "DrQ + H&T m=0.995 r=4000": {"Pong": [None, None], "Breakout": [None, None]},
}


def test_momentum_by_interval_is_a_map(write_atari, tmp_path):
    root = grid_of(write_atari, GRID)
    atari_heat_map(load_study(root), tmp_path / "map.svg")
    shown = words(tmp_path / "map.svg")
    for games in [*GRID.values()][:3]:
        iqm = aggregate_scores(games).iqm
        assert f"{iqm.value:.3f}" in shown and f"[{iqm.low:.3f}, {iqm.high:.3f}]" in shown
    assert "(3 of 4 runs)" in shown and "none finished" in shown
    assert "Reset interval (gradient steps)" in shown and "Momentum" in shown
    # The cell of the highest value has not all its runs.
    assert "Framed: the best in the grid." in shown
    assert "2 of 26 games, 2 runs per game" in shown


def test_cells_over_other_games_are_no_contest(write_atari, tmp_path):
    scores = {**GRID, "DrQ + H&T m=0.995 r=1000": {"Pong": [0.5, 0.5]}}
    atari_heat_map(load_study(grid_of(write_atari, scores)), tmp_path / "map.svg")
    shown = words(tmp_path / "map.svg")
    assert "Framed" not in shown and "no comparison" in shown


def test_a_map_needs_two_cells(write_atari, tmp_path):
    one = {name: GRID[name] for name in ("DrQ", "DrQ + H&T m=0.99 r=1000", "DrQ + H&T m=0.995 r=4000")}
    with pytest.raises(MissingDataError, match="the study has 1"):
        atari_heat_map(load_study(grid_of(write_atari, one)), tmp_path / "map.png")

    def same(settings, config):
        if "H&T" in settings["variant"]:
            settings["momentum"], settings["reset_interval"] = 0.9, 10

    with pytest.raises(MissingDataError, match="the same momentum and reset interval"):
        atari_heat_map(load_study(grid_of(write_atari, GRID, same, name="other")), tmp_path / "map.png")


def test_the_report_of_a_grid_has_its_map_and_its_curves_in_tensorboard(write_atari):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = grid_of(write_atari, GRID)
    write_report(root)
    assert (root / "figures" / "atari_heat_map.png").is_file()
    run = EventAccumulator(str(root / "report" / "DrQ_+_H_T_m=0.99_r=4000")).Reload()
    values = {tag: [(event.step, event.value) for event in run.Scalars(tag)] for tag in run.Tags()["scalars"]}
    final = [human_normalized("Pong", values["mean/evaluation/Pong"][-1][1])]
    assert final == pytest.approx([0.55], abs=1e-5)
    assert {"mean/evaluation/Breakout", "mean/evaluation/Pong/low", "mean/evaluation/Pong/high"} <= values.keys()
    expected = aggregate_scores(GRID["DrQ + H&T m=0.99 r=4000"], resamples=1).iqm.value
    assert values["iqm/evaluation"] == [(50_000, pytest.approx(expected / 2)), (100_000, pytest.approx(expected))]


def test_two_atari_studies_together(write_atari, tmp_path):
    first = write_atari({"DrQ": SMALL["DrQ"]}, name="one")
    second = write_atari({"DrQ + H&T": SMALL["DrQ + H&T"]}, name="two")
    write_reports([first, second], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    together = page[page.index("All studies together") : page.index('id="study-1"')]
    assert "DrQ (paper)" in together and "DrQ + H&amp;T</th><td>2 of 26" in together


def test_nothing_finished_has_nothing_to_show(write_atari, tmp_path):
    root = write_atari({"DrQ": {"Pong": [None, None]}})
    study = load_study(root)
    for make in (aggregates_table, games_table, improvement_table):
        with pytest.raises(MissingDataError):
            make(study)
    for draw in FIGURES:
        with pytest.raises(MissingDataError):
            draw(study, tmp_path / "figure.png")
    said = []
    write_report(root, log=said.append)
    assert "Skipped: aggregates_table: no run has finished." in (root / "table.md").read_text()


def test_a_score_that_is_no_number_is_left_out_and_named(write_atari):
    root = write_atari(SMALL)
    path = next(root.glob("trials/*pong*s0/results.jsonl"))
    line = json.loads(path.read_text())
    line["summary"]["final_score"] = None
    path.write_text(json.dumps(line) + "\n")
    text = aggregates_table(load_study(root)).to_markdown()
    assert f"finished without a final score, and left out: {path.parent.name}" in text


def test_the_summary_for_a_terminal_is_the_table_of_aggregates(write_atari):
    text = summarize(load_study(write_atari({"DrQ": full(), "DrQ + H&T": full(1.5)})))
    lines = text.splitlines()
    assert len(lines) <= 19 and max(map(len, lines)) <= 100, text
    assert sum(line.startswith("DrQ") for line in lines) >= 2
