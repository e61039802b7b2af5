#!/usr/bin/env bash
# Package: d3rlpy 2.8.0 (InitialStateValueEstimationEvaluator), with torch 2.13.0
# Expected: The mean of the values at the first states of the episodes, the usual number for choosing hyperparameters
# offline, whatever the length of the episodes.
# Observed: Episodes are gone through in pieces of 1024 steps, and the first state of each piece counts as an initial
# one. Episodes of up to 1024 steps are right. With 3000 steps two of three "initial" states are those at steps 1024 and
# 2048: on a task whose values change along an episode the number is another one, and long episodes weigh more than
# short ones. DiscountedSumOfAdvantageEvaluator, likewise, begins its sum anew at each piece.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet d3rlpy==2.8.0 torch==2.13.0 gymnasium==1.2.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import logging
import sys

import numpy as np
import structlog
from d3rlpy.dataset import Episode, create_infinite_replay_buffer
from d3rlpy.metrics import InitialStateValueEstimationEvaluator

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


class Clock:
    """An algorithm for which a state's value is its step in the episode: 0 at each first state."""

    def predict(self, observations):
        return np.zeros(len(observations), int)

    def predict_value(self, observations, actions):
        return observations[:, 0]


found = {}
for lengths in ([1000], [1024], [1500], [3000], [100, 100, 3000]):
    episodes = [Episode(observations=np.arange(n, dtype=np.float32)[:, None], actions=np.arange(n)[:, None] % 2,
                        rewards=np.zeros((n, 1), np.float32), terminated=True) for n in lengths]
    data = create_infinite_replay_buffer(episodes)
    value = InitialStateValueEstimationEvaluator()(Clock(), data)
    found[tuple(lengths)] = value
    print(f"episodes of {lengths} steps, each with value 0 at its first state: initial value {value:g}")
if found[1000,] or found[1024,]:
    sys.exit("not as described: short episodes are wrong, too")
if not np.allclose(list(found.values()), [0, 0, 512, 1024, 614.4]):
    sys.exit("changed: each episode has one initial state")
EOF
