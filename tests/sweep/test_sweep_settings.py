"""What is checked before Ray is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sweep_trials import spec, study

from ht_ray.errors import SettingError
from ht_ray.sweep import Report, SweepConfig, TrialSpec, check_before_ray, load_study_settings, run_study
from ht_ray.sweep.study.plan import create_study


def test_importing_the_sweep_imports_nothing_heavy() -> None:
    code = "import sys, ht_ray.sweep; print({'ray', 'torch', 'numpy', 'tensorboard'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpus_per_trial", 0),
        ("cpus_per_trial", 1.5),
        ("gpus_per_trial", -0.1),
        ("gpus_per_trial", float("nan")),
        ("max_concurrent", 0),
        ("max_failures", -1),
        ("max_failures", 1.0),
        ("results_dir", ""),
        ("tensorboard", False),
        ("resume_or_start", ""),
        ("memory_per_trial", 0),
        ("checkpoint_minutes", 0),
        ("checkpoint_minutes", float("inf")),
        ("storage_minutes", -1),
        ("gpu_memory_per_trial", 4),
        ("resources", ("fast",)),
        ("resources", ("fast=",)),
        ("resources", ("fast=1", "fast=2")),
        ("node_labels", ("=a100",)),
    ],
)
def test_a_wrong_setting_is_named(field: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"SweepConfig.{field} = "):
        SweepConfig(**{field: value})


def test_fractions_of_a_gpu_are_accepted() -> None:
    assert SweepConfig(cpus_per_trial=0.5, gpus_per_trial=0.25).gpus_per_trial == 0.25


@pytest.mark.parametrize(
    ("resource", "message"),
    [
        ("fast=much", r"SweepConfig.resources, 'fast' = 'much': accepted is a number above 0"),
        ("fast=0", r"SweepConfig.resources, 'fast' = 0.0"),
        ("fast=nan", r"SweepConfig.resources, 'fast' = nan"),
        ("CPU=2", r"given with SweepConfig.cpus_per_trial"),
        ("GPU=2", r"given with SweepConfig.gpus_per_trial"),
        ("memory=2", r"given with SweepConfig.memory_per_trial"),
    ],
)
def test_a_wrong_resource_is_named(resource: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SweepConfig(resources=(resource,))


def test_what_ray_counts_for_a_trial() -> None:
    config = SweepConfig(
        gpus_per_trial=0.25,
        gpu_memory_per_trial=4,
        memory_per_trial=2,
        resources=("fast=0.5",),
        node_labels=("kind=a100", "zone=b"),
    )
    assert config.resources_per_trial == {"CPU": 1, "GPU": 0.25, "memory": 2 * 2**30, "fast": 0.5}
    assert config.label_selector == {"kind": "a100", "zone": "b"}
    assert SweepConfig().resources_per_trial == {"CPU": 1}


def node(labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    return {"Alive": True, "Labels": labels or {}, "Resources": resources}


def test_what_fits_on_the_nodes() -> None:
    from ht_ray.sweep.driver.cluster import _slots

    nodes = [
        node({"kind": "a100"}, CPU=8, GPU=2, fast=1, memory=8 * 2**30),
        node({"kind": "t4"}, CPU=8, GPU=1, memory=64 * 2**30),
        {**node({"kind": "a100"}, CPU=8, GPU=2), "Alive": False},
    ]
    for config, slots in [
        (SweepConfig(), 16),
        (SweepConfig(max_concurrent=3), 3),
        (SweepConfig(gpus_per_trial=0.25), 12),
        (SweepConfig(gpus_per_trial=0.3), 9),
        (SweepConfig(memory_per_trial=4), 10),
        (SweepConfig(resources=("fast=0.5",)), 2),
        (SweepConfig(gpus_per_trial=0.5, node_labels=("kind=a100",)), 4),
    ]:
        assert _slots(config, nodes) == slots, config


def test_what_no_node_has_is_refused_with_what_there_is() -> None:
    from ht_ray.sweep.driver.cluster import _slots

    nodes = [node({"kind": "t4"}, CPU=8, GPU=1, fast=1), node(CPU=2)]
    for settings, message in [
        ({"gpus_per_trial": 2}, r"\(CPU 1, GPU 2\).* 2 nodes with 8 CPUs and 1 GPUs; 2 CPUs and 0 GPUs"),
        ({"resources": ("fast=2",)}, r"fast 2\).* 8 CPUs and 1 GPUs, fast 1; 2 CPUs and 0 GPUs, fast 0"),
        ({"node_labels": ("kind=a100",)}, r"label kind=a100\).*, label kind=t4; .*, label kind=None"),
        ({"memory_per_trial": 1.5}, r"0 GiB"),
    ]:
        with pytest.raises(SettingError, match=message):
            _slots(SweepConfig(**settings), nodes)
        assert _slots(SweepConfig(**settings, autoscaling=True), nodes) == 1


def test_resume_or_start_is_one_of_the_two(tmp_path: Path) -> None:
    config = SweepConfig(resume_or_start=str(tmp_path / "study"))
    assert config.located() == SweepConfig(results_dir=str(tmp_path / "study"))
    assert check_before_ray(config) == str(tmp_path / "study")
    create_study(tmp_path / "study", study(spec("one")))
    assert config.located() == SweepConfig(resume=str(tmp_path / "study"))
    assert check_before_ray(config) == str(tmp_path / "study")
    # What was begun is not taken for one that is to be started.
    (tmp_path / "study" / "trials.json").unlink()
    assert config.located() == SweepConfig(resume=str(tmp_path / "study"))
    with pytest.raises(SettingError, match="a study has one location"):
        SweepConfig(resume_or_start="a", results_dir="b")


def test_default_directory_is_new_absolute_and_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HT_RAY_RESULTS", str(tmp_path / "results"))
    directory = Path(check_before_ray(SweepConfig(), "ablation"))
    assert directory.parent == tmp_path / "results"
    assert directory.name.startswith("ablation-20")
    assert not (tmp_path / "results").exists()
    monkeypatch.delenv("HT_RAY_RESULTS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Path(check_before_ray(SweepConfig())).parent == tmp_path / "ht-ray-results"


def test_relative_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_before_ray(SweepConfig(results_dir="here")) == str(tmp_path / "here")


def test_directory_inside_a_jobs_temporary_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(SettingError, match="deleted after the job"):
        check_before_ray(SweepConfig(results_dir="results"))


def test_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingError, match=r"SweepConfig.results_dir = .*can be written"):
        check_before_ray(SweepConfig(results_dir=str(tmp_path / "file" / "study")))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SettingError, match=r"nothing is ever overwritten\. Give a new directory"):
        check_before_ray(SweepConfig(results_dir=str(tmp_path)))
    with pytest.raises(SettingError, match="nothing is ever overwritten"):
        check_before_ray(SweepConfig(results_dir=str(tmp_path / "thesis.tex")))
    create_study(tmp_path / "study", study(spec("one")))
    with pytest.raises(SettingError, match="To continue it: resume="):
        check_before_ray(SweepConfig(results_dir=str(tmp_path / "study")))


def test_resuming_needs_a_study(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no such directory"):
        check_before_ray(SweepConfig(resume=str(tmp_path / "missing")))
    with pytest.raises(SettingError, match=r"it has no config\.json"):
        check_before_ray(SweepConfig(resume=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingError, match="belongs to something else"):
        load_study_settings(tmp_path)
    (tmp_path / "config.json").write_text('{"format": 2, "study": "x", "settings": {}}')
    with pytest.raises(SettingError, match="its format is 2, and this version reads 1"):
        load_study_settings(tmp_path)
    with pytest.raises(SettingError, match="give one of the two"):
        SweepConfig(resume="a", results_dir="b")


def test_resuming_with_other_trials_is_refused(tmp_path: Path) -> None:
    create_study(tmp_path, study(spec("one"), spec("two")))
    config = SweepConfig(resume=str(tmp_path))
    for other, difference in [
        (study(spec("one"), spec("two"), name="else"), "'counting', not 'else'"),
        (study(spec("one"), spec("three")), "'two' is only there; 'three' is new"),
        (study(spec("two"), spec("one")), "order differs"),
        (study(spec("one"), spec("two", parts=4)), "trial 'two' is .* now"),
    ]:
        with pytest.raises(SettingError, match=difference):
            run_study(other, config)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "head", "head:"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(SettingError, match="accepted are 'auto', 'local' and HOST:PORT"):
        check_before_ray(SweepConfig(address=address))


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SettingError, match=r"RAY_ADDRESS.* = '127\.0\.0\.1:1': no Ray cluster answers there"):
        check_before_ray(SweepConfig())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrialSpec("a/b", "A"), "TrialSpec.id"),
        (lambda: TrialSpec("a", "A", {"seconds": 1}), r"TrialSpec.settings\['seconds'\]"),
        (lambda: TrialSpec("a", "A", {"grid": [1, 2]}), r"TrialSpec.settings\['grid'\]"),  # type: ignore[dict-item]
        (lambda: TrialSpec("a", "A", {}, {"path": Path()}), "TrialSpec.config of trial 'a'"),
        (lambda: study(), r"Study.trials = \(\)"),
        (lambda: study(spec("a"), spec("A")), "two trials have the id 'A'"),
        (lambda: study(spec("a"), factory="module"), "package.module:Class"),
        (lambda: study(spec("a"), mode="most"), "Study.mode = 'most'"),
        (lambda: study(spec("a"), settings={"x": object()}), "Study.settings"),
        (lambda: Report({}, {}, 1.01), "Report: progress"),
        (lambda: Report({"epoch": [{"loss": 1.0}]}, {}, 1.0), "no 'step'"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make()
