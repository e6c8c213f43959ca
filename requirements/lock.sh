#!/usr/bin/env bash
# Pins requirements/cpu.lock and gpu.lock from pyproject.toml, every file by its hash; and uv itself. Needs .venv (make setup).
set -euo pipefail
cd "$(dirname "$0")/.."
links=()
for l in $(.venv/bin/python -m pip config list | sed -n "s/^[a-z:]*\.find-links='\(.*\)'$/\1/p" | tr ' ' '\n' | sort -u); do links+=(--find-links "$l"); done
# vllm declares these three; they are CUDA builds of the package index that break a CPU torch, and nothing here needs them.
skip=(--no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec)
uv=(.venv/bin/uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-find-links --no-emit-index-url --no-annotate --no-header)
compile() { "${uv[@]}" pyproject.toml "$@"; }
# torch's CPU build: this machine's wheel where it has one, else PyTorch's index. docs/security.md says what that means for its hash.
compile --extra cpu --extra dev --constraint <(echo 'torch==2.13.0+cpu') "${links[@]}" "${skip[@]}" -o requirements/cpu.lock ||
    compile --extra cpu --extra dev --torch-backend cpu "${skip[@]}" -o requirements/cpu.lock
compile --extra gpu --extra dev --python-platform x86_64-manylinux_2_28 -o requirements/gpu.lock
echo "$(.venv/bin/uv --version | awk '{print $1 "==" $2}')" | "${uv[@]}" --no-deps - -o requirements/uv.lock
# mergekit's other needs are .venv's: they agree with what is locked there, which install-mergekit.sh checks.
printf 'mergekit==0.1.5\nimmutables\npeft\n' | "${uv[@]}" --no-deps - -o requirements/mergekit.lock
grep -c '==' requirements/*.lock
