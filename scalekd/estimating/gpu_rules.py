"""What a GPU computes otherwise than a CPU, so that a trace on fake CPU tensors is one of a GPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class GpuRules(TorchFunctionMode):
    """Makes fake tensors of a CPU go through the operations that a GPU would compute.

    Attention is one fused operation. Under autocast, norms, softmax and losses are in float32,
    which autocast leaves in half precision on a CPU.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].dim() == FUSED_DIMENSIONS:
            return _fused_attention(*args, **kwargs)
        if func in FLOAT32_FUNCTIONS and torch.is_autocast_enabled("cpu"):
            args = tuple(_to_float32(value) for value in args)
            kwargs = {name: _to_float32(value) for name, value in kwargs.items()}
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


FUSED_DIMENSIONS = 4
"""Attention over tensors of other dimensions is composed of products and a softmax on GPUs too."""

FLOAT32_FUNCTIONS = {
    F.layer_norm,
    F.group_norm,
    F.softmax,
    F.log_softmax,
    F.cross_entropy,
    F.kl_div,
    F.mse_loss,
    torch.softmax,
    Tensor.softmax,
}
"""Those of torch's list for autocast on GPUs that vision networks and losses call."""


def _to_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's choice on GPUs: flash attention; the memory-efficient one for masks and float32."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    operators = torch.ops.aten
    if attn_mask is None and query.dtype != torch.float32:
        flash = operators._scaled_dot_product_flash_attention
        output: Tensor = flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return output
    if attn_mask is not None:
        shape = (*query.shape[:2], query.shape[-2], key.shape[-2])
        attn_mask = attn_mask.to(query.dtype).expand(shape)
    efficient = operators._scaled_dot_product_efficient_attention
    output = efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    return output
