"""CAP, the cross-attention projector: student features that look like teacher tokens."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd.errors import InputError

SOFTMAX_SCALE = 5.0
"""s in the attention's softmax(q k^T s / sqrt(d)): sharper than the usual 1."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map: the stem's norm for ConvNeXt students."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> the same."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def separable(channels: int) -> nn.Module:
    """In place of the stem's 3x3 convolution, one in each channel and then a 1x1 over channels.

    A ninth of the work, and not the method that the paper measured.
    """
    each = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return nn.Sequential(each, nn.Conv2d(channels, channels, 1))


class CrossAttentionProjector(nn.Module):
    """Student map X (N, Cs, Hk, Wk) to tokens (N, Hq*Wq, Ct) of the teacher's kind.

        P   = ReLU(Norm(Conv3x3(X))) + position      patchify stem; keys and values see the position
        q   = Wq ReLU(Wp query + bp) + bq
        k,v = Wk t + bk, Wv t + bv                   t = tokens of P
        Y   = LayerNorm(Wo softmax(q k^T s / sqrt(d)) v + bo)
        out = Y + W2 ReLU(W1 Y + b1) + b2            hidden 4 Ct

    The grid changes only in that there are other queries than keys.

    Args:
        in_channels: Cs.
        out_channels: Ct.
        key_grid: (Hk, Wk), the student's grid.
        query_grid: (Hq, Wq) of the projector's own trained queries; None where `forward` is given
            them (the final stage, under teacher parameter perception).
        heads: attention heads; d = Ct / heads.
        norm: the stem's norm, from a number of channels.
        scale: s.
        separable_stem: see `separable`; not the paper's, and cheaper.

    Raises:
        InputError: `heads` does not divide `out_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        key_grid: tuple[int, int],
        query_grid: tuple[int, int] | None,
        heads: int,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        scale: float = SOFTMAX_SCALE,
        separable_stem: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1 or out_channels % heads:
            fitting = [h for h in range(1, 65) if out_channels % h == 0]
            raise InputError(
                f"{heads} heads do not divide the teacher's {out_channels} channels; "
                f"take one of {', '.join(map(str, fitting))}"
            )
        self.heads = heads
        self.scale = scale / (out_channels / heads) ** 0.5
        convolution = (
            separable(in_channels)
            if separable_stem
            else nn.Conv2d(in_channels, in_channels, 3, padding=1)
        )
        self.stem = nn.Sequential(convolution, norm(in_channels), nn.ReLU())
        self.position = nn.Parameter(torch.empty(1, in_channels, *key_grid))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.own_query: nn.Parameter | None = None
        if query_grid is not None:
            self.own_query = nn.Parameter(torch.randn(query_grid[0] * query_grid[1], out_channels))
        self.query_stem = nn.Sequential(nn.Linear(out_channels, out_channels), nn.ReLU())
        self.to_query = nn.Linear(out_channels, out_channels)
        self.to_key = nn.Linear(in_channels, out_channels)
        self.to_value = nn.Linear(in_channels, out_channels)
        self.to_output = nn.Linear(out_channels, out_channels)
        self.norm = nn.LayerNorm(out_channels)
        self.feed_forward = nn.Sequential(
            nn.Linear(out_channels, 4 * out_channels),
            nn.ReLU(),
            nn.Linear(4 * out_channels, out_channels),
        )

    def forward(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        """Project one map.

        Args:
            features: X, (N, Cs, Hk, Wk).
            query: tokens (N, L, Ct) to ask with; only for a projector without its own.

        Returns:
            Tokens (N, L, Ct), L = Hq*Wq for own queries.

        Raises:
            InputError: X has other channels or another grid than the projector was made for, or
                nobody gave queries.
        """
        if features.shape[1:] != self.position.shape[1:]:
            raise InputError(
                f"the student's feature map is {tuple(features.shape[1:])} and the projector was "
                f"made for {tuple(self.position.shape[1:])}: channels, height and width must "
                "agree; build it for the image size that it is used with"
            )
        keys = (self.stem(features) + self.position).flatten(2).transpose(1, 2)
        if self.own_query is not None:
            # The same for every image: projected once, spread over the batch inside attention.
            query = self.own_query[None].expand(1, -1, -1)
        if query is None:
            raise InputError(
                "query is None: a projector without its own queries needs to be given some"
            )
        q = self._split(self.to_query(self.query_stem(query))).expand(len(features), -1, -1, -1)
        k, v = self._split(self.to_key(keys)), self._split(self.to_value(keys))
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        y = self.norm(self.to_output(attended.transpose(1, 2).flatten(2)))
        out: Tensor = y + self.feed_forward(y)
        return out

    def in_full_precision(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        """The same outside of autocast, in the precision of the projector's own weights."""
        dtype, device = self.position.dtype, features.device.type
        if not torch.amp.is_autocast_available(device):  # the meta device, where costs are counted
            device = "cpu"
        with torch.autocast(device, enabled=False):
            projected: Tensor = self(features.to(dtype), None if query is None else query.to(dtype))
        return projected

    def _split(self, tokens: Tensor) -> Tensor:
        """(N, L, C) -> (N, heads, L, C / heads)."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
