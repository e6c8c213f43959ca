#!/usr/bin/env bash
# triton 3.9.0 (libtriton's bindings are nanobind's): a program that has called gc.freeze(), as servers and trainers do so that later collections pass over their libraries, and imported
# triton before, ends with "nanobind: leaked N types!", functions and names of them on stderr, and "likely caused by a reference counting issue in the binding code". Nothing leaks: what is
# frozen is left out of the interpreter's last collection too, and nanobind counts what is there after it. gc.unfreeze() registered with atexit ends without a word.
# Seen 2026-11-29 with triton 3.9.0 and CPython 3.11. Exits 0 while it behaves so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet "triton==3.9.0"
told() { "$work/env/bin/python" -c "$1" 2>&1 | grep -c "nanobind: leaked" || true; }
plain=$(told "import gc, triton._C.libtriton")
frozen=$(told "import gc, triton._C.libtriton; gc.freeze()")
undone=$(told "import atexit, gc, triton._C.libtriton; gc.freeze(); atexit.register(gc.unfreeze)")
echo "$("$work/env/bin/python" --version), triton 3.9.0: kinds of leaks reported: $plain as it is, $frozen after gc.freeze(), $undone with gc.unfreeze() at exit"
[ "$plain" = 0 ] && [ "$frozen" -gt 0 ] && [ "$undone" = 0 ]
