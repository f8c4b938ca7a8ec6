"""What a family of timm's teachers needs and probing does not find: one entry for its class.

A negative index counts from the end. Everything else about a model is found by tracing its calls;
most families need no entry.
"""

from scalekd.networks.feature_selection import FeatureSelection

FAMILY_SELECTIONS = {
    # VOLO adds positions between two modules, after the first stage: the tail starts behind them.
    "VOLO": FeatureSelection(penultimate=1),
    # TNT's blocks pass on a second stream, of pixels, besides the patches: only the last block
    # can be run on patches without it.
    "TNT": FeatureSelection(penultimate=-2),
}
