"""Configuration and weights of the regional sea-ice models: what is in the files, and clear words when it is not.

The published files (Zenodo 10.5281/zenodo.10949057) are checkpoints of PyTorch Lightning whose `state_dict` holds the
network under `network.`, its averaged weights under `ema_model.module.`, and in a residual model the deterministic
network under `det_network.`.  A safetensors file holds one network, under the names of `uvit.UViT`.

Reference: Finn et al. (2024, doi:10.1029/2024MS004395).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import CheckpointError, require_tensors, shortened
from .gensim_files import ConfigError, read_json
from .uvit import UVIT_L, UVIT_S, UViT, UViTConfig

__all__ = ["RegionalConfig", "load_network", "load_residual", "read_config"]

Numbers = tuple[float, ...]
_INF = float("inf")
_PARTS = ("ema_model.module.", "network.", "_orig_mod.", "module.")  # averaged weights are the ones to run
_OTHERS = ("det_network.", "scheduler.", "clim_scheduler.", "sampler.", "encoder.", "decoder.", "residual_")
_FORCING_MEAN, _FORCING_STD = (261.1283, 0.0018, -0.7332, -0.4844), (10.3691, 0.0013, 4.7509, 4.9048)


@dataclass(frozen=True)
class RegionalConfig:
    """Everything but weights that makes a forecast; the defaults are those of the published models.

    Args:
        deterministic: sizes of the deterministic network.
        diffusion: sizes of the diffusion model's network: n states + inputs channels in for a model of the increment,
            n states more for a residual one, which is told the deterministic increment too.
        input_mean, input_std: of the input channels: states, forcings at t and at t + 12 h; SI units.
        mean, std: of the states' increments.
        lower, upper: bounds of the states, infinite for none.
        residual_mean, residual_scale: of truth minus deterministic forecast, physical units; a residual model's only.
        residual_gain: of the small scales of sampled residuals, see `regional_constants.sharpened`; a residual model's
            only, and not of the originals. None where it is 1.
        n_steps: intervals of the sampler.
        rho, gamma_min, gamma_max: of `diffusion.karras_levels`.
        second_order: Heun's method, 2 n_steps - 1 calls of the network; else Euler's, n_steps.
        level_range: noise levels gamma that the network sees as 0 and 1.
        weight: `multiplier` of `diffusion.v_error`, in training.
        sees_mask: whether networks are told where the ocean is, by one more input after the normalised ones.

    Raises:
        ConfigError: if the constants do not fit each other.
    """

    deterministic: UViTConfig = UVIT_S
    diffusion: UViTConfig = UVIT_L
    input_mean: Numbers = (1.6936, 0.9165, 0.8640, -0.0076, -0.0336, *_FORCING_MEAN, *_FORCING_MEAN)
    input_std: Numbers = (0.7506, 0.1848, 0.1968, 0.0836, 0.0878, *_FORCING_STD, *_FORCING_STD)
    mean: Numbers = (0.0,) * 5
    std: Numbers = (0.1163, 0.0313, 0.0525, 0.0541, 0.0546)
    lower: Numbers = (0.0, 0.0, 0.0, -_INF, -_INF)
    upper: Numbers = (_INF, 1.0, 1.0, _INF, _INF)
    residual_mean: Numbers = ()
    residual_scale: Numbers = ()
    residual_gain: Numbers = ()
    n_steps: int = 20
    rho: float = 7.0
    gamma_min: float = -10.0
    gamma_max: float = 15.0
    second_order: bool = True
    level_range: tuple[float, float] = (-20.0, 20.0)
    weight: float = 0.5
    sees_mask: bool = False

    def __post_init__(self) -> None:
        states, inputs, extra = len(self.std), len(self.input_mean), len(self.residual_scale)
        names = ("input_std", "mean", "lower", "upper", "residual_mean")
        lengths = {n: len(getattr(self, n)) for n in names}
        wanted = {"input_std": inputs, "mean": states, "lower": states, "upper": states, "residual_mean": extra}
        if lengths != wanted or inputs <= states or (inputs - states) % 2 or extra not in (0, states):
            raise ConfigError(
                f"wanted constants of {states} states, and of {inputs} inputs that are the states and the forcings "
                f"twice, got numbers {lengths | {'residual_scale': extra}}"
            )
        if self.residual_gain and len(self.residual_gain) != extra:
            raise ConfigError(f"wanted a gain of each of {extra} residuals, or none, got {self.residual_gain}")
        scales = *self.residual_scale, *self.residual_gain
        if min(*self.std, *self.input_std, *scales, self.rho, self.n_steps) <= 0:
            raise ConfigError(
                f"standard deviations, scales, gains, rho and number of steps are positive, got {self.std}, "
                f"{self.input_std}, {scales}, {self.rho} and {self.n_steps}"
            )
        if not (self.gamma_min < self.gamma_max and self.level_range[0] < self.level_range[1]):
            raise ConfigError(
                f"levels grow, got {self.gamma_min} to {self.gamma_max} of the sampler and {self.level_range}"
            )

    @property
    def calls(self) -> int:
        """Network calls of one step of a diffusion model."""
        return 2 * self.n_steps - 1 if self.second_order else self.n_steps

    def kind_of(self, network: UViTConfig) -> str:
        """What a network is: "deterministic", "diffusion" or "residual"; ConfigError if it fits none of these."""
        states, inputs = len(self.std), len(self.input_mean) + self.sees_mask
        kinds = {(inputs, False): "deterministic", (states + inputs, True): "diffusion"}
        kinds[2 * states + inputs, True] = "residual"
        kind = kinds.get((network.n_input, bool(network.n_time_hidden)))
        if kind is None or network.n_output != states:
            raise ConfigError(
                f"the network takes {network.n_input} and gives {network.n_output} channels "
                f"{'with' if network.n_time_hidden else 'without'} noise level; wanted {states} out, and in {inputs} "
                f"without, {states + inputs} with, or {2 * states + inputs} with for a residual model"
            )
        return kind


def read_config(config: str | Path | Mapping[str, Any] | RegionalConfig | None) -> RegionalConfig:
    """Read a configuration in the original's form.

    Args:
        config: a JSON file or the dict in it, with any of `deterministic` and `diffusion` (sizes, see `UViTConfig`),
            `encoder` (mean, std), `decoder` (mean, std, lower_bound, upper_bound), `residual` (mean, scale, gain),
            `sampler` (timesteps, rho, gamma_min, gamma_max, second_order), `network_gamma_range`, `weighting`
            (multiplier), and `sees_mask`; the originals have no gain and see no mask. The published values fill the
            rest.  A `RegionalConfig` is returned as it is, and None is the published one.

    Raises:
        FileNotFoundError: if there is no such file.
        ConfigError: if it cannot be read, or has sizes, names or numbers that the regional models have not.
    """
    if config is None or isinstance(config, RegionalConfig):
        return config or RegionalConfig()
    given = config if isinstance(config, Mapping) else read_json(Path(config))
    lists = {
        name: given.get(section, {}).get(key)
        for section, key, name in (
            *(("encoder", k, f"input_{k}") for k in ("mean", "std")),
            *(("decoder", k, k.removesuffix("_bound")) for k in ("mean", "std", "lower_bound", "upper_bound")),
            *(("residual", k, f"residual_{k}") for k in ("mean", "scale", "gain")),
        )
    } | {"level_range": given.get("network_gamma_range")}
    try:
        read: dict[str, Any] = {k: tuple(float(n) for n in v) for k, v in lists.items() if v is not None}
        read |= {k: UViTConfig(**given[k]) for k in ("deterministic", "diffusion") if k in given}
        read |= {"sees_mask": bool(given["sees_mask"])} if "sees_mask" in given else {}
        return RegionalConfig(**read, **_sampler(given), **_weighting(given))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "wanted a configuration of a regional model, with deterministic, diffusion, encoder, decoder, residual, "
            f"sampler, network_gamma_range and weighting, but {error}"
        ) from error


def _sampler(given: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's fields; sigma_min and sigma_max of the original change nothing between gamma_min and gamma_max."""
    sampler = {k: v for k, v in given.get("sampler", {}).items() if k not in ("sigma_min", "sigma_max")}
    return {"n_steps" if k == "timesteps" else k: v for k, v in sampler.items()}


