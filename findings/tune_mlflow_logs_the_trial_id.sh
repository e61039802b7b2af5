#!/usr/bin/env bash
# Package: ray 2.60.0 (ray.air.integrations.mlflow.MLflowLoggerCallback), with mlflow-skinny 2.22.0
# Expected: A trial's numbers become metrics in MLflow; its texts, such as trial_id, do not.
# Observed: Each value is passed to float(), and what float() reads becomes a metric. It reads "1_000" as 1000. Tune's
# default trial ids are five hexadecimal digits, an underscore, and a number: "77822_00000" becomes the metric trial_id
# 7782200000, "1e822_00000" becomes infinity, "7f822_00000" is left out. The digits are drawn anew for each experiment,
# so that about one experiment in eight has a metric trial_id. A date written with underscores becomes one, too, and the
# text "nan" a NaN. Seen through the callback's own interface, so no cluster is started; a Tuner run behaves the same.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "ray[tune]==2.60.0" mlflow-skinny==2.22.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys
from pathlib import Path

from mlflow import MlflowClient
from ray.air.integrations.mlflow import MLflowLoggerCallback

store = Path("runs").resolve().as_uri()
callback = MLflowLoggerCallback(tracking_uri=store, experiment_name="experiment")
callback.setup()
client = MlflowClient(store)


class Trial:
    config = {}


def metrics(**result):
    trial = Trial()
    callback.log_trial_start(trial)
    callback.log_trial_result(1, trial, dict(result, training_iteration=1, loss=0.5))
    return client.get_run(callback._trial_runs[trial]).data.metrics


found = {}
for trial_id in ("7f822_00000", "77822_00000", "1e822_00000"):
    logged = metrics(trial_id=trial_id, note="good", day="2026_11_29")
    found[trial_id] = logged.get("trial_id")
    print(f'trial_id "{trial_id}", note "good", day "2026_11_29"; metrics: {logged}')
    if logged.get("loss") != 0.5 or "note" in logged:
        sys.exit("not as described: the loss is missing, or any text is logged")
if found != {"7f822_00000": None, "77822_00000": 7782200000.0, "1e822_00000": float("inf")}:
    sys.exit("changed: texts are not logged as metrics")
EOF
