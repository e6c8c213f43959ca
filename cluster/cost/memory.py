"""What a set-up needs: GPU memory, host memory with the peak of a save, and disk. Formulae only; figures in bytes.

It follows what trainer/step/set_up.py, trainer/step/engine.py, trainer/store/checkpoint.py and trainer/worker.py do, not ZeRO's papers alone: gradients are summed in fp32,
saves go through a kept host buffer, weights are read and written by shares.
"""

from dataclasses import dataclass

from cluster.cost.chips import GIB, Hardware
from cluster.cost.model_shape import ModelShape

_BUCKET = (
    500_000_000  # DeepSpeed's reduce_bucket_size, elements; ZeRO 2 and 3 and all with offload allocate it whole, for the smallest model
)
_LIVE = 1_000_000_000  # stage3_max_live_parameters, elements
_SUB_GROUP = 1_000_000_000  # sub_group_size of ZeRO 3, elements
_CONTEXT_BYTES = 2.0 * GIB  # CUDA context, NCCL's buffers, kernels: assumed, not measured here
_FRAGMENTED = 0.05  # of what comes and goes in a step: assumed
_PROCESS_BYTES = 4.0 * GIB  # a rank's Python, torch with CUDA, its stream: assumed
_NODE_BYTES = 6.0 * GIB  # Ray's daemons and object store, the operating system: assumed
_CPU_PROCESS_BYTES = 1.5 * GIB  # the same on CPUs: 0.93 GiB measured for the demo's ranks
_CPU_NODE_BYTES = 2.0 * GIB


@dataclass(frozen=True)
class SetUp:
    """How the trainer is set; `compensated` is priced but cannot be chosen: trainer/config.py knows no such thing yet."""

    zero_stage: int
    row_tokens: int
    recompute: bool = False
    offload: bool = False
    adapter: int = 0
    """LoRA on all linear layers of this rank, the model frozen in bf16; 0: all weights are trained. Other adapters count as LoRA."""
    on_experts: bool = True
    """Whether the adapter is beside the experts too, where the model has any."""
    compensated: bool = False
    """bf16 weights, gradients and moments with Kahan compensation: 2 + 2 + 2 + 4 bytes a parameter, no fp32 masters."""
    held: bool = False
    """Whether a stage holds weights near its start (anchor.ewc): that start and how much each matters, 8 bytes a parameter."""

    @property
    def available(self) -> bool:
        return not self.compensated

    def __str__(self) -> str:
        states = f"LoRA of rank {self.adapter}" if self.adapter else "compensated bf16 states" if self.compensated else "fp32 states"
        where = " in host memory" if self.offload else ""
        return f"ZeRO-{self.zero_stage}, {states}{where}{', recompute' if self.recompute else ''}, rows of {self.row_tokens:,}"


def trained_share(shape: ModelShape, set_up: SetUp) -> float:
    """Of the model's weights: 1, or what LoRA puts beside every linear layer of a block, rank × (inputs + outputs).

    Of experts too, each of a layer's; gate and up are one weight in the network, which peft gives twice the rank.
    """
    if not set_up.adapter:
        return 1.0
    r, d, f = set_up.adapter, shape.hidden_size, shape.intermediate_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    attention = r * (2 * (d + queries) + 2 * (d + keys)) if queries else 0
    states = r * (d + 2 * shape.inner_size + shape.inner_size + d) if shape.inner_size else 0
    mlp = 3 * r * (d + f) if f else 0
    if shape.num_experts:
        e, one = shape.num_experts, shape.moe_intermediate_size
        shared = shape.shared_intermediate_size
        mlp = r * (d + e) + (3 * r * (d + shared) if shared else 0)
        mlp += e * (2 * r * (d + 2 * one) + r * (one + d)) if set_up.on_experts else 0
    with_attention, with_states = _layers(shape)
    return (with_attention * attention + with_states * states + shape.num_hidden_layers * mlp) / shape.parameters


def _layers(shape: ModelShape) -> tuple[int, int]:
    """How many have attention, how many a state space; in some hybrids each has both."""
    layers = shape.num_hidden_layers
    with_attention = layers if shape.attention_layers is None else shape.attention_layers
    if not shape.inner_size:
        return with_attention, 0
    return with_attention, layers if with_attention in (0, layers) else layers - with_attention


@dataclass(frozen=True)
class GpuMemory:
    """Of one GPU."""

    weights: float
    gradients: float
    states: float
    activations: float
    logits: float
    buffers: float
    """Reduce buckets, gathered parameters: what DeepSpeed keeps beside."""
    step: float
    """The optimiser's temporaries; they do not meet activations."""
    loading: float
    """Peak before the first step."""

    @property
    def kept(self) -> float:
        """Weights, gradients and states: ZeRO's formula."""
        return self.weights + self.gradients + self.states

    @property
    def total(self) -> float:
        moving = max(self.activations + self.logits + self.buffers, self.step)
        return max(self.kept + moving * (1 + _FRAGMENTED), self.loading) + _CONTEXT_BYTES


