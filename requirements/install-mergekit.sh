#!/usr/bin/env bash
# Creates .venv-mergekit: mergekit and the two packages that .venv lacks, everything else from .venv. Why not in .venv: nothing here
# imports mergekit (LGPL), and an oracle should not share the lock of what it judges. Rerun it freely.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
lock=$root/requirements/mergekit.lock
venv=$root/.venv-mergekit
stamp=$venv/installed-lock
if cmp -s "$lock" "$stamp"; then exit 0; fi
"$root/.venv/bin/python" -m venv --without-pip "$venv"
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
shared=$("$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
links=()
for l in $("$root/.venv/bin/python" -m pip config list | sed -n "s/^[a-z:]*\.find-links='\(.*\)'$/\1/p" | tr ' ' '\n' | sort -u); do links+=(--find-links "$l"); done
PYTHONDONTWRITEBYTECODE='' "$root/.venv/bin/uv" pip install -q --python "$venv/bin/python" "${links[@]}" --no-deps --require-hashes --compile-bytecode -r "$lock"
echo "$shared" >"$site/studyhall.pth"
# What mergekit asks for and .venv pins must agree: its requirements are checked against what it will import.
"$venv/bin/python" - <<'EOF'
from importlib.metadata import PackageNotFoundError, requires, version
from packaging.requirements import Requirement
for text in requires("mergekit"):
    need = Requirement(text)
    if need.marker and not need.marker.evaluate({"extra": ""}):
        continue
    try:
        found = version(need.name)
    except PackageNotFoundError:
        raise SystemExit(f"set-up: mergekit needs {need}, and it is in neither environment")
    if not need.specifier.contains(found, prereleases=True):
        raise SystemExit(f"set-up: mergekit needs {need}, and .venv has {found}")
EOF
cp "$lock" "$stamp"
echo "set-up: mergekit in $(basename "$venv")" >&2
