#!/usr/bin/env bash
# Package: river 0.26.1 (drift.ADWIN)
# Expected: After a drift ADWIN drops the old part of its window and goes on with the new part, and n_detections counts
# the drifts since the start ("total number of detected changes").
# Observed: Right after a detection both are so. The next update throws all of it away: the window then holds that one
# value, estimation is that value, and n_detections is 0 again. So n_detections is never above 1 and reads 0 at the end
# of a stream with three drifts. What ADWIN had already learned of the new data is lost, and the grace period starts
# again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet river==0.26.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import random
import sys

from river import drift

random.seed(0)
detector = drift.ADWIN()
seen, pairs, largest, before = 0, [], 0, None
for level in (0, 3, 0, 3):
    for _ in range(1000):
        detector.update(random.gauss(level, 1))
        largest = max(largest, detector.n_detections)
        if before is not None:
            pairs.append((before, (detector.width, detector.n_detections)))
            before = None
        if detector.drift_detected:
            seen += 1
            before = (detector.width, detector.n_detections)
for old, new in pairs:
    print(f"window and n_detections at a drift: {old[0]:.0f} and {old[1]}, one update later: {new[0]:.0f} and {new[1]}")
print(f"drifts seen: {seen}; n_detections at the end: {detector.n_detections}, largest on the way: {largest}")
if seen != 3 or any(old[0] < 2 for old, _ in pairs):
    sys.exit("not as described: other drifts, or a window already empty at the drift")
if detector.n_detections != 0 or largest != 1 or any(new != (1, 0) for _, new in pairs):
    sys.exit("changed: ADWIN keeps its window or its count after a drift")
EOF
