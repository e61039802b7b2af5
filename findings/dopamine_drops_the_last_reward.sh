#!/usr/bin/env bash
# Package: dopamine-rl 4.1.2 (TransitionAccumulator: its JAX DQN agents fill their replay through it), with jax 0.10.2
# Expected: Each step of an agent is given as (observation, action, reward, is_terminal), an episode's last one with
# is_terminal. As many transitions come out, and the last one is terminal and has the last reward.
# Observed: With one-step returns, as in DQN, the last step's action and reward come out nowhere, and the step before it
# is taken for the terminal one: a reward that is paid only at the end is never learned from. With a stack of frames the
# false terminal transition comes out once per frame of the stack (four times on Atari), with more and more of its
# frames blank. The copies are upstream's issue 228; the lost reward is not. With n-step returns the last reward is in
# the shortened returns alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
# only what the accumulator needs: the package's full list has TensorFlow in it
"$work/venv/bin/pip" install --quiet --no-deps dopamine-rl==4.1.2
"$work/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 orbax-checkpoint==0.12.8 \
    gin-config==0.5.0 python-snappy==0.7.3 typing-extensions==4.16.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
from dopamine.jax.replay_memory.accumulator import TransitionAccumulator
from dopamine.jax.replay_memory.elements import TransitionElement


def stored(stack):
    """What comes out of an episode of 8 steps with the observations 1 to 8, where only the last step has a reward."""
    accumulator = TransitionAccumulator(stack_size=stack, update_horizon=1, gamma=0.99)
    out = []
    for step in range(1, 9):
        last = step == 8
        element = TransitionElement(np.array([step]), 10 * step, 100.0 if last else 0.0, last, last)
        out += accumulator.accumulate(element)
    print(f"8 steps, a reward of 100 at the last one, stack of {stack}: {len(out)} transitions, "
          f"rewards {sum(t.reward for t in out):g}")
    for t in out[5:]:
        print(f"  state {t.state[0].tolist()}, action {t.action}, reward {t.reward:g}, "
              f"next state {t.next_state[0].tolist()}, terminal {t.is_terminal}")
    return out


plain, stacked = stored(1), stored(4)
if [t.action for t in plain[:6]] != [10, 20, 30, 40, 50, 60] or any(t.is_terminal for t in plain[:6]):
    sys.exit("not as described")
if any(t.reward or t.action == 80 for t in plain + stacked):
    sys.exit("changed: the last step is stored")
if len(plain) != 7 or not plain[-1].is_terminal:
    sys.exit("not as described: the step before it is not the terminal one")
if [t.state[0].tolist() for t in stacked[6:]] != [[4, 5, 6, 7], [0, 5, 6, 7], [0, 0, 6, 7], [0, 0, 0, 7]]:
    sys.exit("changed: the last transition comes out once")
EOF
