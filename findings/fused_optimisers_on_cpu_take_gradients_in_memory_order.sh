#!/usr/bin/env bash
# torch 2.13.0 on CPUs: Adam, AdamW, SGD and Adagrad with fused=True pair the elements of a parameter and of its gradient as they lie in memory, whatever their strides say. A gradient
# that is the transpose of something, as torch.autograd.grad and torch.func.grad return it where a weight is used transposed, updates the wrong elements: of AdamW's first step
# some move up that should move down. Nothing is said; the loop and foreach=True go by the strides, and so does .backward(), which copies such a gradient into the parameter's layout.
# Seen 2026-11-29 with torch 2.13.0 (CPU). Exits 0 while it behaves so, 1 when that has changed.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet "torch==2.13.0" "numpy<3"
cat >"$work/strides.py" <<'PY'
import torch

RATE = 0.1


def after(optimizer, by_backward, **how):
    """The weight after one step, and its gradient's strides."""
    torch.manual_seed(0)
    weight, other = torch.nn.Parameter(torch.randn(6, 16)), torch.randn(6, 3)
    loss = torch.einsum("ij,jk->ik", torch.tanh(weight.t()), other).square().sum()
    stepper = optimizer([weight], lr=RATE, **how)
    if by_backward:
        loss.backward()
    else:
        (weight.grad,) = torch.autograd.grad(loss, weight)
    stepper.step()
    return weight.detach(), weight.grad.stride()


print("torch", torch.__version__)
as_seen = True
for optimizer in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad):
    right, strides = after(optimizer, False, foreach=False)
    off = {
        "foreach": float((after(optimizer, False, foreach=True)[0] - right).abs().max()),
        "fused, by backward()": float((after(optimizer, True, fused=True)[0] - right).abs().max()),
        "fused": float((after(optimizer, False, fused=True)[0] - right).abs().max()),
    }
    print(f"{optimizer.__name__}: gradient's strides {strides}, farthest from the loop's step {({how: round(far, 6) for how, far in off.items()})}")
    as_seen &= strides == (1, 6) and max(off["foreach"], off["fused, by backward()"]) < 1e-5 and off["fused"] > RATE
raise SystemExit(0 if as_seen else 1)
PY
"$work/env/bin/python" "$work/strides.py"