def _weighting(given: Mapping[str, Any]) -> dict[str, Any]:
    weighting = given.get("weighting", {})
    unknown = {k: v for k, v in weighting.items() if k != "multiplier" and (k, v) != ("shift", 0)}
    if unknown:
        raise ValueError(f"weighting has {unknown}, and only a multiplier and a shift of 0 are known")
    return {"weight": float(weighting["multiplier"])} if "multiplier" in weighting else {}


def load_network(
    path: str | Path,
    config: str | Path | Mapping[str, Any] | RegionalConfig | None = None,
    *,
    part: str | None = None,
) -> UViT:
    """Load a network, ready to run: a deterministic one where the file has no embedding of noise levels.

    Args:
        path: safetensors file, or a published checkpoint.
        config: of the networks' sizes, see `read_config`; None for the published ones.
        part: prefix of the keys of the network wanted, such as "det_network."; None for averaged weights where there
            are any, else the network's own.

    Returns:
        The network in eval mode on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ConfigError: see `read_config`.
        CheckpointError: if the file does not hold exactly the tensors of such a network.
    """
    read, tensors = read_config(config), _part(_tensors(Path(path)), part, path)
    sizes = read.diffusion if any(k.startswith("time_embedder.") for k in tensors) else read.deterministic
    read.kind_of(sizes)
    with torch.device("meta"):  # no memory and no random initial weights: all of them are replaced
        network = UViT(sizes)
    named = {_renamed(k, sizes): v for k, v in tensors.items()}
    advice = "load it with the configuration it was trained with"
    require_tensors(network.state_dict(), named, path, "regional UViT", advice)
    network.load_state_dict({k: v.float() for k, v in named.items()}, assign=True)
    return network.requires_grad_().eval()


