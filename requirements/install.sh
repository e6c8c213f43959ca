#!/usr/bin/env bash
# Creates .venv from a lock. Run by the Makefile; rerun it freely, an up-to-date environment costs nothing.
#   requirements/install.sh cpu|gpu
# Why not `pip install .`: the index's torchvision, torchaudio and torchcodec are CUDA builds, which break
# `import transformers` beside a CPU torch; so the lock is complete and is installed with --no-deps, without them.
set -euo pipefail
kind=${1:?cpu or gpu}
root=$(cd "$(dirname "$0")/.." && pwd)
lock=$root/requirements/$kind.lock
venv=$root/.venv
log=$root/.venv-install.log
stamp=$venv/installed-lock
say() { printf 'set-up: %s\n' "$*" >&2; }

if cmp -s "$lock" "$stamp"; then exit 0; fi

python=
for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    say "needs Python 3.11 or 3.12 with venv; name one with PYTHON=/path/to/python3.11"
    exit 2
fi

say "Python $("$python" -c 'import platform; print(platform.python_version())'), $(grep -c '==' "$lock") packages pinned by hash (~4 GB), details in ${log#"$root"/}"
: >"$log"
trap 'code=$?; [ $code = 0 ] || { say "failed; the last lines of ${log#"$root"/}:"; tail -n 5 "$log" >&2; }' EXIT
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" >>"$log" 2>&1
"$venv/bin/python" -m pip install -q --require-hashes -r "$root/requirements/uv.lock" >>"$log" 2>&1

# uv does not read pip's configuration: hand over where this machine keeps extra wheels.
flags=()
for links in $("$venv/bin/python" -m pip config list | sed -n "s/^[a-z]*\.find-links='\(.*\)'$/\1/p; s/^:env:\.find-links='\(.*\)'$/\1/p" | tr ' ' '\n' | sort -u); do
    flags+=(--find-links "$links")
done
# Byte-code now, explicitly: without it every process imports three times as long, for ever where nobody may write it.
uv() { PYTHONDONTWRITEBYTECODE='' "$venv/bin/uv" pip install --compile-bytecode --python "$venv/bin/python" "$@" >>"$log" 2>&1; }

# part NAME…: the lock's entries (a pin and its hashes) of these packages; part -v NAME…: all others.
part() {
    local invert=0
    if [ "$1" = -v ]; then invert=1 && shift; fi
    awk -v names=" $* " -v invert=$invert '/^[^ ]/ { split($1, pin, "=="); keep = (index(names, " " pin[1] " ") > 0) != invert } keep' "$lock"
}

if [ "$kind" = cpu ]; then
    torch=$(grep -o '^torch==[^ ]*' "$lock")
    say "$torch"
    # The CPU build is not on the package index: this machine's own sources first, then PyTorch's CPU index, for that one wheel.
    part torch >"$venv/torch-to-install"
    uv "${flags[@]}" --no-deps --require-hashes -r "$venv/torch-to-install" || {
        say "$torch: no source here has the locked file; from PyTorch's own index, over TLS and without our hash"
        uv --torch-backend cpu --no-deps "$torch"
    }
fi
say "the other packages"
part -v torch flash-attn mamba-ssm causal-conv1d >"$venv/lock-to-install"
[ "$kind" = cpu ] || part torch >>"$venv/lock-to-install"
# What builds a source package is pinned too.
uv "${flags[@]}" --no-deps --require-hashes --build-constraints "$lock" -r "$venv/lock-to-install"
cp "$lock" "$stamp"
say "done in ${SECONDS} s"
