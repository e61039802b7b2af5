#!/usr/bin/env bash
# Package: ray 2.60.0 (ray.tune.schedulers.ASHAScheduler)
# Expected: A trial whose metric has become NaN is the worst there is: ASHA stops it at the next rung.
# Observed: The trial goes on at every rung, to the end of its budget, while finite trials with poor values
# are stopped: NaN is below no cutoff. Diverged trials, common with large learning rates, take the longest of
# all. The cutoff itself is computed without them. Seen through the scheduler's own interface, so no cluster
# is started; a Tuner run behaves the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[tune]==2.60.0"
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys
from types import SimpleNamespace

from ray.tune.schedulers import ASHAScheduler

scheduler = ASHAScheduler(time_attr="training_iteration", max_t=27, grace_period=1, reduction_factor=3)
scheduler.set_search_properties("accuracy", "max")
nan = float("nan")
values = {"good": 0.9, "fair": 0.5, "poor": 0.1, "diverged": nan, "diverged too": nan}
trials = {name: SimpleNamespace(trial_id=name) for name in values}
for trial in trials.values():
    scheduler.on_trial_add(None, trial)

last = {}
running = dict(values)
for iteration in range(1, 27):
    for name, value in list(running.items()):
        result = {"training_iteration": iteration, "accuracy": value}
        if scheduler.on_trial_result(None, trials[name], result) == "STOP":
            del running[name]
        last[name] = iteration
print("accuracy:", values)
print("iterations run, of 26:", last)
if last["poor"] != 1:
    sys.exit("not as described")
if last["diverged"] != 26 or last["diverged too"] != 26:
    sys.exit("changed: ASHA stops NaN")
EOF
