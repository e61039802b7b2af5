"""Devices, checked before anything is put on them."""

from __future__ import annotations

import torch

from ht_ray.errors import SettingError

__all__ = ["check_device"]


def check_device(where: str, device: torch.device | str) -> torch.device:
    """Return `device` if tensors can be put on it.

    Parameters
    ----------
    where : str
        What is being set, as the user knows it.
    device : torch.device or str
        ``"auto"`` is a GPU if there is one, and otherwise the CPU.

    Raises
    ------
    SettingError
        If torch knows no such device, or this machine has none.

    Examples
    --------
    >>> check_device("DrQAgent: device", "cpu")
    device(type='cpu')
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch built without CUDA
        reason = str(error).partition("\n")[0]
        raise SettingError(f"{where} = {str(device)!r}: there is no such device here: {reason}") from error
    return found
