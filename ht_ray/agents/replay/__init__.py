"""Replay memories for agents that learn from frames; torch and numpy are all they need."""

from ht_ray.agents.replay.batch import Batch
from ht_ray.agents.replay.config import ReplayConfig
from ht_ray.agents.replay.frame_replay import FrameReplay, ReplayFileError, make_replay
from ht_ray.agents.replay.sum_tree import SumTree

__all__ = ["Batch", "FrameReplay", "ReplayConfig", "ReplayFileError", "SumTree", "make_replay"]
