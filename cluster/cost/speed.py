"""How long an optimiser step takes: a roofline of matrix products, memory traffic and communication, modelled, not measured.

One number a chip is fitted to published rows (Chip.efficiency); the constants below are the same for all chips and were chosen on the
same rows. `python -m benchmarks.cost_model` fits, and holds rows out to see what it is worth.
"""

from dataclasses import dataclass

from cluster.cost.chips import Hardware
from cluster.cost.memory import SetUp, trained_share
from cluster.cost.model_shape import ModelShape

RECOMPUTE = 0.15
"""More time with every block computed twice. A third more FLOPs, but forward ones run nearer the peak, and rows can be longer."""
_EXPOSED = 0.75
"""Share of the shorter of computing and communicating that the longer one does not hide."""
_TRAFFIC_BYTES = 300.0
"""Per token, block and hidden dimension: norms, activations, residuals, rotations, forward and backward, as separate kernels."""
_STEP_BYTES = 40.0
"""Per parameter that a rank owns: AdamW reads gradient, master and moments and writes them and the bf16 copy, in several passes."""
_BLOCK_S = 1.5e-3
"""A block's forward and backward cannot be launched faster from Python, ZeRO's hooks included: assumed."""
_PCIE_BYTES_PER_S = 20e9
_CPU_ADAM_S = 1.4e-9
"""Per parameter, torch's AdamW on one node's CPUs (ZeRO-Offload, arXiv 2101.06840, table 4: 14.76 s for 10 billion)."""


@dataclass(frozen=True)
class StepLoad:
    """What one optimiser step asks of one rank."""

    tokens: float
    """Of the fullest rank, in all its micro-steps, with what pads its rows: ranks wait for each other."""
    micro_steps: float
    attended: float
    """s̄ = Σl² / Σl."""
    fill: float = 1.0
    """Share of all ranks' tokens that is no padding."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimiser step."""

    compute: float
    communicate: float
    update: float
    """Optimiser, with the transfers of offloaded states."""

    @property
    def total(self) -> float:
        longer, shorter = max(self.compute, self.communicate), min(self.compute, self.communicate)
        return longer + _EXPOSED * shorter + self.update


def compute_s_per_token(shape: ModelShape, attended: float, hardware: Hardware, recompute: bool, adapter: bool = False) -> float:
    """Of one rank, without waiting for others. With an adapter no gradient of the frozen weights is computed: a third less."""
    more = (1 + RECOMPUTE * recompute) * (2 / 3 if adapter else 1)
    flops = shape.flops_per_token(attended)
    if hardware.chip is None:
        assert hardware.seconds_per_flop is not None, "a CPU's speed is known from a measurement only"
        return flops * more * hardware.seconds_per_flop
    traffic = _TRAFFIC_BYTES * shape.num_hidden_layers * shape.hidden_size
    chip = hardware.chip
    return more * (flops / (chip.efficiency * chip.peak_flops) + traffic / chip.hbm_bytes_per_s)


def communicate_s(shape: ModelShape, zero_stage: int, hardware: Hardware, trained: float = 1.0) -> float:
    """Of one micro-step. ZeRO 3 moves 6 bytes a parameter (gathered twice, gradients reduced once, bf16), ZeRO 1 and 2 the gradients,
    ZeRO 0 gradients there and back. Between nodes the node's network counts, inside one NVLink."""
    if hardware.num_gpus == 1 or hardware.chip is None:
        return 0.0
    moved = {0: 4 * trained, 1: 2 * trained, 2: 2 * trained, 3: 4 + 2 * trained}[zero_stage] * float(shape.parameters)
    nodes = hardware.num_nodes
    if nodes == 1:
        return moved * (hardware.num_gpus - 1) / hardware.num_gpus / hardware.chip.nvlink_bytes_per_s
    return moved * (nodes - 1) / nodes / hardware.network_bytes_per_s


def break_even_tokens(shape: ModelShape, set_up: SetUp, hardware: Hardware, attended: float = 0.0) -> float:
    """Tokens per GPU and micro-step below which communication takes longer than computing; 0 where there is none."""
    if hardware.num_gpus == 1 or hardware.chip is None:
        return 0.0
    communicate = communicate_s(shape, set_up.zero_stage, hardware, trained_share(shape, set_up))
    return communicate / compute_s_per_token(shape, attended, hardware, set_up.recompute, bool(set_up.adapter))


def step_time(shape: ModelShape, set_up: SetUp, load: StepLoad, hardware: Hardware) -> StepTime:
    """Of the fullest rank."""
    compute = load.tokens * compute_s_per_token(shape, load.attended, hardware, set_up.recompute, bool(set_up.adapter))
    if hardware.chip is None:
        return StepTime(compute, 0.0, 0.0)
    compute = max(compute, load.micro_steps * shape.num_hidden_layers * _BLOCK_S)
    trained = trained_share(shape, set_up)
    size, n = float(shape.parameters) * trained, hardware.num_gpus
    owned = size / n if set_up.zero_stage else size
    communicate = load.micro_steps * communicate_s(shape, set_up.zero_stage, hardware, trained)
    if set_up.zero_stage in (1, 2):  # the updated weights, once a step
        communicate += communicate_s(shape, 2, hardware, trained)
    update = _STEP_BYTES * owned / hardware.chip.hbm_bytes_per_s
    if set_up.offload:
        ranks = min(n, hardware.gpus_per_node)
        moved = owned * (4 * load.micro_steps + 2) / _PCIE_BYTES_PER_S  # fp32 gradients down after each micro-step, bf16 weights up
        update = moved + ranks * owned * _CPU_ADAM_S  # ranks of a node share its cores
    time = StepTime(compute, communicate, update)
    return StepTime(*(part / hardware.speed for part in (time.compute, time.communicate, time.update)))


def reading_s(
    shape: ModelShape, zero_stage: int, row_tokens: int, tokens: int, attended: float, hardware: Hardware, passes: int = 1
) -> float:
    """Of so many tokens by all ranks together in so many passes, forward alone, a third of training them; under ZeRO-3 all weights are gathered once for each row (2 bytes in bf16).
    `hardware`: in the precision that is read in."""
    compute = tokens / hardware.num_gpus * compute_s_per_token(shape, attended, hardware, recompute=False) / 3
    if hardware.chip is None:
        return compute
    rows = max(passes, -(-tokens // (row_tokens * hardware.num_gpus))) if zero_stage == 3 else 0
    gathered = rows * communicate_s(shape, 3, hardware, trained=0.0) / 2  # a step gathers them twice
    return (max(compute, gathered) + _EXPOSED * min(compute, gathered)) / hardware.speed
