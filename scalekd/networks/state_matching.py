"""Matching a file's tensors to a model: prefixes removed, original names translated."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from scalekd.errors import InputError
from scalekd.networks.pretrained import Mismatch, StateDict, is_state_dict, shortened_list


@dataclass(frozen=True)
class MatchedState:
    """A file's tensors under a model's names.

    state: the tensors.
    unexpected: names in the file that were skipped.
    remarks: what was done to the names and tensors.
    """

    state: StateDict
    unexpected: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def match_state(model: nn.Module, state: StateDict, classifiers: tuple[str, ...]) -> MatchedState:
    """Return `state` under the names of `model`, whatever its `classifiers` are.

    The candidates are the state as it is, the state with one prefix removed from its names, and
    both through timm's checkpoint filter for the model's family, which translates the original
    authors' names and resamples position embeddings. The first candidate that fits is returned,
    else the one with the fewest mismatches.

    Raises:
        InputError: the file holds several networks.
    """
    mismatched: list[tuple[int, MatchedState]] = []
    for candidate in _candidates(model, state):
        mismatches = len(Mismatch.between(model, candidate.state, classifiers))
        if not mismatches:
            return candidate
        mismatched.append((mismatches, candidate))
    return min(mismatched, key=lambda pair: pair[0])[1]


def _candidates(model: nn.Module, state: StateDict) -> Iterator[MatchedState]:
    candidates = [MatchedState(state)]
    yield candidates[0]
    model_names = set(model.state_dict())
    if prefix := _find_prefix(state, model_names):
        candidates.append(_without_prefix(prefix, state, model_names))
        yield candidates[1]
    for candidate in candidates:
        if filtered := _through_timm_filter(model, candidate):
            yield filtered


def _find_prefix(state: StateDict, model_names: set[str]) -> str:
    """Return the dotted prefix to remove from the names in `state`, or "".

    It is the one without which the most names are the model's, if more than as they are; where no
    name matches in either way, the longest prefix that all names share.
    """
    names_under: Counter[str] = Counter()
    matches: Counter[str] = Counter()
    for name in state:
        for end in (i + 1 for i, letter in enumerate(name) if letter == "."):
            names_under[name[:end]] += 1
            matches[name[:end]] += name[end:] in model_names
    most = max(matches.values(), default=0)
    if most <= len(model_names & state.keys()):
        shared = [prefix for prefix, n in names_under.items() if n == len(state) and not most]
        return max(shared, key=len, default="")
    best = sorted(prefix for prefix, n in matches.items() if n == most)
    if len(best) > 1 and 2 * most > len(model_names):
        raise InputError(
            f"the file holds several networks ({shortened_list(tuple(best))}): save the tensors "
            "of only one"
        )
    return best[0]


def _without_prefix(prefix: str, state: StateDict, model_names: set[str]) -> MatchedState:
    """Remove `prefix`; names without it stay if they are the model's (a classifier's, mostly)."""
    others = {n: t for n, t in state.items() if not n.startswith(prefix)}
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    return MatchedState(
        {n: t for n, t in others.items() if n in model_names} | inside,
        tuple(n for n in others if n not in model_names),
        (f"prefix {prefix!r} removed",),
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
    if reshaped := tuple(n for n in state if n in before and state[n].shape != before[n].shape):
        remark += f", which reshaped {shortened_list(reshaped)}"
    if len(state) != len(before):
        remark += f", which made {len(state)} tensors of {len(before)}"
    return replace(candidate, state=state, remarks=(*candidate.remarks, remark))