def gpu_memory(shape: ModelShape, set_up: SetUp, num_gpus: int, fp32: bool = False) -> GpuMemory:
    """One rank's. Bytes per parameter on n ranks, bf16 with fp32 masters and fp32 gradients: ZeRO 1 6 + 12/n, ZeRO 2 2 + 16/n, ZeRO 3 18/n.

    `fp32`: the trainer's precision on CPUs. States in host memory leave ZeRO 1's and 2's fp32 gradients here: DeepSpeed sums them where they
    are made. tests/numerics/test_held.py counts all this in real engines.
    """
    n, stage = num_gpus, set_up.zero_stage
    wide = 4 if fp32 else 2
    trained = trained_share(shape, set_up)
    size = float(shape.parameters)
    weights = wide * size * (1 + trained if set_up.adapter else 1) / (n if stage == 3 else 1)
    gradients = (2 if set_up.compensated else 4) * trained * size / (n if stage >= 2 else 1)
    masters = 0 if fp32 and stage == 0 else 4  # ZeRO 1 to 3 copy fp32 weights too
    states = ((6 if set_up.compensated else 8 + masters) + 8 * set_up.held) * trained * size / (n if stage >= 1 else 1)
    if set_up.offload:
        gradients, states = 0.0 if stage == 3 else gradients, 0.0
    share = trained * size / (n if stage >= 1 else 1)
    step = 0.0 if set_up.offload else 4.0 * (min(share, _SUB_GROUP) if stage == 3 else share)  # AdamW's square root
    used, largest = min(_BUCKET, size), shape.largest_parameter
    bucket = used if fp32 else _BUCKET  # on CPUs memory that is never touched costs nothing
    buffers = wide * (bucket if stage >= 2 else used)
    if stage == 3:
        buffers += wide * (used + max(min(_LIVE, size), largest))
    elif set_up.offload:
        buffers = (4 if stage == 1 else wide) * bucket + wide * largest
    loading = weights if stage == 3 else 4.0 * size  # built and filled in fp32, then rounded
    return GpuMemory(
        weights, gradients, states, activation_bytes(shape, set_up.row_tokens, set_up.recompute, wide) + expert_copies(shape, set_up, wide),
        logit_bytes(shape, set_up.row_tokens, wide), buffers, step, loading,
    )  # fmt: skip


def expert_copies(shape: ModelShape, set_up: SetUp, wide: int = 2) -> float:
    """Bytes that an adapter beside experts keeps for the backward pass: peft adds its product to all of a layer's experts, chosen or not, and the sum
    is kept; with recomputation that of one layer at a time. The product itself comes on top while it is added."""
    if not (set_up.adapter and set_up.on_experts and shape.num_experts):
        return 0.0
    layers = shape.num_hidden_layers
    return wide * shape.expert_parameters / layers * ((1 if set_up.recompute else layers) + 1)


def activation_bytes(shape: ModelShape, tokens: int, recompute: bool, wide: int = 2) -> float:
    """What a forward pass over a row keeps for the backward pass, of a decoder as transformers writes it.

    Per token and block: two norms keep their input in fp32, the normalised input and the output; attention keeps q, k, v and its
    output; the gated MLP keeps gate, its activation, up and their product, of experts those of the chosen ones and their inputs and outputs. A state
    space keeps its two inputs, the convolution, its activation, the step widths in fp32 and the output (the fused kernels of mamba-ssm, which make the
    states themselves again: assumed). With recomputation each block keeps its input only, and one block at a time is whole.
    tests/cluster/test_memory.py counts the same on a real model.
    """
    d, norm = shape.hidden_size, (4 + 2 * wide) * shape.hidden_size
    queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    attention, states = wide * (2 * queries + 2 * keys), (6 * wide + 4) * shape.inner_size
    mlp = 4 * wide * shape.mlp_width + (2 * wide * shape.num_experts_per_tok * d + 4 * shape.num_experts if shape.num_experts else 0)
    with_attention, with_states = _layers(shape)
    blocks = shape.num_hidden_layers * (2 * norm + mlp) + with_attention * attention + with_states * states
    if recompute:
        one = 2 * norm + mlp + max(attention if with_attention else 0, states if with_states else 0)
        return float(tokens * (wide * d * shape.num_hidden_layers + one + norm))
    return float(tokens * (blocks + norm))


LOGITS_AT_ONCE = 2**28
"""As many as trainer/kernels/linear_loss.py makes at a time."""


