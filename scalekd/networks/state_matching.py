"""Matching a file's tensors to a model: prefixes removed, original names translated."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from scalekd.errors import InputError
from scalekd.networks.pretrained import Mismatch, is_state_dict
from scalekd.networks.transformers_names import translate
from scalekd.networks.weight_files import (
    KEY_OPTION,
    StateDict,
    choose_network,
    remark_on_average,
    shortened_list,
)


@dataclass(frozen=True)
class MatchedState:
    """A file's tensors under a model's names.

    state: the tensors.
    unexpected: names in the file that were skipped.
    remarks: what was done to the names and tensors.
    resampled: names of tables that were resampled, and their shapes in the file.
    from_transformers: whether transformers' names were translated.
    """

    state: StateDict
    unexpected: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    resampled: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    from_transformers: bool = False


def match_state(model: nn.Module, state: StateDict, classifiers: tuple[str, ...]) -> MatchedState:
    """Return `state` under the names of `model`, whatever its `classifiers` are.

    The candidates are the state as it is, with one prefix removed from its names, with the names
    of transformers translated, and each of them through timm's checkpoint filter for the model's
    family, which translates the original authors' names and resamples position embeddings. The
    first candidate that fits is returned, else the one with the fewest mismatches.

    Raises:
        InputError: the file holds several networks.
    """
    mismatched: list[tuple[int, MatchedState]] = []
    for candidate in _candidates(model, state, classifiers):
        mismatches = len(Mismatch.between(model, candidate.state, classifiers))
        if not mismatches:
            return candidate
        mismatched.append((mismatches, candidate))
    return min(mismatched, key=lambda pair: pair[0])[1]


def _candidates(
    model: nn.Module, state: StateDict, classifiers: tuple[str, ...]
) -> Iterator[MatchedState]:
    candidates = [_with_plain_classifier(MatchedState(state), classifiers)]
    yield candidates[0]
    if translation := translate(state, model, classifiers):
        translated = MatchedState(
            translation.state, translation.skipped, translation.remarks, from_transformers=True
        )
        translated = _with_plain_classifier(translated, classifiers)
        yield translated
        if filtered := _through_timm_filter(model, translated):
            yield filtered
        return
    model_names = set(model.state_dict())
    prefix, remarks = _find_prefix(state, model_names)
    if prefix:
        without = _without_prefix(prefix, state, model_names, classifiers, remarks)
        candidates.append(_with_plain_classifier(without, classifiers))
        yield candidates[1]
    for candidate in candidates:
        if filtered := _through_timm_filter(model, candidate):
            yield filtered


def _with_plain_classifier(candidate: MatchedState, classifiers: tuple[str, ...]) -> MatchedState:
    """Rename a linear layer that is all that has weights in a sequence to the classifier itself.

    A classifier Sequential(Dropout, Linear) has its weights under head.1, for example.
    """
    renamed: dict[str, str] = {}
    for head in classifiers:
        inside = [n for n in candidate.state if n.startswith(f"{head}.")]
        layers = {name.rpartition(".")[0] for name in inside}
        layer = layers.pop() if len(layers) == 1 else head
        weight = candidate.state.get(f"{layer}.weight")
        if layer != head and weight is not None and weight.dim() == 2:
            renamed |= {name: head + name.removeprefix(layer) for name in inside}
    if not renamed:
        return candidate
    pairs = {(old.rpartition(".")[0], new.rpartition(".")[0]) for old, new in renamed.items()}
    remarks = (f"{old} of the file loaded as the classifier {new}" for old, new in sorted(pairs))
    state = {renamed.get(name, name): tensor for name, tensor in candidate.state.items()}
    return replace(candidate, state=state, remarks=(*candidate.remarks, *remarks))


def _find_prefix(state: StateDict, model_names: set[str]) -> tuple[str, tuple[str, ...]]:
    """Return the dotted prefix to remove from the names in `state`, or "", and remarks.

    It is the one without which the most names are the model's, if more than as they are; where no
    name matches in either way, the longest prefix that all names share. Of a network and its
    average over the steps it is the average's.
    """
    names_under: Counter[str] = Counter()
    matches: Counter[str] = Counter()
    for name in state:
        for end in (i + 1 for i, letter in enumerate(name) if letter == "."):
            names_under[name[:end]] += 1
            matches[name[:end]] += name[end:] in model_names
    matches[""] = len(model_names & state.keys())
    most = max(matches.values())
    if not most:
        shared = [prefix for prefix, n in names_under.items() if n == len(state)]
        return max(shared, key=len, default=""), ()
    # A network's average may lack the buffers.
    networks = [p for p, n in matches.items() if 3 * n >= most and 3 * n > len(model_names)]
    if len(networks) > 1:
        chosen = choose_network(networks)
        if chosen is None:
            raise InputError(
                f"the file holds several networks ({shortened_list(tuple(networks))}): choose one "
                f"by its prefix with {KEY_OPTION}"
            )
        return chosen, (remark_on_average(chosen, networks),)
    best = sorted(prefix for prefix, n in matches.items() if n == most)
    return best[0], ()


def _without_prefix(
    prefix: str,
    state: StateDict,
    model_names: set[str],
    classifiers: tuple[str, ...],
    remarks: tuple[str, ...],
) -> MatchedState:
    """Remove `prefix`; names without it stay if they are the model's (a classifier's, mostly).

    Remarks say that there are several networks, of which this is one: then the others' stay not.
    """
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    heads = tuple(f"{head}." for head in classifiers)
    outside = {n: t for n, t in state.items() if not n.startswith(prefix)}
    kept = (
        {}
        if remarks
        else {n: t for n, t in outside.items() if n in model_names or n.startswith(heads)}
    )
    return MatchedState(
        kept | inside,
        tuple(n for n in outside if n not in kept),
        (*remarks, f"prefix {prefix!r} removed"),
    )


def _through_timm_filter(model: nn.Module, candidate: MatchedState) -> MatchedState | None:
    function = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if function is None:
        return None
    before = candidate.state
    try:
        state = function(dict(before), model)
    except Exception:  # written for its family's files, it can fail in any way on others
        return None
    if not is_state_dict(state):
        return None
    remark = "through timm's checkpoint filter"
    resampled = changed_shapes(before, state)
    if len(state) != len(before):
        remark += f", which made {len(state)} tensors of {len(before)}"
    remarks = (*candidate.remarks, remark)
    return replace(candidate, state=state, remarks=remarks, resampled=resampled)


def changed_shapes(before: StateDict, after: StateDict) -> dict[str, tuple[int, ...]]:
    """Return the names and earlier shapes of the tensors that have other values now by shape.

    A tensor that only has another number of axes with the same values does not count.
    """
    both = {name: (before[name], after[name]) for name in before if name in after}
    return {
        name: tuple(old.shape)
        for name, (old, new) in both.items()
        if old.shape != new.shape and (old.dim() == new.dim() or old.numel() != new.numel())
    }