def load_residual(path: str | Path) -> tuple[Numbers, Numbers]:
    """`residual_mean` and `residual_scale` of a published residual model's checkpoint; errors as `load_network`."""
    tensors = _tensors(Path(path))
    if not {"residual_mean", "residual_scale"} <= tensors.keys():
        raise CheckpointError(
            f"wanted residual_mean and residual_scale in {path}, but it has {shortened(tensors)}; use the checkpoint "
            "of a residual model, or give them in the configuration"
        )
    mean, scale = (tuple(tensors[k].flatten().double().tolist()) for k in ("residual_mean", "residual_scale"))
    return mean, scale


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"wanted a regional network at {path}, but there is no such file; check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content.get("state_dict", content)
        return {k: v for k, v in state.items() if isinstance(v, Tensor)}
    except Exception as error:  # damaged files fail in every possible way
        raise CheckpointError(
            f"wanted a safetensors file or a Lightning checkpoint, but {path} cannot be read as one "
            f"({type(error).__name__}: {str(error).splitlines()[:1]}); download it again, or save its state_dict alone"
        ) from error


def _part(tensors: Mapping[str, Tensor], part: str | None, path: str | Path) -> dict[str, Tensor]:
    """The tensors of one network, without its prefix."""
    if part is None:
        part = next((p for p in _PARTS if any(k.startswith(p) for k in tensors)), "")
    found = {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
    if part == "":
        found = {k: v for k, v in found.items() if not k.startswith(_OTHERS)}
    if not found:
        raise CheckpointError(f"wanted keys that start with {part!r} in {path}, but it has {shortened(tensors)}")
    return found


def _renamed(key: str, sizes: UViTConfig) -> str:
    """The last layer of an MLP is number 3 after dropout, else 2; files of either kind are read."""
    wrong, right = (
        ("branch_layer.2.", "branch_layer.3.") if sizes.dropout_mlp else ("branch_layer.3.", "branch_layer.2.")
    )
    return key.replace(wrong, right)
