"""GPUs and the machines they stand in: what the cost model knows of them, from data sheets, and one fitted number each."""

import re
from dataclasses import dataclass, replace
from typing import Any

import yaml

from console import UserError
from trainer.network.flops import peak_flops

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
    told_flops: float | None = None
    """Of a chip that the user describes."""

    @property
    def peak_flops(self) -> float:
        """Dense bf16, FLOPs a second."""
        peak = self.told_flops or peak_flops(self.name)
        assert peak is not None, f"{self.name}: holds no name of _PEAKS in trainer/network/flops.py"
        return peak


_FITTED_A100, _FITTED_H100 = 0.708, 0.544
_PCIE4 = 32e9
"""GPUs without links of their own talk over PCIe 4.0 × 16."""

# Memory is what torch calls the total capacity (the least that its messages show for the chip); its bandwidth and the links are the makers' figures,
# each named beside its row; peaks: trainer/network/flops.py. NVLink's are for both ways there, one way here.
# Networks: 1600 Gb/s a node of A100s, 8 × 400 Gb/s one of H100s and later, 100 Gb/s where cards stand in ordinary servers.
# Only A100 and H100 have published rows to be fitted to; all others take the H100's efficiency, the lower of the two.
CHIPS = {
    chip.name: chip
    for chip in (
        # nvidia.com/en-us/data-center/a100: SXM 1,555 and 2,039 GB/s, 312 TFLOPS, NVLink 600 GB/s
        Chip("A100-40G", 39.4 * GIB, 1.555e12, 300e9, 200e9, 144 * GIB, _FITTED_A100),
        Chip("A100-80G", 79.1 * GIB, 2.039e12, 300e9, 200e9, 144 * GIB, _FITTED_A100),
        # nvidia.com/en-us/data-center/h100: SXM 3.35 TB/s, 1,979 TFLOPS with sparsity, NVLink 900 GB/s
        Chip("H100", 79.1 * GIB, 3.35e12, 450e9, 400e9, 240 * GIB, _FITTED_H100),
        # nvidia.com/en-us/data-center/h200: 141 GB, 4.8 TB/s, 1,979 TFLOPS with sparsity, NVLink 900 GB/s
        Chip("H200", 139.7 * GIB, 4.8e12, 450e9, 400e9, 240 * GIB, _FITTED_H100),
        # HGX H20, as its resellers quote the product brief (NVIDIA keeps no public page): 96 GB, 4.0 TB/s, 148 TFLOPS, NVLink 900 GB/s
        Chip("H20", 95.0 * GIB, 4.0e12, 450e9, 400e9, 240 * GIB, _FITTED_H100),
        # NVIDIA GH200 datasheet 2705455: 96 GB of HBM3, 4 TB/s, 990 TFLOPS; 480 GB of LPDDR5X; NVLink as the H100's
        Chip("GH200", 94.5 * GIB, 4.0e12, 450e9, 400e9, 480e9, _FITTED_H100),
        # NVIDIA DGX B200 datasheet: eight with 1,440 GB, 64 TB/s, 36 PFLOPS with sparsity; NVLink 1.8 TB/s each
        Chip("B200", 178.3 * GIB, 8.0e12, 900e9, 400e9, 240 * GIB, _FITTED_H100),
        # AMD Instinct MI300X data sheet: 192 GB, 5.3 TB/s, 1,307.4 TFLOPS; seven links of 128 GB/s both ways
        Chip("MI300X", 191.5 * GIB, 5.3e12, 448e9, 400e9, 240 * GIB, _FITTED_H100),
        # nvidia.com/en-us/data-center/l40s: 48 GB, 864 GB/s, 362.05 TFLOPS, PCIe 4.0 × 16
        Chip("L40S", 44.3 * GIB, 864e9, _PCIE4, 12.5e9, 96 * GIB, _FITTED_H100),
        # NVIDIA A10 datasheet: 24 GB, 600 GB/s, 125 TFLOPS, PCIe 4.0 × 16
        Chip("A10", 21.9 * GIB, 600e9, _PCIE4, 12.5e9, 64 * GIB, _FITTED_H100),
        # NVIDIA Ada GPU architecture whitepaper 2.1, appendix A: 24 GB, 1,008 GB/s, 165.2 TFLOPS with sums in FP32; no links
        Chip("RTX-4090", 23.5 * GIB, 1.008e12, _PCIE4, 12.5e9, 64 * GIB, _FITTED_H100),
        # NVIDIA Ampere GA102 whitepaper 2.1, appendix A: 24 GB, 936 GB/s, 71 TFLOPS with sums in FP32; a pair may have a bridge of 112.5 GB/s
        Chip("RTX-3090", 23.5 * GIB, 936e9, _PCIE4, 12.5e9, 64 * GIB, _FITTED_H100),
    )
}
_ALSO = {
    "A100": "A100-80G", "H100-80G": "H100", "A800": "A100-80G", "H200-141G": "H200", "H20-96G": "H20", "GH200-96G": "GH200", "GH200-480G": "GH200",
    "B200-180G": "B200",
    "MI300X-192G": "MI300X", "L40S-48G": "L40S", "A10-24G": "A10", "4090": "RTX-4090", "RTX4090": "RTX-4090", "3090": "RTX-3090", "RTX3090": "RTX-3090",
}  # fmt: skip
MOST_GPUS = 16384
"""More is a slip of the finger; and a step's items would not go round."""


