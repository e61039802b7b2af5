#!/usr/bin/env bash
# Package: flashbax 0.1.3 (make_prioritised_flat_buffer and the other prioritised buffers), with jax 0.10.2
# Expected: New transitions get the largest priority so far, so that each is sampled soon, as in the paper on
# prioritised replay.
# Observed: They get that priority cut to a whole number: the array of new priorities takes the integer dtype of the
# indices. Priorities are errors to the power of the exponent: with 0.6, errors up to 3.1 have priorities below 2, and
# new transitions get 1. They are drawn about half as often as those with the largest error.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet flashbax==0.1.3 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import flashbax
import jax
import jax.numpy as jnp
import numpy as np

buffer = flashbax.make_prioritised_flat_buffer(max_length=64, min_length=2, sample_batch_size=64, priority_exponent=0.6)


def priorities(error):
    """Nine transitions, of which the first eight have this error; then one more is added."""
    state = buffer.init({"x": jnp.zeros(())})
    for x in range(9):
        state = buffer.add(state, {"x": jnp.float32(x)})
    state = buffer.set_priorities(state, jnp.arange(8), jnp.full(8, error))
    state = buffer.add(state, {"x": jnp.float32(9)})
    sample = jax.jit(buffer.sample)
    drawn = np.concatenate([np.asarray(sample(state, jax.random.key(i)).indices) for i in range(300)])
    old, new = (drawn < 8).mean() / 8, (drawn == 8).mean()
    found = float(state.sum_tree_state.max_recorded_priority), float(state.sum_tree_state.nodes[-64 + 8])
    print(f"errors of {error:g}: largest priority {found[0]:.3f}, priority of the new transition {found[1]:.3f}; "
          f"the new one is drawn {new / old:.2f} times as often as an old one")
    return *found, new / old


for error in (1.0, 1.9, 3.1, 7.5):
    largest, new, often = priorities(error)
    if not np.isclose(largest, error**0.6, rtol=1e-4):
        sys.exit("not as described")
    if new != np.floor(largest) or not np.isclose(often, np.floor(largest) / largest, atol=0.05):
        sys.exit("changed: new transitions get the largest priority")
EOF
