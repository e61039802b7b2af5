#!/usr/bin/env bash
# Package: d3rlpy 2.8.0 (TDErrorEvaluator with MultiStepTransitionPicker), with torch 2.13.0
# Expected: The TD error of a Q function that is exactly right is 0, with transitions over one step or over several: the
# value after n steps is discounted by gamma to the power of n, as it is in training.
# Observed: The evaluator discounts it by gamma once, whatever the interval of the transition. With n=1 the right Q
# function has error 0; with n=5 and gamma=0.9 its error is large, and another, wrong Q function has less. Training
# itself uses the interval, so the curve does not show what is minimised.
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
from d3rlpy.dataset import Episode, MultiStepTransitionPicker, create_infinite_replay_buffer
from d3rlpy.metrics import TDErrorEvaluator

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
steps, gamma = 50, 0.9
# a reward of 1 at each step: the value with k steps to go is (1 - gamma**k) / (1 - gamma)
values = (1 - gamma ** (steps - np.arange(steps))) / (1 - gamma)


class Known:
    """An algorithm that knows the values, but for a factor."""

    reward_scaler = None

    def __init__(self, factor):
        self.gamma, self.factor = gamma, factor

    def predict(self, observations):
        return np.zeros(len(observations), int)

    def predict_value(self, observations, actions):
        return self.factor * values[observations[:, 0].astype(int)]


def errors(n):
    episode = Episode(observations=np.arange(steps, dtype=np.float32)[:, None], actions=np.arange(steps)[:, None] % 2,
                      rewards=np.ones((steps, 1), np.float32), terminated=True)
    data = create_infinite_replay_buffer([episode], transition_picker=MultiStepTransitionPicker(n_steps=n, gamma=gamma))
    found = {factor: TDErrorEvaluator()(Known(factor), data) for factor in (1.0, 1.3)}
    print(f"{n}-step transitions: TD error {found[1.0]:.3f} of the right values, {found[1.3]:.3f} of values that are 30 % too large")
    return found


one, five = errors(1), errors(5)
if one[1.0] > 1e-6:
    sys.exit("not as described: it is not 0 with one step")
if five[1.0] < 1e-6:
    sys.exit("changed: the interval is used")
if five[1.0] < 1:
    sys.exit("not as described")
EOF