def logit_bytes(shape: ModelShape, tokens: int, wide: int = 2) -> float:
    """T·V·(2 + 4 + 4): logits, their fp32 copy, its gradient, where every token is a target (documents); questions need far fewer. Of more than are made at
    once a part, and beside it the head's gradient, summed in fp32 over the parts, each `wide`."""
    logits = tokens * shape.vocab_size
    if logits <= LOGITS_AT_ONCE or shape.whole_logits:
        return float(logits * (2 + 4 + 4))
    return float(LOGITS_AT_ONCE * (2 + 4 + 4) + shape.vocab_size * shape.hidden_size * (4 + wide))


@dataclass(frozen=True)
class HostMemory:
    """Of one node."""

    processes: float
    states: float
    """Offloaded masters, moments and gradients; of ZeRO 1 and 2 the bf16 weights on their way back too."""
    kept: float
    """Page-locked buffers of checkpoints and of a stage's weights: torch keeps them for the next stage."""
    loading: float
    """A stage's start from another's weights."""
    resuming: float
    """A start from a checkpoint: by processes that have saved nothing yet."""
    saving: float
    """What no buffer of those kept holds: pageable copies, tensors of hf/."""

    @property
    def peak(self) -> float:
        return self.processes + self.states + max(self.resuming, self.kept + max(self.loading, self.saving))


def host_memory(shape: ModelShape, set_up: SetUp, hardware: Hardware) -> HostMemory:
    """A node's share. Under every ZeRO stage a rank reads an n-th of the files (trainer/store/shares.py), and writes one; what it builds before is empty, and empty
    memory costs nothing. Page-locked buffers are rounded up to a power of two by torch's allocator."""
    n, ranks = hardware.num_gpus, min(hardware.gpus_per_node, hardware.num_gpus)
    size, trained = float(shape.parameters), trained_share(shape, set_up) * shape.parameters
    tensor, weights, checkpoint = 4.0 * shape.largest_parameter, 4 * size / n, 12 * trained / n
    units = (
        (3 if shape.num_experts else 2) * (2 if hardware.chip else 4) * shape.largest_parameter
    )  # that comes, that is written, that is cut
    pinned = hardware.chip is not None and not set_up.offload
    last = 0.0 if set_up.adapter else 4 * trained / n
    merged = 8 * size / n if set_up.adapter else 0.0  # listed, then copied; pageable
    ends = max(merged, merged / 2 + units)
    kept = power_of_two(checkpoint) + power_of_two(last) if pinned else 0.0
    saving = ends if pinned else max(checkpoint, last + ends)
    # With an adapter the weights that it is beside come from the stage before, whatever the checkpoint holds.
    resuming = checkpoint + (weights if set_up.adapter else 0) + tensor
    share = trained / n if set_up.zero_stage else trained
    states = (
        ranks * ((8 + 8 * set_up.held) * share + sum(map(power_of_two, offloaded_buffers(shape, set_up, share)))) if set_up.offload else 0.0
    )
    process, node = (_PROCESS_BYTES, _NODE_BYTES) if hardware.chip else (_CPU_PROCESS_BYTES, _CPU_NODE_BYTES)
    return HostMemory(ranks * process + node, states, ranks * kept, ranks * (weights + tensor), ranks * resuming, ranks * saving)


def offloaded_buffers(shape: ModelShape, set_up: SetUp, share: float) -> list[float]:
    """Bytes of what one rank keeps page-locked beside its moments (8 bytes a weight of its share, pageable): masters, gradients, and of ZeRO 1 and 2
    the bf16 weights on their way back and room for the largest parameter."""
    if set_up.zero_stage < 3:
        return [4 * share, 4 * share, 2 * share, 2.0 * shape.largest_parameter]
    pieces = min(share, _SUB_GROUP)
    return [*[4 * pieces] * max(1, round(share / pieces)), 4 * share, 4 * pieces]


def power_of_two(size: float) -> float:
    """The next power of two, at least one byte."""
    return float(1 << max(0, int(size) - 1).bit_length()) if size > 0 else 0.0


@dataclass(frozen=True)
class Disk:
    """On the shared storage, at the worst moment."""

    model: float
    """The hub's weights beside the run."""
    stages: float
    """Committed: fp32 weights and the bf16 copy of each."""
    checkpoints: float
    """Of the stage under way: what is kept, and the one being written."""

    @property
    def peak(self) -> float:
        return self.model + self.stages + self.checkpoints


def disk(shape: ModelShape, num_stages: int, keep: int, fp32: bool = False, trained: float = 1.0) -> Disk:
    """`num_stages`: different ones over all arms; none is removed before the exam has seen it. `keep`: trainer.checkpoint.keep;
    `trained`: see trained_share: a checkpoint holds what is trained, a stage all weights."""
    size = float(shape.parameters)
    wide = 4 if fp32 else 2
    return Disk(wide * size, num_stages * (4 + wide) * size, (keep + 1) * 12 * trained * size)
