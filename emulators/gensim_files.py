"""GenSIM's configuration and published weights: what is in the files, what is not, and clear words when it is neither.

A published file (huggingface.co/tobifinn/GenSIM) holds the tensors of `transformer.Transformer`, under their own names
and nothing else.  Sizes, the constants of encoder and decoder, sampler and windows live in a configuration beside it;
`GenSIMConfig()` is that of the released weights, and `read_config` reads the original's form of it.

Reference: Finn et al. (2025, arXiv:2508.14984).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .checkpoint import CheckpointError, downloaded, require_tensors
from .transformer import LogScale, Transformer, TransformerConfig

__all__ = ["ConfigError", "GenSIMConfig", "load_log_scale", "load_network", "read_config"]

Numbers = tuple[float, ...]
_M = TypeVar("_M", bound=nn.Module)
_INF = float("inf")
_WEIGHTS = "model_weights_ema.safetensors"
_PREFIXES = ("_orig_mod.", "module.", "network.")  # of torch.compile, distributed training and the whole model
_FORCING_MEAN, _FORCING_STD = (268.4102, 0.003, 0.4186, -0.3956), (12.8402, 0.0025, 5.4348, 5.435)


class ConfigError(ValueError):
    """A configuration that is not one of GenSIM."""


@dataclass(frozen=True)
class GenSIMConfig:
    """Everything but weights that makes a forecast; the defaults are those of the released weights.

    Args:
        network: sizes of the network.
        input_mean, input_std: of the input channels: states, forcings at t and at t + 12 h, degree days; SI units.
        mean, std: of the states' increments.
        lower, upper: bounds of the states, infinite for none.
        n_steps: intervals of the sampler.
        schedule_scale, schedule_shift: of `flow.time_nodes`.
        second_order: Heun's method, 2 n_steps - 1 calls of the network; else Euler's, n_steps.
        censoring: keep the sampler within the bounds at every call, not only at the end.
        window, halo: cells (y, x) of a window, and beside it.
        resolution: size of a cell in km.
        bf16: run the network under bfloat16 autocast, the sampler in full precision.

    Raises:
        ConfigError: if the constants do not fit each other and the network.
    """

    network: TransformerConfig = field(default_factory=TransformerConfig)
    input_mean: Numbers = (
        *(0.876, 0.4922, 0.3684, -0.0025, -0.0079, 0.0766),
        *(*_FORCING_MEAN, *_FORCING_MEAN),
        *(3.7189, 6.662, 3.7086, 6.6906),
    )
    input_std: Numbers = (
        *(1.054, 0.4746, 0.4307, 0.0621, 0.0653, 0.1283),
        *(*_FORCING_STD, *_FORCING_STD),
        *(4.9611, 8.9729, 4.2826, 5.1771),
    )
    mean: Numbers = (0.0,) * 6
    std: Numbers = (0.0822, 0.0323, 0.0529, 0.0415, 0.0416, 0.0115)
    lower: Numbers = (0.0, 0.0, 0.0, -_INF, -_INF, 0.0)
    upper: Numbers = (_INF, 1.0, 1.0, _INF, _INF, _INF)
    n_steps: int = 20
    schedule_scale: float = 3.0
    schedule_shift: float = 0.5
    second_order: bool = True
    censoring: bool = True
    window: tuple[int, int] = (64, 64)
    halo: tuple[int, int] = (8, 8)
    resolution: float = 12.5
    bf16: bool = False

    def __post_init__(self) -> None:
        states, inputs = len(self.std), len(self.input_mean)
        if (self.network.n_input, self.network.n_output) != (states + inputs, states):
            raise ConfigError(
                f"the network takes {self.network.n_input} and gives {self.network.n_output} channels, but there are "
                f"constants of {states} states and {inputs} inputs; wanted {states + inputs} and {states}"
            )
        lengths = {n: len(getattr(self, n)) for n in ("input_std", "mean", "lower", "upper")}
        if lengths != {"input_std": inputs, "mean": states, "lower": states, "upper": states}:
            raise ConfigError(f"wanted constants of {states} states and {inputs} inputs, got numbers {lengths}")
        if min(*self.std, *self.input_std) <= 0 or not self.resolution > 0 or self.n_steps < 1:
            raise ConfigError(
                f"standard deviations, resolution and number of steps are positive, got {self.std}, "
                f"{self.input_std}, {self.resolution} and {self.n_steps}"
            )

    @property
    def calls(self) -> int:
        """Network calls of one step."""
        return 2 * self.n_steps - 1 if self.second_order else self.n_steps


def read_config(config: str | Path | Mapping[str, Any] | GenSIMConfig | None) -> GenSIMConfig:
    """Read a configuration in the original's form.

    Args:
        config: a JSON file or the dict in it, with any of `network`, `encoder` (mean, std), `decoder` (mean, std,
            lower_bound, upper_bound), `sampler` (n_steps, schedule_scale, schedule_shift, second_order, censoring),
            `patch_size` (window), `overlap_size` (halo), `resolution`, `bf16`; the released values fill the rest.
            A `GenSIMConfig` is returned as it is, and None is the released one.

    Raises:
        FileNotFoundError: if there is no such file.
        ConfigError: if it cannot be read, or has sizes, names or numbers that GenSIM has not.
    """
    if config is None or isinstance(config, GenSIMConfig):
        return config or GenSIMConfig()
    given = config if isinstance(config, Mapping) else read_json(Path(config))
    encoder, decoder = given.get("encoder", {}), given.get("decoder", {})
    lists = {
        "input_mean": encoder.get("mean"),
        "input_std": encoder.get("std"),
        "mean": decoder.get("mean"),
        "std": decoder.get("std"),
        "lower": decoder.get("lower_bound"),
        "upper": decoder.get("upper_bound"),
    }
    sampler = {k: v for k, v in given.get("sampler", {}).items() if not k.startswith("_")}
    sampler |= {k: given[k] for k in ("resolution", "bf16") if k in given}
    cells = {"window": given.get("patch_size"), "halo": given.get("overlap_size")}
    try:
        read: dict[str, Any] = {k: tuple(float(n) for n in v) for k, v in lists.items() if v is not None}
        read |= {k: (int(v[0]), int(v[1])) for k, v in cells.items() if v is not None}
        network = TransformerConfig(**{k: v for k, v in given.get("network", {}).items() if not k.startswith("_")})
        return GenSIMConfig(network=network, **read, **sampler)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"wanted a configuration of GenSIM, with network, encoder, decoder, sampler, patch_size and overlap_size, "
            f"but {error}"
        ) from error


def load_network(
    path: str | Path,
    config: str | Path | Mapping[str, Any] | GenSIMConfig | None = None,
    *,
    file: str | None = None,
    revision: str | None = None,
) -> Transformer:
    """Load GenSIM's network, ready to run.

    Args:
        path: safetensors file, such as the published `model_weights_ema.safetensors`; with `file` or `revision` a
            Hugging Face repository such as "tobifinn/GenSIM", whose file is downloaded once and kept in its cache.
        config: of the network's sizes, see `read_config`; None for the released ones.
        file: file of that repository, `model_weights_ema.safetensors` if only `revision` is given.
        revision: branch, tag or commit of that repository.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ConfigError: see `read_config`.
        CheckpointError: if the file does not hold exactly the tensors of such a network.
    """
    found = located(path, file, revision)
    with torch.device("meta"):  # no memory and no random initial weights: all of them are replaced
        network = Transformer(read_config(config).network)
    return _filled(network, found, "GenSIM network").eval()


def load_log_scale(path: str | Path, config: str | Path | Mapping[str, Any] | GenSIMConfig | None = None) -> LogScale:
    """Load the log-scale model that a network was trained with; none was published.  As `load_network`."""
    with torch.device("meta"):
        model = LogScale(read_config(config).network)
    return _filled(model, Path(path), "GenSIM log-scale model").eval()


def _filled(model: _M, path: Path, what: str) -> _M:
    wanted, got = model.state_dict(), _tensors(path, what)
    advice = "load it with the configuration it was trained with, or use the published model_weights_ema.safetensors"
    require_tensors(wanted, got, path, what, advice)
    model.load_state_dict({k: v.float() for k, v in got.items()}, assign=True)
    return model.requires_grad_()


def _tensors(path: Path, what: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"wanted a {what} at {path}, but there is no such file; check the path, or for a "
            "Hugging Face repository say which `file` of it"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"wanted a safetensors file with a {what}, but {path} cannot be read as one ({error}); download it again"
        ) from error
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors


def read_json(path: Path) -> Mapping[str, Any]:
    """A configuration file; FileNotFoundError or ConfigError if there is none."""
    if not path.is_file():
        raise FileNotFoundError(f"wanted a configuration at {path}, but there is no such file; check the path")
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); give its contents as a dict") from error
    if not isinstance(read, Mapping):
        raise ConfigError(f"wanted a JSON object in {path}, got a {type(read).__name__}")
    return read


def located(path: str | Path, file: str | None, revision: str | None) -> Path:
    """The file on this machine: `path`, or one of the Hugging Face repository `path`, downloaded once."""
    if file is None and revision is None:
        return Path(path)
    return downloaded(str(path), file or _WEIGHTS, revision)
