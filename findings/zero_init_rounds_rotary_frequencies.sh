#!/usr/bin/env bash
# DeepSpeed 0.19.8 with transformers 5.19: a model built under zero.Init in bf16 computes rotary frequencies in bf16. zero.Init patches torch.arange and its sisters, so every
# floating tensor that a module makes for itself is bf16, not its parameters alone. Frequencies are off by up to half a percent, which is radians at position 1,000; nothing
# is said, ZeRO-1 and 2 are exact, and what was trained so is served at the exact frequencies afterwards. `llama3` ropes come out right. tensor_overrides=[device] leaves
# the frequencies alone; so does building in fp32 and rounding parameters only.
# Seen 2026-11-28 with torch 2.13.0 (CPU, gloo), deepspeed 0.19.8, transformers 5.19.0. Exits 0 while it behaves so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet "torch==2.13.0" "transformers==5.19.0" "numpy<3" setuptools wheel
DS_BUILD_OPS=0 "$work/env/bin/pip" install --quiet --no-build-isolation "deepspeed==0.19.8"
cat >"$work/rope.py" <<'PY'
import os, sys
os.environ.update(DS_ACCELERATOR="cpu", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import torch
torch.distributed.init_process_group("gloo", rank=0, world_size=1)
import deepspeed
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config(rope):
    return LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=128,
                       rope_parameters=rope)


def frequencies(rope, **options):
    ds = {"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
    with deepspeed.zero.Init(config_dict_or_path=ds, **options):
        model = AutoModelForCausalLM.from_config(config(rope), dtype=torch.bfloat16)
    return model.model.rotary_emb.inv_freq.float()


def radians(found, exact):
    return float((found - exact).abs().max() * 1000)


default = {"rope_type": "default", "rope_theta": 5e5}
exact = {name: AutoModelForCausalLM.from_config(config(rope)).model.rotary_emb.inv_freq for name, rope in (("default", default), ("llama3", LLAMA3))}
off = radians(frequencies(default), exact["default"])
cured = radians(frequencies(default, tensor_overrides=[deepspeed.zero.DeepSpeedTensorOverride.device]), exact["default"])
llama3 = radians(frequencies(LLAMA3), exact["llama3"])
print("torch", torch.__version__, "deepspeed", deepspeed.__version__, "transformers", transformers.__version__)
print(f"angle off at position 1,000, largest: default rope {off:.2f} rad; with tensor_overrides=[device] {cured:.2f}; llama3 rope {llama3:.2f}")
sys.stdout.flush()
os._exit(0 if off > 0.5 and cured == 0 and llama3 == 0 else 1)
PY
"$work/env/bin/python" "$work/rope.py" 2>/dev/null | grep -v '^\['
exit "${PIPESTATUS[0]}"
