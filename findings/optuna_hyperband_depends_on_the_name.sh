#!/usr/bin/env bash
# Package: optuna 4.6.0 (HyperbandPruner)
# Expected: A study with a seeded sampler, run in one process, prunes the same trials each time.
# Observed: The bracket of a trial is a checksum of the study's name and the trial's number. Without a name a study gets
# a random one, so that the same seed prunes other trials in every run, and the best value found may differ; two
# studies of different names are never comparable trial by trial. With study_name set it repeats.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet optuna==4.6.0 numpy==2.3.4
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)


def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    for step in range(1, 10):
        trial.report(x * step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x


def pruned(name):
    study = optuna.create_study(
        study_name=name,
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9, reduction_factor=3),
    )
    study.optimize(objective, n_trials=40)
    assert [round(t.params["x"], 6) for t in study.trials] == draws or not draws
    draws[:] = [round(t.params["x"], 6) for t in study.trials]
    return tuple(t.number for t in study.trials if t.state.name == "PRUNED")


draws = []
unnamed = {pruned(None) for _ in range(4)}
named = {pruned("one name") for _ in range(4)}
print(f"the same 40 draws, four studies without a name: {len(unnamed)} different sets of pruned trials")
print(f"four of one name: {len(named)}")
if len(named) != 1:
    sys.exit("not as described")
if len(unnamed) == 1:
    sys.exit("changed: pruning does not depend on the name")
EOF
