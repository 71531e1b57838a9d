"""What a network call costs, counted from sizes: what skipping land and taking fewer steps save.

An operation is a multiplication or an addition inside a matrix product; everything else is a few per cent.
"""

from __future__ import annotations

from .gensim_files import GenSIMConfig
from .tiles import Tiling
from .transformer import TransformerConfig

__all__ = ["call_operations", "operations", "published_operations"]


def operations(
    network: TransformerConfig, tokens: int, keys: int, wanted: int, *, dead_keys: bool = False
) -> tuple[int, int]:
    """Operations of one window.

    Args:
        network: its sizes.
        tokens: tokens that go through it.
        keys: that attention sees, one more than tokens where land was left out.
        wanted: tokens whose results are wanted, which alone go through the end of the last block.
        dead_keys: multiply with the rows of `qkv_layer` that act on nothing, too, as the original does.

    Returns:
        Operations of linear layers and of attention.
    """
    d, inner, p2 = network.n_features, network.n_heads * network.n_features_head, network.patch_size**2
    inside = tokens * (network.n_blocks - 1) + wanted  # tokens of all blocks but for their values and dead keys
    linear = inside * (2 * d * inner + 3 * network.mult * d * d)
    linear += tokens * network.n_blocks * (2 if dead_keys else 1) * d * inner
    linear += tokens * (network.n_input + 1) * p2 * d + wanted * d * network.n_output * p2
    return 2 * linear, 4 * inside * keys * inner


def call_operations(config: GenSIMConfig, windows: Tiling) -> tuple[int, int]:
    """Operations of one network call through these windows, of linear layers and of attention."""
    linear = attention = 0
    for group in windows.groups:
        number, tokens = group.cells.shape[:2]
        one = operations(config.network, tokens, tokens + (group.skipped > 0), group.wanted)
        linear, attention = linear + number * one[0], attention + number * one[1]
    return linear, attention


def published_operations(config: GenSIMConfig, windows: Tiling) -> tuple[int, int]:
    """Operations of one network call as the original does it: every window, every token, keys that act on nothing."""
    linear, attention = operations(config.network, windows.tokens, windows.tokens, windows.tokens, dead_keys=True)
    return windows.windows * linear, windows.windows * attention
