"""Records of a study: the files that a sweep writes and a report reads, and the words in them.

Below both, and the standard library only, but for `ht_ray.records.event_files`.
"""

from ht_ray.records.statuses import EventKind, FaultKind, Outcome, RunEnd, TrialStatus
from ht_ray.records.study_files import FORMAT

__all__ = ["FORMAT", "EventKind", "FaultKind", "Outcome", "RunEnd", "TrialStatus"]
