"""What a measurement on a GPU needs: to wait for it, and its peak memory. Imports nothing but torch."""

from typing import Optional

import torch


def synchronize() -> None:
    """Waits for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(device: str) -> Optional[float]:
    """Peak memory that PyTorch took of a GPU since it was last asked, in GB; None for a CPU."""
    if not device.startswith("cuda"):
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return round(float(peak), 4)


def name(device: str) -> Optional[str]:
    """The GPU's name; None for a CPU."""
    return str(torch.cuda.get_device_name()) if device.startswith("cuda") else None
