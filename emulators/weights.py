"""Emulators as files: `export` writes one that needs nothing else, `load` reads it or a published checkpoint.

An exported file is safetensors: weights, statistics and grid as tensors, and layout, configuration and
provenance as JSON in its header. It is a third of a training checkpoint and cannot run code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .checkpoint import CheckpointError, downloaded, sha256_of
from .exports import FORMATS, described, halved, restored
from .gensim import GenSIM
from .published import published
from .regional import Regional
from .samudra import Samudra
from .trainable import Trainable


def export(
    emulator: Trainable, path: str | Path, *, half: bool = False, beside: str | Path | None = None, **provenance: Any
) -> Path:
    """Write an emulator as one safetensors file.

    Args:
        emulator: to write, a `Samudra`, `Regional` or `GenSIM`; how sea ice is run (`running`) is not kept.
        path: of the file; its folder must exist, an existing file is replaced.
        half: keep weights as float16, in half the space and with three digits; they are float32 again when loaded.
        beside: an exported file in the same folder that holds a residual model's first guess, which is then not
            written again; both files have to stay together.
        provenance: kept in the header, e.g. `data="..."`, `command="..."`.

    Raises TypeError for an emulator of another kind; ValueError for weights too large for float16, or for a file
    beside it that is not of its first guess.
    """
    header, tensors = described(emulator)
    if beside is not None:
        tensors = _without_first_guess(tensors, header, Path(beside), Path(path))
    tensors = halved(tensors) if half else tensors
    header |= {"polynya": version("polynya"), "provenance": provenance}
    part = Path(f"{path}.part")  # an interrupted export leaves the file before it
    # save_file leaves a file that only its owner can read; emulators are for sharing.
    part.write_bytes(save(tensors, metadata={"polynya": json.dumps(header)}))
    return part.replace(path)


def load(
    path: str | Path,
    *,
    file: str | None = None,
    revision: str | None = None,
    data: str | Path | xr.Dataset | None = None,
    means: str | Path | xr.Dataset | None = None,
    stds: str | Path | xr.Dataset | None = None,
    statistics: str | Path | xr.Dataset | None = None,
    variables: Sequence[str] | None = None,
    forcing: Sequence[str] | None = None,
    **network: Any,
) -> Samudra | Regional | GenSIM:
    """Load an emulator, ready to step.

    Args:
        path: a file written by `export`, a published Samudra checkpoint (`.pt`), or, with `file`, a Hugging Face
            repository such as "M2LInES/Samudra2".
        file: a file of that repository, such as "onedeg/ema_ckpt.pt"; downloaded once and kept in its cache.
        revision: branch, tag or commit of that repository; a commit makes a study repeatable.
        data: for a published checkpoint: a store in the OM4 layout, for grid, mask, and the statistics of
            `hfds_anomalies`.
        means, stds: for a published checkpoint: the stores of scalar statistics.
        statistics: instead of these three, one file made by `polynya stats`.
        variables, forcing: for a published checkpoint: names in channel order; by default the published set
            that has its numbers of channels.
        network: what a published checkpoint cannot tell, see `load_network`.

    Raises FileNotFoundError; CheckpointError for a file that is neither, or for one whose channels do not
    fit the store; StatisticsError for constants that are missing or zero; ValueError if it is not said where
    grid and statistics come from; for a repository what `huggingface_hub` raises.
    """
    path = Path(path) if file is None else downloaded(str(path), file, revision)
    if path.suffix != ".safetensors":
        sources = {"data": data, "means": means, "stds": stds, "statistics": statistics}
        return published(path, **sources, variables=variables, forcing=forcing, network=network)
    if not path.exists():
        raise FileNotFoundError(f"no emulator at {path}; check the path")
    try:
        with safe_open(path, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get("polynya", "{}"))
            tensors = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}); copy or export it again") from error
    if header.get("format") not in FORMATS:
        raise CheckpointError(
            f"{path}: wanted an emulator exported by polynya (format {' or '.join(map(repr, FORMATS))}), got "
            f"{header.get('format')!r}; write it with `export(emulator, path)`"
        )
    if beside := header.get("beside"):
        tensors |= _first_guess(path.with_name(beside["file"]), beside["sha256"])
    return restored(header, tensors, sha256_of(path))


def _without_first_guess(
    tensors: dict[str, Tensor], header: dict[str, Any], beside: Path, path: Path
) -> dict[str, Tensor]:
    """Tensors of a residual model without those of the file beside it, which the header then names."""
    found = _first_guess(beside, sha256_of(beside))
    own = {k for k in tensors if k.startswith("first_guess.")}
    close = own == found.keys() and all(torch.allclose(tensors[k], found[k].float(), rtol=2e-3, atol=1e-6) for k in own)
    if not own or not close or beside.parent.resolve() != path.parent.resolve():
        raise ValueError(f"{beside} does not hold the first guess of this emulator, or is not beside {path}")
    header["beside"] = {"file": beside.name, "sha256": sha256_of(beside)}
    return {k: v for k, v in tensors.items() if k not in own}


def _first_guess(path: Path, sha256: str) -> dict[str, Tensor]:
    """The network in an exported file as a first guess's."""
    if not path.exists() or sha256_of(path) != sha256:
        raise CheckpointError(f"wanted the first guess in {path} with SHA-256 {sha256[:12]}…; keep both files together")
    with safe_open(path, "pt") as opened:
        names = [k for k in opened.keys() if k.startswith("network.")]  # noqa: SIM118
        return {k.replace("network.", "first_guess.", 1): opened.get_tensor(k) for k in names}
