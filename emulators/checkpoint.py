"""Reading published Samudra weights: what the file tells, and what it cannot.

A checkpoint is a `torch.save` of a dict whose entry "model" is the state dict; `ema_ckpt.pt`, with the
averaged weights, is the one to run.  Channels, widths, expansion, levels and the kind of normalisation
follow from keys and shapes.  Dilations, upsampling, the seam and the precision leave no trace in it, nor
do variables, grid and normalisation constants: they are arguments here, or belong to the emulator.

Three layouts are read: that of Samudra 2 and of the reproduction of version 1 (`unet.layers.N...`,
`decoder...`), the original version 1 (`layers.N...`, whose last entry is the decoder), and either of them
behind the `module.` of distributed training.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .unet import NetworkConfig, Norm, SamudraNet, Seam, Upsample

__all__ = ["CheckpointError", "downloaded", "load_network", "require_tensors", "sha256_of", "shortened"]

_BLOCK = re.compile(r"unet\.layers\.(\d+)\.convblock\.0\.weight")
_ADVICE = (
    "use the ema_ckpt.pt of huggingface.co/M2LInES/Samudra2, a file of M2LInES/Samudra, "
    "or torch.save({'model': network.state_dict()}, path)"
)


class CheckpointError(ValueError):
    """A file that holds no network of the kind, or not the one asked for."""


def load_network(
    path: str | PathLike[str],
    *,
    dilations: tuple[int, ...] | None = None,
    upsample: Upsample | None = None,
    norm: Norm | None = None,
    seam: Seam = "published",
    bf16: bool = False,
    residual: bool = False,
) -> SamudraNet:
    """Load a Samudra network from a checkpoint, ready to run.

    Args:
        path: file written by `torch.save`: a dict with "model", or a bare state dict.
        dilations: of each level; 1, 2, 4, 8, ... as published if None.
        upsample: "periodic" if None, but "plain" for an expansion of 4, that is for version 1.
        norm: if None, "batch" where the file has running statistics, else "instance".
        seam: "published" fills the column that odd widths lose by zeros, as in training.
        bf16: run the U-Net under bfloat16 autocast, as 1/2 and 1/4 degree Samudra 2 were trained.
        residual: for a network trained to predict changes; none was published.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is not a checkpoint, or does not hold exactly such a network.
        ValueError: if the arguments do not suit the number of levels.
    """
    state = _published_keys(_read(Path(path)), path)
    config = _config(state, path, dilations, upsample, norm, seam, bf16, residual)
    with torch.device("meta"):  # no memory and no random initial weights: all of them are replaced
        network = SamudraNet(config)
    require_tensors(network.state_dict(), state, path, "Samudra U-Net with one block per entry", _ADVICE)
    # Cloned, because tensors of a mapped file would follow the file.
    network.load_state_dict({key: tensor.clone() for key, tensor in state.items()}, assign=True)
    return network.eval()


def downloaded(repository: str, file: str, revision: str | None) -> Path:
    """A file of a Hugging Face repository, from the local cache if it is there."""
    from huggingface_hub import hf_hub_download  # only who downloads needs it

    return Path(hf_hub_download(repository, file, revision=revision))


def sha256_of(path: Path) -> str:
    """The identity of a file of weights, for provenance."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> Mapping[str, Tensor]:
    """Return the state dict in the file, whatever its keys."""
    if not path.is_file():
        raise FileNotFoundError(f"wanted a Samudra checkpoint at {path}, but there is no such file; {_ADVICE}")
    try:
        # Two thirds of a published file are the optimiser's: mapped, they are never read.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged files fail in every possible way
        raise CheckpointError(
            f"wanted a file written by torch.save, but {path} cannot be read as one "
            f"({type(error).__name__}: {_first_line(error)}); download it again or {_ADVICE}"
        ) from error
    state = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(map(_is_entry, state.items())):
        raise CheckpointError(
            f"wanted a state dict, or a dict with one at 'model', in {path}, but got {_describe(content)}; {_ADVICE}"
        )
    return state


def _published_keys(state: Mapping[str, Tensor], path: str | PathLike[str]) -> dict[str, Tensor]:
    """Strip the prefix of distributed training and rename the original version 1."""
    named = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    if any(key.startswith("layers.") for key in named):
        # The original has one flat list, whose last entry is the decoder and alone is no block.
        named = {re.sub(r"^layers\.\d+\.(weight|bias)$", r"decoder.\1", k): t for k, t in named.items()}
        named = {re.sub(r"^layers\.", "unet.layers.", k): t for k, t in named.items()}
    blocks = sum(_BLOCK.fullmatch(key) is not None for key in named)
    if blocks < 3 or blocks % 2 == 0 or "decoder.weight" not in named:
        raise CheckpointError(
            f"wanted keys of a Samudra U-Net, such as unet.layers.0.convblock.0.weight of an odd number of "
            f"blocks and decoder.weight, but {path} has {shortened(state)}; {_ADVICE}"
        )
    return named


def _config(
    state: Mapping[str, Tensor],
    path: str | PathLike[str],
    dilations: tuple[int, ...] | None,
    upsample: Upsample | None,
    norm: Norm | None,
    seam: Seam,
    bf16: bool,
    residual: bool,
) -> NetworkConfig:
    """Put together what the tensors tell and what was said."""
    levels = sum(_BLOCK.fullmatch(key) is not None for key in state) // 2
    try:
        widths = tuple(len(state[f"unet.layers.{2 * i}.convblock.6.weight"]) for i in range(levels))
        hidden, inputs = state["unet.layers.0.convblock.0.weight"].shape[:2]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"wanted the encoder blocks unet.layers.0 to unet.layers.{2 * levels - 2}, each with its "
            f"convblock.0.weight and convblock.6.weight, but {path} fails at {error}; {_ADVICE}"
        ) from error
    found: Norm = "batch" if "unet.layers.0.convblock.1.running_mean" in state else "instance"
    return NetworkConfig(
        in_channels=inputs,
        out_channels=len(state["decoder.weight"]),
        widths=widths,
        dilations=dilations or tuple(2**i for i in range(levels)),
        expansion=hidden // inputs,
        norm=norm or found,
        upsample=upsample or ("plain" if hidden // inputs == 4 else "periodic"),
        seam=seam,
        bf16=bf16,
        residual=residual,
    )


def require_tensors(
    wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], path: str | PathLike[str], what: str, advice: str
) -> None:
    """Raise CheckpointError, naming the first differences, unless both have the same keys and shapes.

    Args:
        wanted, got: state dicts, of the network and of the file.
        path: of the file.
        what: it should hold, such as "GenSIM network".
        advice: what to do.
    """
    found = {
        "lacks": [key for key in wanted if key not in got],
        "has besides": [key for key in got if key not in wanted],
        "has other shapes for": [
            f"{key} {tuple(got[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in wanted.items()
            if key in got and got[key].shape != tensor.shape
        ],
    }
    faults = "; ".join(f"{fault} {shortened(keys)}" for fault, keys in found.items() if keys)
    if faults:
        raise CheckpointError(f"wanted exactly the {len(wanted)} tensors of a {what}, but {path} {faults}; {advice}")


def _is_entry(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a dict with {shortened(map(repr, content))}" if content else "an empty dict"
    return f"a {type(content).__name__}"


def shortened(names: Iterable[str], most: int = 4) -> str:
    """Return the first names and the number of the others."""
    listed = list(names)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120]
