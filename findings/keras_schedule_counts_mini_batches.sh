#!/usr/bin/env bash
# Package: keras 3.15.1 (gradient_accumulation_steps of its optimizers), with jax 0.10.2 as the backend
# Expected: With gradient_accumulation_steps=4 a step of the optimizer takes four mini-batches. Its `iterations` counts
# such steps, and so do its learning rate schedule and its average of the weights (use_ema).
# Observed: Only `iterations` does. The schedule is given the number of mini-batches, and is over after a quarter of the
# updates it was made for. The average is updated at each mini-batch, between the updates, too: with a momentum of
# 0.9 per update it has 0.9 to the power of 4, and follows four times as closely.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet keras==3.15.1 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$work"
KERAS_BACKEND=jax "$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import keras
import numpy as np


def weights(mini_batches, learning_rate):
    """A weight and its average after 20 updates with gradient -1, and what the optimizer takes for its iterations."""
    weight = keras.Variable([0.0])
    optimizer = keras.optimizers.SGD(learning_rate, use_ema=True, ema_momentum=0.9,
                                     gradient_accumulation_steps=None if mini_batches == 1 else mini_batches)
    optimizer.build([weight])
    for _ in range(20 * mini_batches):
        optimizer.apply([np.array([-1.0], "float32")], [weight])
    average = optimizer._model_variables_moving_average[0]
    return float(weight.value[0]), float(average.value[0]), int(optimizer.iterations)


found = {}
for mini_batches in (1, 4):
    # a rate of 1 for ten steps, then none
    stepped, _, iterations = weights(mini_batches, keras.optimizers.schedules.PiecewiseConstantDecay([9], [1.0, 0.0]))
    weight, average, _ = weights(mini_batches, 1.0)
    found[mini_batches] = iterations, stepped, weight, average
    print(f"{mini_batches} mini-batch(es) to an update, {iterations} iterations: the schedule of ten steps of 1 moves the weight "
          f"to {stepped:g}; with a constant rate the weight is {weight:g} and its average {average:.2f}")
if found[1][:3] != (20, 10.0, 20.0) or found[4][0] != 20 or found[4][2] != 20.0:
    sys.exit("not as described")
if found[4][1] != 2.0:
    sys.exit("changed: the schedule counts updates")
if abs(found[4][3] - found[1][3]) < 1:
    sys.exit("changed: the average counts updates")
EOF