_FP32_FLOPS = {
    "A100-40G": 19.5e12, "A100-80G": 19.5e12, "H100": 67e12, "H200": 67e12, "H20": 44e12, "GH200": 67e12, "B200": 80e12, "MI300X": 163.4e12, "L40S": 91.6e12,
    "A10": 31.2e12, "RTX-4090": 82.6e12, "RTX-3090": 35.6e12,
}  # fmt: skip
"""From the same sheets: outside the matrix units. Of a chip that the user describes a sixteenth of its peak, as the A100's."""


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
    storage_bytes_per_s: float = 5e9
    """Of the shared storage, all readers and writers together: assumed, where neither `--storage` nor preflight tells."""
    process_bytes_per_s: float = 1e9
    """Of one process there: assumed likewise."""
    storage_told: str = "assumed; --storage, or preflight, tells"
    """Where the two come from, for people."""

    @property
    def num_nodes(self) -> int:
        return -(-self.num_gpus // self.gpus_per_node)

    def with_gpus(self, count: int) -> "Hardware":
        """The same machines, fewer of their GPUs: whole nodes first."""
        return replace(self, num_gpus=count)

    def in_precision(self, fp32: bool) -> "Hardware":
        """As the time of a step meets it. In fp32 without TF32, which nothing here turns on, products take the ordinary units and twice as many bytes travel."""
        if not fp32 or self.chip is None:
            return self
        chip, links = self.chip, self.chip.nvlink_bytes_per_s / 2
        slower = replace(chip, told_flops=_FP32_FLOPS.get(chip.name, chip.peak_flops / 16), nvlink_bytes_per_s=links)
        return replace(self, chip=slower, network_bytes_per_s=self.network_bytes_per_s / 2)

    def __str__(self) -> str:
        if self.chip is None:
            return f"{self.num_gpus} CPU worker{'s' if self.num_gpus > 1 else ''}"
        return f"{self.num_gpus}×{self.chip.name}"


def parse_gpus(text: str) -> tuple[int, Chip]:
    """ "16xH100" → (16, H100); "8x{name: X, memory: 24, tflops: 165, bandwidth: 1008}" of any other. UserError for what is neither."""
    match = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?(\{.*\}|[\w-]+)", text.strip(), re.IGNORECASE)
    if not match or not int(match[1] or 1):
        raise UserError(f"--gpus {text}: expected a number and a kind, e.g. 16xH100 or 1xA100-80G")
    count = int(match[1] or 1)
    if count > MOST_GPUS:
        raise UserError(f"--gpus {text}: plans go up to {MOST_GPUS:,} GPUs")
    if match[2].startswith("{"):
        return count, _described(match[2], text)
    wanted = re.sub(r"^(NVIDIA|AMD|GEFORCE|INSTINCT)[-_]", "", match[2].upper()).replace("_", "-")
    wanted = re.sub(r"-(SXM\d?|HBM\d\w?|OAM)(?=-|$)", "", re.sub(r"GB(?=-|$)", "G", wanted))  # as drivers call them: A100-SXM4-80GB
    chip = CHIPS.get(_ALSO.get(wanted, wanted))
    if chip is None:
        raise UserError(
            f"--gpus {text}: nothing is known of {match[2]}; known: {', '.join(CHIPS)}; describe any other: "
            "--gpus '8x{name: X, memory: 24, tflops: 165, bandwidth: 1008}' (GiB, dense bf16 TFLOPS, GB/s)"
        )
    return count, chip


_DESCRIBED = {"memory": GIB, "tflops": 1e12, "bandwidth": 1e9, "link": 1e9}
"""What is told of a chip, and in which units."""


def _described(text: str, whole: str) -> Chip:
    """A chip from its data sheet: memory in GiB, dense bf16 TFLOPS, bandwidth of the memory in GB/s; link: GB/s one way between GPUs of a node."""
    try:
        told = yaml.safe_load(text)
    except yaml.YAMLError:
        told = None
    if not isinstance(told, dict) or (unknown := sorted(map(str, set(told) - {"name", *_DESCRIBED}))):
        what = f"{unknown[0]} is unknown" if isinstance(told, dict) else "not of the form {key: value, …}"
        raise UserError(f"--gpus {whole}: {what}; expected e.g. 8x{{name: X, memory: 24, tflops: 165, bandwidth: 1008}}")
    values: dict[str, float] = {}
    for key, unit in _DESCRIBED.items():
        value = _number(told.get(key, _PCIE4 / unit if key == "link" else None))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise UserError(
                f"--gpus {whole}: {key}: {'missing' if value is None else f'{value!r} is no number above 0'}; give GiB, TFLOPS and GB/s"
            )
        values[key] = value * unit
    name = str(told.get("name", "GPU"))
    return Chip(name, values["memory"], values["bandwidth"], values["link"], 12.5e9, 64 * GIB, _FITTED_H100, values["tflops"])


def _number(value: Any) -> Any:
    """1e3, which YAML takes for a text, as the number that it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


_FAMILIES = {"4090": "RTX-4090", "3090": "RTX-3090", **{name: name for name in ("GH200", "H200", "H100", "H20", "B200", "MI300X", "L40S")}}


def chip_of_device(name: str, memory_bytes: float) -> Chip | None:
    """The chip behind a driver's device name ("NVIDIA A100-SXM4-80GB"), or None."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    if words & {"A100", "A800"}:
        return CHIPS["A100-40G" if memory_bytes < 50 * GIB else "A100-80G"]
    if "A10" in words:
        return CHIPS["A10"]
    return next((CHIPS[chip] for family, chip in _FAMILIES.items() if family in words), None)


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
