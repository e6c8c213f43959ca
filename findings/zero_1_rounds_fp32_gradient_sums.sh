#!/usr/bin/env bash
# DeepSpeed 0.19.8, bf16 with data_types.grad_accum_dtype fp32: under ZeRO-1 the fp32 sum over micro-steps is rounded to bf16 once more on its way to the optimiser, on a single rank
# too, so that a micro-step a 512th as large as the others together is lost after all. ZeRO-2 and 3 hand the sum on whole, and so does ZeRO-1 with communication_data_type fp32;
# immediate_grad_update does not matter. Nothing is said. (gradient_clipping is 1.0 where it is not given, so the sums here stay below.)
# Seen 2026-11-29 with torch 2.13.0 (CPU, gloo), deepspeed 0.19.8. Exits 0 while it behaves so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet "torch==2.13.0" "numpy<3" setuptools wheel
DS_BUILD_OPS=0 "$work/env/bin/pip" install --quiet --no-build-isolation "deepspeed==0.19.8"
cat >"$work/sums.py" <<'PY'
import os, sys
os.environ.update(DS_ACCELERATOR="cpu", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import torch
torch.distributed.init_process_group("gloo", rank=0, world_size=1)
import deepspeed
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
from deepspeed.utils import safe_get_full_fp32_param

LARGE, SMALL = 1.0, 2.0**-9  # halved by two micro-steps, each is exact in bf16; their sum is not


def moved(stage, **more):
    """The fp32 master of one weight, from 0, after a step of SGD at rate 1 over two micro-steps."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    config = {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2, "zero_allow_untested_optimizer": True, "steps_per_print": 10**9,
        "bf16": {"enabled": True, **more.pop("bf16", {})}, "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": stage}, **more,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), config=config, dist_init_required=False)
    for slope in (LARGE, SMALL):
        loss = engine(torch.tensor([[slope]], dtype=torch.bfloat16)).sum()
        engine.backward(loss)
        engine.step()
    return -float(safe_get_full_fp32_param(next(engine.module.parameters())))


exact, rounded = (LARGE + SMALL) / 2, LARGE / 2
found = {
    "ZeRO-1": moved(1),
    "ZeRO-1, immediate_grad_update": moved(1, bf16={"immediate_grad_update": True}),
    "ZeRO-2": moved(2),
    "ZeRO-3": moved(3),
    "ZeRO-1, communication_data_type fp32": moved(1, communication_data_type="fp32"),
}
print("torch", torch.__version__, "deepspeed", deepspeed.__version__, "sum of gradients", exact)
for name, value in found.items():
    print(f"{name}: the optimiser was given {value}")
sys.stdout.flush()
os._exit(0 if list(found.values()) == [rounded, rounded, exact, exact, exact] else 1)
PY
"$work/env/bin/python" "$work/sums.py" 2>/dev/null | grep '^[tZ]'
exit "${PIPESTATUS[0]}"
