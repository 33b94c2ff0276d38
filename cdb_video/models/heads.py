"""Heads: from what a backbone sees to the logits of one label."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COSINE_SCALE = 30.0
"""What cosines are multiplied by, so that a softmax of them can be sure (LDAM's code: 30)."""
HEAD_WIDTH = 64
"""Features of one attention head, of every vision transformer that is published."""

HeadType = Literal["linear", "cosine", "attentive"]


class CosineHead(nn.Module):
    """Logits (N, K) = 30 cos(features (N, F), weight (K, F)): neither length matters."""

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, num_features))

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, K)."""
        cosines = F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))
        return COSINE_SCALE * cosines


class AttentiveHead(nn.Module):
    """Tokens (N, L, D) to logits (N, K): a learned query looks where its label needs it to.

    One block as in V-JEPA's attentive probe (Bardes et al., arXiv 2404.08471): cross attention of
    the query to the normalised tokens, a residual, an MLP of four times the width, a residual; then
    a norm, dropout and a linear layer. The order of the tokens changes nothing, positions are in
    them already; any number of tokens will do. 12 D^2 parameters.
    """

    def __init__(self, num_features: int, num_classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        most = max(1, num_features // HEAD_WIDTH)
        heads = next(n for n in range(most, 0, -1) if num_features % n == 0)
        self.query = nn.Parameter(torch.empty(num_features))
        self.token_norm = nn.LayerNorm(num_features)
        self.attention = nn.MultiheadAttention(num_features, heads, batch_first=True)
        self.mlp = nn.Sequential(
            nn.LayerNorm(num_features),
            nn.Linear(num_features, 4 * num_features),
            nn.GELU(),
            nn.Linear(4 * num_features, num_features),
        )
        self.norm = nn.LayerNorm(num_features)
        self.dropout = nn.Dropout(dropout)
        self.classifier = _linear(num_features, num_classes)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L, D) -> (N, K)."""
        tokens = self.token_norm(tokens)
        query = self.query.expand(tokens.shape[0], 1, -1)
        seen, _ = self.attention(query, tokens, tokens, need_weights=False)
        seen = query + seen
        seen = seen + self.mlp(seen)
        logits: Tensor = self.classifier(self.dropout(self.norm(seen[:, 0])))
        return logits


def build_head(
    head_type: HeadType, num_features: int, num_classes: int, *, dropout: float
) -> nn.Module:
    """A fresh head; `dropout` is of the attentive one, the others are given features after it."""
    if head_type == "attentive":
        return AttentiveHead(num_features, num_classes, dropout=dropout)
    if head_type == "cosine":
        return CosineHead(num_features, num_classes)
    return _linear(num_features, num_classes)


def _linear(num_features: int, num_classes: int) -> nn.Linear:
    """Starts at N(0, 0.01) as SlowFast's: large first logits would swamp a pretrained backbone."""
    linear = nn.Linear(num_features, num_classes)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear
