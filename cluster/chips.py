"""GPUs and the machines they stand in: what the cost model knows of them, from data sheets, and one fitted number each."""

import re
from dataclasses import dataclass, replace

from console import UserError
from trainer.flops import peak_flops

GIB = 2**30
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Chip:
    """One kind of GPU. Bandwidths are in bytes a second and one direction."""

    name: str
    memory_bytes: float
    """What the driver shows, not what the box says."""
    hbm_bytes_per_s: float
    nvlink_bytes_per_s: float
    node_network_bytes_per_s: float
    """Of a node of eight, all links together, where nothing else is said."""
    host_bytes: float
    """Host memory per GPU of the usual machines, where nothing else is said."""
    efficiency: float
    """Share of the peak that matrix products reach: the one fitted number (benchmarks/cost_model.py)."""

    @property
    def peak_flops(self) -> float:
        """Dense bf16, FLOPs a second."""
        peak = peak_flops(self.name)
        assert peak is not None
        return peak


# Data sheets: NVIDIA A100 (40 and 80 GB SXM), H100 SXM, H200 SXM. Networks: 1600 Gb/s a node of A100s, 8 × 400 Gb/s one of H100s.
# H200 takes the H100's fitted efficiency: same cores, no published rows of its own.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("A100-40G", 39.4 * GIB, 1.555e12, 300e9, 200e9, 144 * GIB, 0.708),
        Chip("A100-80G", 79.1 * GIB, 2.039e12, 300e9, 200e9, 144 * GIB, 0.708),
        Chip("H100", 79.1 * GIB, 3.35e12, 450e9, 400e9, 240 * GIB, 0.544),
        Chip("H200", 139.8 * GIB, 4.8e12, 450e9, 400e9, 240 * GIB, 0.544),
    )
}
_ALSO = {"A100": "A100-80G", "H100-80G": "H100", "A800": "A100-80G", "H200-141G": "H200"}


@dataclass(frozen=True)
class Hardware:
    """So many GPUs of one kind, in nodes. `chip` None: CPU workers, whose speed nothing but a measurement tells."""

    chip: Chip | None
    num_gpus: int
    gpus_per_node: int
    host_bytes: float
    """Memory of one node."""
    disk_bytes: float | None = None
    """Free on the shared storage; None: not known."""
    network_bytes_per_s: float = 0.0
    """Of one node, all links together."""
    speed: float = 1.0
    """Measured over modelled speed (`--measure`)."""
    seconds_per_flop: float | None = None
    """Measured, of one CPU worker."""

    @property
    def num_nodes(self) -> int:
        return -(-self.num_gpus // self.gpus_per_node)

    def with_gpus(self, count: int) -> "Hardware":
        """The same machines, fewer of their GPUs: whole nodes first."""
        return replace(self, num_gpus=count)

    def __str__(self) -> str:
        if self.chip is None:
            return f"{self.num_gpus} CPU worker{'s' if self.num_gpus > 1 else ''}"
        return f"{self.num_gpus}×{self.chip.name}"


def parse_gpus(text: str) -> tuple[int, Chip]:
    """ "16xH100" → (16, H100). UserError for what is not of that form, or not known."""
    match = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?([\w-]+)", text.strip(), re.IGNORECASE)
    if not match or match[1] == "0":
        raise UserError(f"--gpus {text}: expected a number and a kind, e.g. 16xH100 or 1xA100-80G")
    wanted = match[2].upper().removeprefix("NVIDIA-")
    wanted = re.sub(r"GB$", "G", wanted)
    chip = CHIPS.get(_ALSO.get(wanted, wanted))
    if chip is None:
        raise UserError(f"--gpus {text}: nothing is known of {match[2]}; known: {', '.join(CHIPS)}")
    return int(match[1] or 1), chip


def chip_of_device(name: str, memory_bytes: float) -> Chip | None:
    """The chip behind a driver's device name ("NVIDIA A100-SXM4-80GB"), or None."""
    family = next((known for known in ("H200", "H100", "A100", "A800") if known in name), None)
    if family in ("A100", "A800"):
        return CHIPS["A100-40G" if memory_bytes < 50 * GIB else "A100-80G"]
    return CHIPS.get(family or "")


def make_hardware(
    num_gpus: int,
    chip: Chip,
    gpus_per_node: int | None = None,
    host_gib: float | None = None,
    disk_gib: float | None = None,
    network_gbit: float | None = None,
) -> Hardware:
    """Nodes of eight (or all GPUs in one, where there are fewer), with the usual memory and network unless told otherwise."""
    per_node = gpus_per_node or min(num_gpus, GPUS_PER_NODE)
    host = host_gib * GIB if host_gib else per_node * chip.host_bytes
    network = network_gbit * 1e9 / 8 if network_gbit else chip.node_network_bytes_per_s
    return Hardware(chip, num_gpus, per_node, host, disk_gib * GIB if disk_gib else None, network)
