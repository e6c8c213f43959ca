"""Chips by the names that people and drivers give them."""

import re
from dataclasses import replace

import pytest

from cluster.cost.chips import CHIPS, GIB, chip_of_device, make_hardware, parse_gpus
from cluster.setups import offer
from tests.cluster.test_plan import asked
from tests.helpers.refusals import refusal


def test_chips_by_their_device_names() -> None:
    assert chip_of_device("NVIDIA A100-SXM4-40GB", 40e9) is CHIPS["A100-40G"]
    assert chip_of_device("NVIDIA A100-SXM4-80GB", 84e9) is CHIPS["A100-80G"]
    assert chip_of_device("NVIDIA H100 80GB HBM3", 84e9) is CHIPS["H100"]
    assert chip_of_device("Tesla V100", 16e9) is None


@pytest.mark.parametrize(
    ("text", "chip", "tflops"),
    [
        ("8x4090", "RTX-4090", 165), ("2xRTX4090", "RTX-4090", 165), ("GeForce_RTX_3090", "RTX-3090", 71), ("4xL40S", "L40S", 362), ("A10", "A10", 125),
        ("8xB200", "B200", 2250), ("8xMI300X", "MI300X", 1307), ("8xAMD-MI300X-192GB", "MI300X", 1307), ("8xH20", "H20", 148), ("GH200", "GH200", 989),
        ("8xNVIDIA-H200", "H200", 989), ("1xA100-40GB", "A100-40G", 312),
        ("8xNVIDIA-A100-SXM4-80GB", "A100-80G", 312), ("8xNVIDIA-H100-80GB-HBM3", "H100", 989), ("8xh100-sxm5", "H100", 989), ("NVIDIA-GH200-480GB", "GH200", 989),
    ],
)  # fmt: skip
def test_chips_by_name(text: str, chip: str, tflops: float) -> None:
    assert parse_gpus(text)[1] is CHIPS[chip] and CHIPS[chip].peak_flops == tflops * 1e12


def test_a_chip_from_its_data_sheet() -> None:
    count, chip = parse_gpus("8x{name: X, memory: 24, tflops: 165, bandwidth: 1008}")
    assert (count, chip.name, chip.memory_bytes, chip.peak_flops, chip.hbm_bytes_per_s) == (8, "X", 24 * GIB, 165e12, 1008e9)
    assert parse_gpus("8x{name: X, memory: 24, tflops: 1.65e2, bandwidth: 1.008e3}") == (8, chip), "numbers that YAML takes for texts"
    same = CHIPS["RTX-4090"]
    known, told = (make_hardware(8, one) for one in (same, replace(same, name="mine", told_flops=165e12)))
    question, _ = asked()
    assert offer(question, question.file, told).seconds == offer(question, question.file, known).seconds
    slower = parse_gpus("8x{memory: 23.5, tflops: 80, bandwidth: 1008}")[1]
    assert (offer(question, question.file, make_hardware(8, slower)).seconds or 0) > (offer(question, question.file, known).seconds or 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("8xV9000", "nothing is known of V9000; known: A100-40G, .*; describe any other"), ("0xH100", "expected a number and a kind"),
        ("8x{memory: 24}", "tflops: missing"), ("8x{memory: 0, tflops: 1, bandwidth: 1}", "memory: 0 is no number above 0"),
        ("8x{memory: 24, tflop: 1, bandwidth: 1}", "tflop is unknown"), ("8x{memory}", "memory: None|memory: missing"), ("8x{[}", "not of the form"),
        ("8x{memory: 24, tflops: many, bandwidth: 1}", "tflops: 'many' is no number"), ("99999999xH100", "plans go up to 16,384 GPUs"),
    ],
)  # fmt: skip
def test_gpus_that_are_none(text: str, reason: str) -> None:
    assert re.search(f"^--gpus .*(?:{reason})", refusal(lambda: parse_gpus(text)))


@pytest.mark.parametrize(
    ("device", "chip"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX-4090"), ("NVIDIA A10", "A10"), ("AMD Instinct MI300X", "MI300X"), ("NVIDIA H20", "H20"), ("NVIDIA H200", "H200"),
        ("NVIDIA GH200 480GB", "GH200"), ("NVIDIA L40S", "L40S"), ("NVIDIA B200", "B200"), ("NVIDIA A10G", None), ("NVIDIA L4", None),
    ],
)  # fmt: skip
def test_device_names_of_more_chips(device: str, chip: str | None) -> None:
    assert chip_of_device(device, 24 * GIB) is (CHIPS[chip] if chip else None)
