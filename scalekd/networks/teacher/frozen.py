"""The teacher: frozen by construction, and able to run its last stage on others' tokens."""

import copy
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalekd.errors import InputError
from scalekd.features import Features
from scalekd.networks.feature_extractor import build_feature_extractor
from scalekd.networks.feature_selection import FeatureSelection
from scalekd.networks.layout import map_from_tokens, tokens_from_map
from scalekd.networks.teacher.tail import Tail, find_tail
from scalekd.networks.teacher.tail_inputs import CachedOutputs, TailInputs

PrefixTokens = Literal["own", "none"]


class FrozenTeacher:
    """A teacher that nothing can train, with its tail.

    Not a module, so it is in nobody's `parameters()`, `state_dict()`, checkpoint, EMA or DDP, and
    a trainer's `train()` does not reach it; a deep copy is itself. It follows the images that it
    is shown to their device, and to float64.

    Args:
        model: a timm model with pretrained weights, or a module that offers its features. It is
            put into eval mode and its parameters are frozen, in place.
        size: (height, width) that it works at; default its own. Other images are resized.
        features: which features of a timm model. Where they leave the norm open and the final
            norm cannot be replayed, the target is the last stage's output without it.
        prefix: the prefix tokens (class, registers) that the tail sees beside others' tokens: the
            teacher's "own", of the same image, or "none", as in the released code.

    Attributes:
        shapes: `FeatureShapes` of what it gives.
        input: its channels, size and normalisation.
        extractor: its `FeatureExtractor`, with the features resolved.
        difference: largest difference between the replayed tail and the teacher's own output on
            noise, relative to the largest value of that output.
        tail_modules: names of the modules that the tail runs.
        prefix_tokens: how many of its own prefix tokens they see beside others' tokens.
        trunk_dropped: whether it can only `recall` what was kept of its passes.
        half_dtype: the precision that `halve` gave it; None where its weights are whole.

    Raises:
        InputError: no tail can be found, its replay differs by more than `TOLERANCE`, or it cannot
            run without prefix tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int] | None = None,
        features: FeatureSelection | None = None,
        prefix: PrefixTokens = "own",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.trunk_dropped = False
        self.half_dtype: torch.dtype | None = None
        self.prefix = prefix
        self.requested_features = features or FeatureSelection()
        self.extractor = build_feature_extractor(
            model, size, self.requested_features, is_teacher=True
        )
        try:
            self._tail = self._verified()
        except InputError:
            plan = self.extractor.selection
            if self.requested_features.norm is not None or plan is None or not plan.whole:
                raise
            self.requested_features = replace(self.requested_features, norm="none")
            self.extractor = build_feature_extractor(
                model, size, self.requested_features, is_teacher=True
            )
            self._tail = self._verified()
        self.input, self.shapes = self.extractor.input, self.extractor.shapes
        self.difference = self._tail.difference
        names = {module: name for name, module in model.named_modules()}
        self.tail_modules = [names[step.module] for step in self._tail.steps]
        assert self.shapes.penultimate is not None
        cells = self.shapes.penultimate[1] * self.shapes.penultimate[2]
        first = self._tail.first
        shown = prefix == "own" and first.dim() == 3
        self.prefix_tokens = first.shape[1] - cells if shown else 0

    @property
    def reorders_tokens(self) -> bool:
        """Whether its tail takes tokens in an order of its own, which depends on the size."""
        return any(step.layout.order is not None for step in self._tail.steps)

    @cached_property
    def fingerprint(self) -> str:
        """Of its weights and buffers, by name and value, as they are when first asked for."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            values = tensor.detach().cpu().contiguous()
            digest.update(values.view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def with_model(self, model: nn.Module, size: tuple[int, int] | None = None) -> "FrozenTeacher":
        """This teacher with another `model` of its architecture, perhaps of another size.

        Nothing is verified again: it serves to count on the meta device.
        """
        twin = copy.copy(self)
        twin.model = model.eval().requires_grad_(False)
        twin.extractor = build_feature_extractor(
            model, size, self.requested_features, is_teacher=True
        )
        twin.input, twin.shapes = twin.extractor.input, twin.extractor.shapes
        twin._tail = self._tail.of([model.get_submodule(name) for name in self.tail_modules])
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenTeacher":
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of `images` (N, channels, H, W), normalised as `self.input` says."""
        if self.trunk_dropped:
            raise InputError(
                "the teacher's trunk was dropped: its features of images come from a cache (recall)"
            )
        images = images.to(self._follow(images))
        if tuple(images.shape[2:]) != self.input.size:
            images = F.interpolate(images, self.input.size, mode="bicubic", antialias=True)
        self.model.eval()
        with self._tail.record.active(), self._autocast():
            seen = self.extractor(images)
        if not self._alone_in_half(images):
            return seen
        whole = [t if t is None else t.to(images.dtype) for t in (seen.penultimate, seen.logits)]
        return Features(whole[0], seen.final.to(images.dtype), whole[1])

    def tail(self, tokens: Tensor) -> Tensor:
        """Tokens (N, L, C) on the penultimate grid -> (N, L', C') on the final one.

        To be called after the teacher's pass on the same N images, whose other inputs it reuses.
        Gradients run through it to the tokens.
        """
        with self._autocast():
            x = self._tail(tokens.to(self._parameter().dtype), self.prefix == "own")
            out = tokens_from_map(self.extractor.finish(map_from_tokens(x, self.shapes.final)))
        return out.to(self._parameter().dtype) if self._alone_in_half(out) else out

    @torch.no_grad()
    def cast_to_half(self, dtype: torch.dtype, device: torch.device) -> None:
        """Compute under autocast to `dtype` from now on, on less memory and with fewer casts.

        Autocast casts weights of linear layers and convolutions at each use, and keeps those of the
        tail once more for the backward pass; here they are cast for good. The numbers are the same:
        where they are not to the bit, the weights stay as they are. To those who have no autocast
        on themselves it gives its numbers in their precision.

        Args:
            dtype: of the autocast that it will be trained under.
            device: to try that on, which it moves to: the one that trains.
        """
        if self.half_dtype:
            return
        images = self._noise(2).to(device)
        channels, height, width = self.shapes.penultimate or (0, 0, 0)
        tokens = self._noise(2, (height * width, channels)).to(device)

        def tried() -> list[Tensor]:
            seen = self(images)
            return [t for t in (seen.final, seen.logits, self.tail(tokens)) if t is not None]

        with torch.autocast(device.type, dtype):
            exact = tried()
        undo = self.cast_layers_to_half(dtype)
        try:
            same = all(map(torch.equal, exact, tried()))
        except Exception:  # each module has its own way to refuse a weight's precision
            same = False
        if not same:
            undo()

    def cast_layers_to_half(self, dtype: torch.dtype) -> Callable[[], None]:
        """What `halve` does, untried; returns what undoes it."""
        layers = [m for m in self.model.modules() if type(m) in (nn.Linear, nn.Conv2d)]
        whole = {p: p.data for layer in layers for p in layer.parameters()}
        if all(p in whole for p in self.model.parameters()):
            return lambda: None  # of the others one has to tell the precision
        for parameter in whole:
            parameter.data = parameter.data.to(dtype)
        self.half_dtype = dtype

        def undo() -> None:
            self.half_dtype = None
            for parameter, data in whole.items():
                parameter.data = data

        return undo

    def _alone_in_half(self, given: Tensor) -> bool:
        return self.half_dtype is not None and not torch.is_autocast_enabled(given.device.type)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.half_dtype is None:
            return nullcontext()
        return torch.autocast(self._parameter().device.type, self.half_dtype)

    def to_cache(self, images: Tensor) -> CachedOutputs:
        """Its pass over `images`, as what can be kept of it in place of the images' own.

        Raises:
            InputError: its tail is given something that cannot be kept.
        """
        beside = self._beside  # found by passes of its own
        features = self(images)
        logits = features.logits
        if logits is None:
            logits = features.final.new_empty(len(images), 0)
        return CachedOutputs(features.final, logits, beside.take(self._tail.record))

    def from_cache(self, kept: CachedOutputs) -> Features:
        """What the pass over the images of `kept` gave; the tail is as after that pass.

        There is no penultimate feature, which no loss compares.
        """
        final = kept.final.to(self._follow(kept.final))
        self._beside.give(self._tail.record, kept.tail_inputs, final)
        return Features(None, final, kept.logits if self.shapes.classes else None)

    def drop_trunk(self) -> None:
        """Free the memory of all weights but its tail's, for good: it can only `recall` then."""
        needed = {id(t) for module in self._kept_modules() for t in _tensors(module)}
        _ = self._beside  # takes the trunk to find
        self.trunk_dropped = True
        self._tail.record.given.clear()
        for tensor in _tensors(self.model):
            if id(tensor) not in needed:
                tensor.data = tensor.data.new_empty(0)

    def _kept_modules(self) -> list[nn.Module]:
        """Those of the tail, and the norm that its output goes through."""
        modules = [step.module for step in self._tail.steps]
        if (
            self.extractor.selection is not None
            and self.extractor.selection.norm_module is not None
        ):
            modules.append(self.model.get_submodule(self.extractor.selection.norm_module))
        return modules

    @cached_property
    def _beside(self) -> TailInputs:
        """Verified: what was kept of one more pass makes the tail do as after the pass itself."""
        try:
            beside = TailInputs(
                self._tail, lambda images: self(self._noise(images)), self.prefix_tokens
            )
            self(self._noise(4))
            channels, height, width = self.shapes.penultimate or (0, 0, 0)
            tokens = self._noise(4, (height * width, channels))
            own, taken = self.tail(tokens), beside.take(self._tail.record)
            beside.give(self._tail.record, taken, tokens)
            if not torch.equal(self.tail(tokens), own):
                raise InputError("its tail does otherwise on what was kept than after the pass")
        except InputError as error:
            raise InputError(
                f"the teacher {type(self.model).__name__} cannot be cached: {error}; train under "
                "the live teacher"
            ) from error
        return beside

    def _noise(self, images: int, shape: tuple[int, ...] | None = None) -> Tensor:
        """As many, other ones for each number; (images, *shape), by default (C, H, W)."""
        generator = torch.Generator().manual_seed(images - 2)
        shape = shape or (self.extractor.input.channels, *self.extractor.input.size)
        return torch.randn(images, *shape, generator=generator).to(self._parameter())

    def _parameter(self) -> Tensor:
        """One that tells device and precision."""
        whole = (p for p in self.model.parameters() if p.dtype != self.half_dtype)
        return next(whole, torch.empty(0))

    def _follow(self, images: Tensor) -> torch.dtype:
        """To the images' device, and to a wider precision; never to a narrower one, for good."""
        parameter = self._parameter()
        dtype = torch.promote_types(parameter.dtype, images.dtype)
        if parameter.device != images.device:
            self.model.to(images.device)
        if parameter.dtype != dtype:
            self.model.to(dtype)
            self.half_dtype = None
        return dtype

    @torch.no_grad()
    def _verified(self) -> Tail:
        """The tail, if it gives what the teacher gives."""
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
            if tail is not None:
                tail.record.remove()
            reason = (str(error) or type(error).__name__).splitlines()[0]
            remedy = "take another penultimate index, or another teacher"
            if tail is not None:
                remedy = "leave it its own prefix tokens (teacher_prefix own)"
            if self.extractor.selection is None:
                remedy = (
                    "let modules do all that happens between its features (docs/own-modules.md)"
                )
            raise InputError(
                f"the teacher {type(self.model).__name__} cannot be replayed: "
                f"{reason.rstrip('.')}; {remedy}"
            ) from error
        return tail


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
