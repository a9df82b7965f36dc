"""Chips are found by the kind that JAX names; a topology that is none is refused with advice."""

import pytest

from t5x_style.parallel.topology import chip_of, topology


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
    ],
)
def test_peak_of_a_device_kind(kind, peak):
    chip = chip_of(kind)
    assert chip is not None
    assert chip.peak_flops_per_sec == peak


def test_a_kind_that_is_not_known_has_no_chip():
    assert chip_of("cpu") is None


@pytest.mark.parametrize("name", ["v5p", "v5p:", "h300:8", "8", "v5p:4x"])
def test_what_is_no_topology_is_refused_with_an_example(name):
    with pytest.raises(ValueError, match=r"plan\.plan\.topology = .*v5p:4x4x4.*h200"):
        topology(name)
