#!/usr/bin/env bash
# Package: optax 0.2.8 (MultiSteps around apply_if_finite or zero_nans), with jax 0.10.2
# Expected: MultiSteps(apply_if_finite(optimizer, n), k) drops the k mini-batches with a NaN gradient among them, and
# goes on with the next k from nothing.
# Observed: The sum is cleared by multiplying it by 0, and 0 times NaN is NaN. After a single bad mini-batch each later
# sum is NaN, and apply_if_finite refuses it: the weights stand still, without a word, and after n refusals NaN is
# let through to them. With zero_nans inside they stand still for ever. With should_skip_update_fn=skip_not_finite, or
# with MultiSteps inside apply_if_finite, training goes on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet optax==0.2.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import math
import sys

import jax.numpy as jnp
import optax

sgd = optax.sgd(0.1)


def trained(name, optimizer, bad):
    """The weight after each four of 40 mini-batches with gradient -1, but NaN in mini-batch `bad`."""
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    params = {"w": jnp.zeros(())}
    state, seen = optimizer.init(params), []
    for i in range(40):
        updates, state = optimizer.update({"w": jnp.float32(math.nan if i == bad else -1.0)}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params["w"]))
    gradients = "all finite" if bad is None else f"NaN in mini-batch {bad}"
    print(f"{name}, {gradients}: {' '.join(f'{weight:.1f}' for weight in seen[3::4])}")
    return seen[3::4]


multi, finite = optax.MultiSteps, optax.apply_if_finite
outside = trained("MultiSteps(apply_if_finite(sgd, 5), 4)", multi(finite(sgd, 5), 4), 9)
zeroed = trained("MultiSteps(zero_nans, sgd)", multi(optax.chain(optax.zero_nans(), sgd), 4), 9)
clean = trained("MultiSteps(apply_if_finite(sgd, 5), 4)", multi(finite(sgd, 5), 4), None)
skipped = trained("MultiSteps(sgd, 4, skip_not_finite)", multi(sgd, 4, should_skip_update_fn=optax.skip_not_finite), 9)
inside = trained("apply_if_finite(MultiSteps(sgd, 4), 5)", finite(multi(sgd, 4).gradient_transformation(), 5), 9)
if not all(weights[-1] > 0.85 for weights in (clean, skipped, inside)):
    sys.exit("not as described: the other ways stop, too")
if not math.isnan(outside[-1]) or outside[2] != outside[6] or zeroed[2] != zeroed[-1]:
    sys.exit("changed: the sum begins anew")
EOF
