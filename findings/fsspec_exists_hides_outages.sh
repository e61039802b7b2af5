#!/usr/bin/env bash
# Package: fsspec 2026.9.0 (HTTPFileSystem), aiohttp 3.14.5
# Expected: exists() on a server that refuses connections or answers 503 raises: whether the file exists is
# not known.
# Observed: It returns False in both cases, and info() raises FileNotFoundError. 'Resume if the checkpoint
# exists, else start' starts afresh during an outage, and may overwrite what it could not see.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet fsspec==2026.9.0 aiohttp==3.14.5
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import fsspec


class Overloaded(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_error(503)

    do_GET = do_HEAD

    def log_message(self, *args):
        pass


server = HTTPServer(("127.0.0.1", 0), Overloaded)
threading.Thread(target=server.serve_forever, daemon=True).start()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    closed = probe.getsockname()[1]

fs = fsspec.filesystem("http")
answers = {}
for name, port in (("answers 503", server.server_port), ("refuses connections", closed)):
    url = f"http://127.0.0.1:{port}/checkpoint"
    try:
        answers[name] = fs.exists(url)
    except Exception as error:
        answers[name] = type(error).__name__
    try:
        fs.info(url)
    except Exception as error:
        print(f"server {name}: exists() {answers[name]}, info() raises {type(error).__name__}")
server.shutdown()
if list(answers.values()) != [False, False]:
    sys.exit("changed: an outage is told from a missing file")
EOF
