#!/usr/bin/env bash
# transformers 5.19: whether a tokenizer adds its bos token can no longer be told from what was loaded and saved. A generic fast tokenizer without post-processor is given one that
# adds nothing (tokenizer.json then holds a TemplateProcessing), and `add_bos_token: false` in tokenizer_config.json is neither in init_kwargs after loading nor in the file after
# saving. So "adds nothing on purpose" (Phi-3's rule) and "has no rule" (a conversion that lost it) look the same to whoever gets the folder next; the first file must be read.
# Seen 2026-11-28 with transformers 5.19.0, tokenizers 0.23.3. Exits 0 while it behaves so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet "transformers==5.19.0" "tokenizers==0.23.3"
cat >"$work/bos.py" <<'PY'
import json, sys
from pathlib import Path
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

work = Path(sys.argv[1])
core = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "Dune": 3}, unk_token="<unk>"))
assert core.post_processor is None
PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(work / "one")
written = json.loads((work / "one/tokenizer.json").read_text())["post_processor"]
file = work / "one/tokenizer_config.json"
file.write_text(json.dumps({**json.loads(file.read_text()), "add_bos_token": False}))
loaded = AutoTokenizer.from_pretrained(work / "one")
loaded.save_pretrained(work / "two")
kept = json.loads((work / "two/tokenizer_config.json").read_text())
print("post-processor of a tokenizer that had none:", written and written["type"], "with special tokens:", sorted(written["special_tokens"]) if written else None)
print("add_bos_token after loading:", loaded.init_kwargs.get("add_bos_token", "absent"), "| after saving:", kept.get("add_bos_token", "absent"))
same = bool(written) and written["type"] == "TemplateProcessing" and not written["special_tokens"]
sys.exit(0 if same and "add_bos_token" not in loaded.init_kwargs and "add_bos_token" not in kept else 1)
PY
"$work/env/bin/python" "$work/bos.py" "$work"
