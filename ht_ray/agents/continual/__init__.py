"""Continual RL: sequences of tasks, the plain loop over them, and what is measured."""

from ht_ray.agents.continual.measures import ContinualMeasures, measure
from ht_ray.agents.continual.methods import with_methods
from ht_ray.agents.continual.run import ContinualRecord, ContinualRun
from ht_ray.agents.continual.streams import (
    TASK_STREAMS,
    AtariGamesConfig,
    AtariModesConfig,
    ControlStreamConfig,
    Task,
    TaskStream,
    TaskStreamConfig,
    register_task_stream,
    task_stream_config,
)

__all__ = [
    "TASK_STREAMS",
    "AtariGamesConfig",
    "AtariModesConfig",
    "ContinualMeasures",
    "ContinualRecord",
    "ContinualRun",
    "ControlStreamConfig",
    "Task",
    "TaskStream",
    "TaskStreamConfig",
    "measure",
    "register_task_stream",
    "task_stream_config",
    "with_methods",
]
