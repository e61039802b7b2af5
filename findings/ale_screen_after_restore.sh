#!/usr/bin/env bash
# Package: ale-py 0.12.1 (ALEInterface.restoreState)
# Expected: After a state is restored, the screen is that of the restored state.
# Observed: The RAM is, the screen is not: getScreenRGB and getScreenGrayscale return the frame from before the restore
# until the next act. A tree search or a resumed run that observes first sees the wrong picture once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ale-py==0.12.1 numpy==2.3.4
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
from ale_py import Action, ALEInterface, LoggerMode, roms

ALEInterface.setLoggerMode(LoggerMode.Error)
ale = ALEInterface()
ale.setInt("random_seed", 0)
ale.setFloat("repeat_action_probability", 0.0)
ale.loadROM(roms.get_rom_path("breakout"))
ale.reset_game()
for _ in range(60):
    ale.act(Action.FIRE)
state, ram, screen = ale.cloneState(), ale.getRAM().copy(), ale.getScreenRGB().copy()
for _ in range(60):
    ale.act(Action.RIGHT)
later = ale.getScreenRGB().copy()
ale.restoreState(state)
same_ram = np.array_equal(ale.getRAM(), ram)
shown = ale.getScreenRGB()
print(f"RAM restored: {same_ram}; screen is the restored state's: {np.array_equal(shown, screen)}, "
      f"the one from before the restore: {np.array_equal(shown, later)}")
if not same_ram or np.array_equal(screen, later):
    sys.exit("not as described")
if not np.array_equal(shown, later):
    sys.exit("changed: the screen is restored")
EOF
