"""Position tables of one clip, made to fit another: one rule for every backbone that has some."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int, int]
"""Patches of a clip: in time, in height, in width."""
POSITIONS_1D = ("rel_pos_h", "rel_pos_w", "rel_pos_t", "pos_embed_temporal")
CLASS_FIRST = "encoder.pos_embedding"
"""ViT's table of a frame's patches, behind the row of the class token."""
POSITION_TABLES = (
    *POSITIONS_1D,
    "pos_embed_spatial",
    CLASS_FIRST,
    "relative_position_bias_table",
    # Of hf: models, whose own weights come interpolated; of a checkpoint for another clip they are
    # refused.
    "position_embeddings",
    "time_embeddings",
)
"""How the names of learned position tables end."""
CLASS_TOKENS = ("cls_token", "class_token", "pos_embed_class")
"""How the names of class tokens and of their positions end."""


def resize_positions(table: Tensor, grid: Grid, to: Grid, *, prefix: int = 0) -> Tensor:
    """A table (1, prefix + T H W, D) of a grid of patches, interpolated to another grid.

    Bicubic over a frame's patches, as ViT does for another image size (Dosovitskiy et al., ICLR
    2021, 3.2), then linear over time. The first `prefix` rows, of class tokens, stay.

    Raises:
        ValueError: the table has another length than its grid.
    """
    frames, height, width = grid
    if table.shape[1] != prefix + frames * height * width:
        raise ValueError(f"{tuple(table.shape)} is no table of {prefix} + {grid} positions")
    if grid == to:
        return table
    new_frames, new_height, new_width = to
    size = table.shape[-1]
    maps = table[0, prefix:].float().reshape(frames, height, width, size).permute(0, 3, 1, 2)
    if (height, width) != (new_height, new_width):
        maps = F.interpolate(maps, size=(new_height, new_width), mode="bicubic")
    rows = maps.permute(2, 3, 1, 0).flatten(0, 1)  # (H W, D, T)
    if frames != new_frames:
        rows = F.interpolate(rows, size=new_frames, mode="linear")
    resized = rows.permute(2, 0, 1).reshape(1, -1, size)
    return torch.cat([table[:, :prefix], resized.to(table.dtype)], dim=1)
