"""Dense bf16 peaks of graphics cards, by the names that CUDA gives them."""

from __future__ import annotations

DENSE_BF16_TFLOPS = {
    "NVIDIA A10": 125.0,
    "NVIDIA A100": 312.0,
    "NVIDIA A30": 165.0,
    "NVIDIA B200": 2250.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.0,
}
"""Of NVIDIA's data sheets; those that give the figure with sparsity alone (H100, H200, L4, B200)
halved."""


OTHER_CARDS = {"MIG", "NVL"}
"""Words of a name that make it another card than the rest of it says: a part of the card, and
boards that are slower by figures we have not read in a data sheet."""


def peak_tflops(name: str) -> float | None:
    """Of the card whose name begins so, the longest such name; None: not in the table."""
    if OTHER_CARDS & set(name.split()):
        return None
    known = [key for key in DENSE_BF16_TFLOPS if f"{name} ".startswith((f"{key} ", f"{key}-"))]
    return DENSE_BF16_TFLOPS[max(known, key=len)] if known else None
