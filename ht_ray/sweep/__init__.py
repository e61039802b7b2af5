"""Studies of any trial class, run on Ray Tune.

A study is a list of `TrialSpec`; each names a setting and a seed. `run_study` runs them on whatever Ray offers, writes
what they report into a study directory, and can go on from there after a kill.

Importing this package imports neither Ray nor torch, so that settings are checked at once.
"""

from ht_ray.errors import Diverged, Interrupted
from ht_ray.sweep.driver.local_ray import RayStartError
from ht_ray.sweep.driver.run import StudyResult, run_study
from ht_ray.sweep.search.search import Parameter, Search, SearchConfig, Values, draw_distinct
from ht_ray.sweep.study.config import SweepConfig, check_before_ray
from ht_ray.sweep.study.plan import load_study_settings
from ht_ray.sweep.study.trial import Pack, Report, Study, Trial, TrialSpec

__all__ = [
    "Diverged",
    "Interrupted",
    "Pack",
    "Parameter",
    "RayStartError",
    "Report",
    "Search",
    "SearchConfig",
    "Study",
    "StudyResult",
    "SweepConfig",
    "Trial",
    "TrialSpec",
    "Values",
    "check_before_ray",
    "draw_distinct",
    "load_study_settings",
    "run_study",
]
