"""The teacher: frozen by construction, and able to run its tail on other tokens."""

import copy
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd.errors import InputError, check_choice, first_line
from scalekd.features import Features
from scalekd.networks.feature_extractor import FeatureExtractor, build_feature_extractor
from scalekd.networks.feature_selection import FeatureSelection
from scalekd.networks.layout import map_from_tokens, tokens_from_map
from scalekd.networks.pretrained import refuse_non_finite
from scalekd.networks.protocol import ProtocolFeatureExtractor
from scalekd.networks.teacher.half_precision import cast_autocast_layers
from scalekd.networks.teacher.tail import Inputs, Tail, find_tail
from scalekd.networks.teacher.tail_inputs import CachedOutputs, TailInputs

PrefixTokens = Literal["own", "none"]


class FrozenTeacher:
    """A teacher that nothing can train, with its tail.

    It is not a module, so it is in nobody's `parameters()`, `state_dict()`, checkpoint, EMA or
    DDP, and a trainer's `train()` does not reach it; a deep copy is the same object. It moves to
    the device of the images that it is called with, and to float64 if they are.

    Args:
        model: a timm model with pretrained weights, or a module that offers its features. It is
            put into eval mode and its parameters are frozen, in place.
        size: (height, width) in pixels that it works at; default its own. Other images are resized.
        features: which features of a timm model. If they leave the norm open and the final norm
            cannot be replayed, the final feature is the last stage's output without it.
        prefix: the prefix tokens (class, registers) that the tail sees before other tokens: the
            teacher's "own", of the same image, or "none", as in the released code.

    Attributes:
        shapes: `FeatureShapes` of what it returns.
        input: its images' channels, size and normalisation.
        extractor: its feature extractor, with the selection resolved.
        requested_features: `features` as passed, or without norm if the final norm cannot be
            replayed.
        difference: largest difference between the replayed tail and the teacher's own output on
            noise, relative to the largest value of that output.
        tail_modules: names of the modules that the tail runs.
        prefix_tokens: how many of its own prefix tokens these see before other tokens.
        trunk_dropped: whether it can only restore cached outputs (`from_cache`).
        half_dtype: the precision that `cast_to_half` cast it to; None in full precision.

    Raises:
        InputError: no tail can be found, its replay differs by more than `TOLERANCE`, or it cannot
            run without prefix tokens; its weights are non-finite.

    Example:
        >>> import timm, torch
        >>> teacher = FrozenTeacher(timm.create_model("test_vit"))
        >>> features = teacher(torch.randn(2, 3, 160, 160))
        >>> tokens = features.penultimate.flatten(2).transpose(1, 2)
        >>> teacher.tail(tokens).shape
        torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int] | None = None,
        features: FeatureSelection | None = None,
        prefix: PrefixTokens = "own",
    ) -> None:
        check_choice("teacher_prefix", prefix, get_args(PrefixTokens))
        refuse_non_finite(model.state_dict(), f"the weights of the teacher {type(model).__name__}")
        self.model = model.eval().requires_grad_(False)
        self.trunk_dropped = False
        self.half_dtype: torch.dtype | None = None
        self.prefix = prefix
        self.requested_features = features or FeatureSelection()
        self.extractor = self._build_extractor(model, size)
        try:
            self._tail = self._find_tail()
        except InputError:
            selection = self.extractor.selection
            norm_is_open = self.requested_features.norm is None
            if not norm_is_open or selection is None or not selection.from_forward_features:
                raise
            self.requested_features = replace(self.requested_features, norm="none")
            self.extractor = self._build_extractor(model, size)
            self._tail = self._find_tail()
        self.input, self.shapes = self.extractor.input, self.extractor.shapes
        self.difference = self._tail.difference
        names = {module: name for name, module in model.named_modules()}
        self.tail_modules = [names[call.module] for call in self._tail.calls]
        assert self.shapes.penultimate is not None
        cells = self.shapes.penultimate[1] * self.shapes.penultimate[2]
        first = self._tail.first_input
        has_prefix = prefix == "own" and first.dim() == 3
        self.prefix_tokens = first.shape[1] - cells if has_prefix else 0

    def _build_extractor(
        self, model: nn.Module, size: tuple[int, int] | None
    ) -> FeatureExtractor | ProtocolFeatureExtractor:
        return build_feature_extractor(model, size, self.requested_features, is_teacher=True)

    @torch.no_grad()
    def _find_tail(self) -> Tail:
        """Find the tail, and verify that it returns what the teacher returns."""
        noise = self._noise(2)
        shapes = self.extractor.shapes
        assert shapes.penultimate is not None
        channels, height, width = shapes.penultimate
        tail: Tail | None = None
        try:
            tail = find_tail(self.model, self.extractor.maps, noise)
            if self.prefix == "none":
                tail(noise.new_zeros(2, height * width, channels), own_prefix=False)
        except Exception as error:
            remedy = "take another penultimate index, or another teacher"
            if tail is not None:
                tail.recorded.remove_hooks()
                remedy = "leave it its own prefix tokens (teacher_prefix own)"
            if self.extractor.selection is None:
                remedy = (
                    "let modules do all that happens between its features (docs/own-modules.md)"
                )
            raise InputError(
                f"the teacher {type(self.model).__name__} cannot be replayed: "
                f"{first_line(error)}; {remedy}"
            ) from error
        return tail

    @property
    def reorders_tokens(self) -> bool:
        """Whether its tail takes tokens in an order that depends on the image size."""
        return any(call.conversion.order is not None for call in self._tail.calls)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of its weights and buffers, by name and value, taken at the first access."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            values = tensor.detach().cpu().contiguous()
            digest.update(values.view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def with_model(self, model: nn.Module, size: tuple[int, int] | None = None) -> "FrozenTeacher":
        """Return this teacher with another model, to count operations on the meta device.

        Nothing is verified again.

        Args:
            model: of the same architecture, perhaps for another size.
            size: (height, width) that it works at; default its own.
        """
        twin = copy.copy(self)
        twin.model = model.eval().requires_grad_(False)
        twin.extractor = self._build_extractor(model, size)
        twin.input, twin.shapes = twin.extractor.input, twin.extractor.shapes
        modules = [model.get_submodule(name) for name in self.tail_modules]
        twin._tail = self._tail.with_modules(modules)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenTeacher":
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Return features of `images` (N, channels, H, W), normalised as `self.input` says.

        Raises:
            InputError: the trunk was dropped.
        """
        if self.trunk_dropped:
            raise InputError(
                "the teacher's trunk was dropped, so it has no features of images: take them from "
                "a cache (from_cache)"
            )
        images = images.to(self._follow(images))
        if tuple(images.shape[2:]) != self.input.size:
            images = F.interpolate(images, self.input.size, mode="bicubic", antialias=True)
        if any(module.training for module in self.model.modules()):  # a quarter of eval()'s time
            self.model.eval()
        with self._tail.recorded.recording(), self._autocast():
            features = self.extractor(images)
        if not self._returns_full_precision(images):
            return features
        penultimate, logits = (
            t if t is None else t.to(images.dtype) for t in (features.penultimate, features.logits)
        )
        return Features(penultimate, features.final.to(images.dtype), logits)

    def tail(self, tokens: Tensor) -> Tensor:
        """Run the tail, with gradients to the tokens.

        It is called after the teacher's pass over N images, whose other inputs it reuses.

        Args:
            tokens: Tokens (N, H * W, C) on the penultimate grid.

        Returns:
            Tokens (N, H' * W', C') on the final grid.
        """
        return self._run_tail(tokens)

    def tail_of_last_pass(self) -> Callable[[Tensor], Tensor]:
        """The tail with the other inputs of the last pass, also after further ones: a backward pass
        that computes it again needs those of its own forward pass."""
        return partial(self._run_tail, inputs=dict(self._tail.recorded.inputs))

    def _run_tail(self, tokens: Tensor, inputs: Inputs | None = None) -> Tensor:
        with self._autocast():
            x = self._tail(tokens.to(self._parameter().dtype), self.prefix == "own", inputs)
            out = tokens_from_map(self.extractor.finish(map_from_tokens(x, self.shapes.final)))
        return out.to(self._parameter().dtype) if self._returns_full_precision(out) else out

    @torch.no_grad()
    def cast_to_half(self, dtype: torch.dtype, device: torch.device) -> None:
        """Compute under autocast to `dtype` from now on, in less memory and with fewer casts.

        Autocast casts the weights of linear layers and convolutions at each use, and stores those
        of the tail once more for the backward pass; here they are cast once and for all. The
        outputs are bit-identical: if they are not, the weights stay in full precision. Callers
        that have no autocast enabled get the outputs in their own precision.

        Args:
            dtype: of the autocast that the student will be trained under.
            device: that trains; the teacher moves to it to compare the outputs there.
        """
        if self.half_dtype:
            return
        images, tokens = self._noise(2).to(device), self._noise_tokens(2).to(device)

        def run() -> list[Tensor]:
            features = self(images)
            outputs = features.final, features.logits, self.tail(tokens)
            return [t for t in outputs if t is not None]

        with torch.autocast(device.type, dtype):
            expected = run()
        undo = self.cast_layers_to_half(dtype)
        try:
            identical = all(map(torch.equal, expected, run()))
        except Exception:  # each module has its own way to refuse a weight's precision
            identical = False
        if not identical:
            undo()

    def cast_layers_to_half(self, dtype: torch.dtype) -> Callable[[], None]:
        """Cast as `cast_to_half`, without comparing outputs; return a function that restores."""
        restore_weights = cast_autocast_layers(self.model, dtype)
        if restore_weights is None:
            return lambda: None
        self.half_dtype = dtype

        def undo() -> None:
            self.half_dtype = None
            restore_weights()

        return undo

    def _returns_full_precision(self, like: Tensor) -> bool:
        """Whether it is in half precision and its caller has no autocast enabled."""
        return self.half_dtype is not None and not torch.is_autocast_enabled(like.device.type)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.half_dtype is None:
            return nullcontext()
        return torch.autocast(self._parameter().device.type, self.half_dtype)

    def to_cache(self, images: Tensor) -> CachedOutputs:
        """Run a pass over `images`, and return what a cache stores of it.

        Raises:
            InputError: the tail is given an input that cannot be cached.
        """
        tail_inputs = self._tail_inputs  # found by passes that replace the recorded inputs
        features = self(images)
        logits = features.logits
        if logits is None:
            logits = features.final.new_empty(len(images), 0)
        return CachedOutputs(features.final, logits, tail_inputs.to_cache(self._tail.recorded))

    def from_cache(self, cached: CachedOutputs) -> Features:
        """Return the features of the pass that `cached` is of; the tail is as after that pass.

        The penultimate feature is None, because no loss compares it.
        """
        final = cached.final.to(self._follow(cached.final))
        self._tail_inputs.from_cache(self._tail.recorded, cached.tail_inputs, final)
        return Features(None, final, cached.logits if self.shapes.classes else None)

    def drop_trunk(self) -> None:
        """Free the memory of all weights but the tail's, for good.

        Afterwards the teacher can only restore cached outputs (`from_cache`).
        """
        needed = {id(t) for module in self._modules_after_trunk() for t in _tensors(module)}
        _ = self._tail_inputs  # finding these takes the trunk
        self.trunk_dropped = True
        self._tail.recorded.inputs.clear()
        for tensor in _tensors(self.model):
            if id(tensor) not in needed:
                tensor.data = tensor.data.new_empty(0)

    def _modules_after_trunk(self) -> list[nn.Module]:
        """The modules of the tail, and the norm that its output goes through."""
        modules = [call.module for call in self._tail.calls]
        selection = self.extractor.selection
        if selection is not None and selection.norm_module is not None:
            modules.append(self.model.get_submodule(selection.norm_module))
        return modules

    @cached_property
    def _tail_inputs(self) -> TailInputs:
        """The tail's inputs; verified: with cached inputs the tail returns what it did live."""
        try:
            tail_inputs = TailInputs(
                self._tail, lambda images: self(self._noise(images)), self.prefix_tokens
            )
            self(self._noise(4))
            tokens = self._noise_tokens(4)
            live, cached = self.tail(tokens), tail_inputs.to_cache(self._tail.recorded)
            tail_inputs.from_cache(self._tail.recorded, cached, tokens)
            if not torch.equal(self.tail(tokens), live):
                raise InputError("its tail returns other values on cached inputs than live")
        except InputError as error:
            raise InputError(
                f"the teacher {type(self.model).__name__} cannot be cached: {error}; train under "
                "the live teacher"
            ) from error
        return tail_inputs

    def _noise(self, count: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """Noise (count, *shape), by default images (count, C, H, W); it differs for each count."""
        generator = torch.Generator().manual_seed(count - 2)
        shape = shape or (self.extractor.input.channels, *self.extractor.input.size)
        return torch.randn(count, *shape, generator=generator).to(self._parameter())

    def _noise_tokens(self, count: int) -> Tensor:
        """Noise as tokens (count, H*W, C) on the penultimate grid."""
        channels, height, width = self.shapes.penultimate or (0, 0, 0)
        return self._noise(count, (height * width, channels))

    def _parameter(self) -> Tensor:
        """A parameter in full precision: it has the device and precision of the teacher."""
        full_precision = (p for p in self.model.parameters() if p.dtype != self.half_dtype)
        return next(full_precision, torch.empty(0))

    def _follow(self, images: Tensor) -> torch.dtype:
        """Move to the images' device and to a wider precision, never to a narrower one, for good.

        Returns:
            The precision to compute in.
        """
        parameter = self._parameter()
        dtype = torch.promote_types(parameter.dtype, images.dtype)
        if parameter.device != images.device:
            self.model.to(images.device)
        if parameter.dtype != dtype:
            self.model.to(dtype)
            self.half_dtype = None
        return dtype


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
