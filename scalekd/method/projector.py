"""CAP, the cross-attention projector: from a student feature map to tokens like the teacher's."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from scalekd.errors import InputError

SOFTMAX_SCALE = 5.0
"""s in the attention softmax(q k^T s / sqrt(d)); the usual attention has s = 1."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a feature map, for the stems of ConvNeXt students."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each position's channels; (N, C, H, W) to (N, C, H, W)."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def separable_convolution(channels: int) -> nn.Module:
    """Depthwise 3x3 and then 1x1 convolution: a ninth of the work of the stem's dense 3x3.

    This is not the method that the paper measured.
    """
    depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1))


class CrossAttentionProjector(nn.Module):
    """Project a student map X (N, Cs, Hk, Wk) to tokens (N, Lq, Ct) with the teacher's channels.

        P     = ReLU(Norm(Conv3x3(X))) + position       (N, Cs, Hk, Wk)
        q     = Wq ReLU(Wp query + bp) + bq             (N, Lq, Ct), split into heads of d channels
        k, v  = Wk t + bk, Wv t + bv                    t = tokens of P, (N, Hk Wk, Cs)
        Y     = LayerNorm(Wo softmax(q k^T s / sqrt(d)) v + bo)
        out   = Y + W2 ReLU(W1 Y + b1) + b2             hidden channels: 4 Ct

    The queries decide the output grid. They are trained parameters of the projector (Lq = Hq Wq),
    or the caller's: at the final stage TPP's tokens are the query.

    Args:
        in_channels: Cs, the student's channels.
        out_channels: Ct, the teacher's channels.
        key_grid: (Hk, Wk), the student's grid.
        query_grid: (Hq, Wq) of the projector's trained queries, or None if `forward` gets queries.
        heads: Number of attention heads; d = Ct / heads.
        norm: The stem's norm, a function of the number of channels.
        scale: s, the sharpness of the attention.
        separable_stem: Use `separable_convolution` in the stem: cheaper, but not the paper's.
        recompute: Compute what follows on the stem's norm a second time in the backward pass,
            instead of storing its activations. The results are bit-identical.

    Raises:
        InputError: `heads` does not divide `out_channels`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        key_grid: tuple[int, int],
        query_grid: tuple[int, int] | None,
        heads: int,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        scale: float = SOFTMAX_SCALE,
        separable_stem: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        if heads < 1 or out_channels % heads:
            divisors = [h for h in range(1, 65) if out_channels % h == 0]
            raise InputError(
                f"{heads} heads do not divide the teacher's {out_channels} channels; "
                f"take one of {', '.join(map(str, divisors))}"
            )
        self.heads = heads
        self.scale = scale / (out_channels / heads) ** 0.5
        if separable_stem:
            convolution = separable_convolution(in_channels)
        else:
            convolution = nn.Conv2d(in_channels, in_channels, 3, padding=1)
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
        """Project one feature map.

        Args:
            features: X, (N, Cs, Hk, Wk).
            query: Tokens (N, Lq, Ct), for a projector without trained queries.

        Returns:
            Tokens (N, Lq, Ct).

        Raises:
            InputError: X has a shape that the projector was not made for, or there is no query.
        """
        normed = self._normed(features)
        if not self.recompute:
            return self.from_normed(normed, query)
        # Nothing in it is random, and the stem's norm, whose statistics move, is not in it.
        out: Tensor = checkpoint(
            self.from_normed, normed, query, use_reentrant=False, preserve_rng_state=False
        )
        return out

    def from_normed(self, normed: Tensor, query: Tensor | None = None) -> Tensor:
        """Compute the tokens from the output of the stem's norm, the part that `recompute` repeats.

        Args:
            normed: Norm(Conv3x3(X)), (N, Cs, Hk, Wk).
            query: As in `forward`.

        Returns:
            Tokens (N, Lq, Ct).

        Raises:
            InputError: There is no query.
        """
        q, k, v = self._queries_keys_values(normed, query)
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        y = self.norm(self.to_output(attended.transpose(1, 2).flatten(2)))
        out: Tensor = y + self.feed_forward(y)
        return out

    def attention(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        """Return how much of each key's value each query takes: softmax(q k^T s / sqrt(d)).

        Args:
            features: As in `forward`.
            query: As in `forward`.

        Returns:
            (N, heads, Lq, Hk Wk), row-major over the key grid; each row sums to 1.

        Raises:
            InputError: As in `forward`.
        """
        q, k, _ = self._queries_keys_values(self._normed(features), query)
        weights: Tensor = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return weights

    def _normed(self, features: Tensor) -> Tensor:
        """Norm(Conv3x3(X)) (N, Cs, Hk, Wk), without the ReLU that ends the stem."""
        if features.shape[1:] != self.position.shape[1:]:
            raise InputError(
                f"the student's feature map is {tuple(features.shape[1:])} and the projector was "
                f"made for {tuple(self.position.shape[1:])}: channels, height and width must "
                "agree; build it for the image size that it is used with"
            )
        convolution, norm, _ = self.stem
        normed: Tensor = norm(convolution(features))
        return normed

    def _queries_keys_values(
        self, normed: Tensor, query: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (N, heads, Lq, d), k and v (N, heads, Hk Wk, d) of the class's formula."""
        keys = (self.stem[2](normed) + self.position).flatten(2).transpose(1, 2)
        if self.own_query is not None:
            # All images share these queries: projected once, expanded to the batch below.
            query = self.own_query[None]
        if query is None:
            raise InputError("query is None: a projector without trained queries must be given one")
        q = self._split_heads(self.to_query(self.query_stem(query)))
        k, v = self._split_heads(self.to_key(keys)), self._split_heads(self.to_value(keys))
        return q.expand(len(normed), -1, -1, -1), k, v

    def in_full_precision(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        """`forward` outside of autocast, in the precision of the projector's own weights."""
        dtype, device = self.position.dtype, features.device.type
        if not torch.amp.is_autocast_available(device):  # the meta device, where FLOPs are counted
            device = "cpu"
        with torch.autocast(device, enabled=False):
            projected: Tensor = self(features.to(dtype), None if query is None else query.to(dtype))
        return projected

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """(N, L, C) to (N, heads, L, C / heads)."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
