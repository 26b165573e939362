"""Load published weights of an image network from a file that the user names.

The large networks that DAMSM and STREAM borrow are optional, and so are their weights: nothing is
downloaded. What a file holds is compared with the network, name by name and shape by shape, before
anything is copied.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mirrorgan_fast.errors import InputError
from mirrorgan_fast.tensor_files import check_numbers, read_safetensors, read_torch


def load_backbone(module: nn.Module, path: str | Path, ignore: tuple[str, ...] = ()) -> None:
    """Copy the weights in a file into ``module``: all of them or, on an error, none.

    Args:
        module: the network; its parameters keep their dtype and device.
        path: a state dict written by ``torch.save`` (.pth, .pt) or a .safetensors file.
        ignore: beginnings of names that the file may have although the module does not.

    Raises:
        InputError: the file cannot be read, or a name or a shape differs; it names the first.
    """
    path = Path(path)
    found = _read(path)
    expected = module.state_dict()
    weights = {}
    for name, tensor in expected.items():
        if name in found:
            if found[name].shape != tensor.shape:
                shapes = f"{tuple(found[name].shape)}, not {tuple(tensor.shape)}"
                raise _misfit(module, path, f"{name} has the shape {shapes}")
            weights[name] = found[name]
        # Files of before PyTorch 0.4.1, which torchvision still offers, lack this counter; it is
        # of use only to a batch norm without momentum.
        elif not name.endswith(".num_batches_tracked"):
            raise _misfit(module, path, f"{name} is missing")
    for name in found:
        if name not in expected and not name.startswith(ignore):
            raise _misfit(module, path, f"{name} is unknown")
    module.load_state_dict(weights)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise InputError(f"{path}: weights come as .pth, .pt or .safetensors; convert the file")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content: Any = read_torch(path)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise InputError(f"{path}: holds no state dict; save model.state_dict() with torch.save")
    check_numbers(content, path)
    return content


def _misfit(module: nn.Module, path: Path, difference: str) -> InputError:
    return InputError(
        f"{path}: does not fit {type(module).__name__}: {difference}; "
        "give a file of torchvision's weights for this network"
    )
