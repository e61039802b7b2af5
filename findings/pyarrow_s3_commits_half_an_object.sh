#!/usr/bin/env bash
# Package: pyarrow 26.0.1 (pyarrow.fs.S3FileSystem), against a local S3 server, moto 5.2.5
# Expected: An upload to object storage is all or nothing: an exception inside `with
# fs.open_output_stream(...)` abandons it, and the object that was there stays.
# Observed: Leaving the block closes the stream, and closing completes the upload: the few bytes written so
# far replace the complete object. A checkpoint that fails to serialise half way destroys the last good one.
# Write to another key and rename, or build the bytes first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "moto[server]==5.2.5" pyarrow==26.0.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import logging
import sys

from moto.server import ThreadedMotoServer
from pyarrow import fs

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
store = fs.S3FileSystem(access_key="a", secret_key="b", endpoint_override=f"{host}:{port}", scheme="http",
                        region="us-east-1", allow_bucket_creation=True)
store.create_dir("bucket")


def content():
    with store.open_input_stream("bucket/checkpoint") as stream:
        return stream.read()


with store.open_output_stream("bucket/checkpoint") as stream:
    stream.write(b"the complete checkpoint")
print("before:", content())
try:
    with store.open_output_stream("bucket/checkpoint") as stream:
        stream.write(b"the c")
        raise ValueError("cannot serialise the rest")
except ValueError as error:
    print("raised:", error)
after = content()
print("after: ", after)
server.stop()
if after != b"the c":
    sys.exit("changed: a failed upload leaves the object alone")
EOF
