"""Dynamic routing plugin (DRP): how strongly deformable sampling is active for a prompt (paper, Figure 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DynamicRouting(nn.Module):
    """Computes alpha = softmax(MLP(t_o)): alpha_1 weighs the deformed features, alpha_2 SAM's own.

    The paper does not say how alpha is normalised. Softmax keeps alpha_1 + alpha_2 = 1, so that the features keep their
    scale and alpha_1 alone says how far the plugin deviates from SAM. With sigmoid the two are independent.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 16,
        initial_dsp_weight: float = 0.5,
        *,
        sigmoid: bool = False,
        reads_features: bool = False,
        estimates_quality: bool = False,
    ) -> None:
        """`channels` is the width C of token and features; `initial_dsp_weight` is alpha_1 of every prompt before
        training, and alpha_2 is 1 - alpha_1. `PluginSpec` describes the other arguments."""
        super().__init__()
        self.sigmoid = sigmoid
        self.attend = nn.Conv2d(channels, 1, 1, bias=False) if reads_features else None
        self.reduce = nn.Linear(channels * 2 if reads_features else channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.route = nn.Linear(hidden, 2)
        nn.init.zeros_(self.route.weight)
        self.quality = nn.Linear(hidden, 1) if estimates_quality else None
        logit = torch.logit(torch.tensor(initial_dsp_weight))
        with torch.no_grad():
            self.route.bias.copy_(torch.stack((logit, -logit)) / (1 if sigmoid else 2))

    def forward(self, token: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Compute alpha and, when this routing estimates it, the quality of the prompts.

        token: (B, C), a mask output token after layer 2's self-attention. features: (B, C, H, W), the offset network's
        hidden features; None is allowed unless this routing reads them.
        Returns alpha (B, 2) in (0, 1), whose rows sum to 1 with softmax, and the estimated quality (B,) in (0, 1) or
        None.
        """
        return self.judge(self.read(token, features))

    def read(self, token: Tensor, features: Tensor | None) -> Tensor:
        """Return what alpha is computed from: (B, C), or (B, 2 C) when the routing reads features.

        The arguments are those of `forward`.
        """
        if self.attend is None:
            return token
        assert features is not None, "expected features, which this routing reads"
        cells = features.flatten(2)
        weights = (self.attend.weight.flatten(1).expand(len(cells), 1, -1) @ cells).softmax(dim=-1)  # (B, 1, HW)
        return torch.cat((token, (weights @ cells.mT)[:, 0]), dim=1)

    def judge(self, known: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the results of `forward` from the tensor that `read` returns."""
        hidden = F.gelu(self.norm(self.reduce(known)))
        route: Tensor = self.route(hidden)
        alpha = route.sigmoid() if self.sigmoid else route.softmax(dim=-1)
        return alpha, None if self.quality is None else self.quality(hidden)[:, 0].sigmoid()
