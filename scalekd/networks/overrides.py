"""What a family of timm's needs said that probing does not find: one entry, by its class.

An index counts from the end where it is negative. Everything else about a model is found by
watching it; most families need no entry.
"""

from scalekd.networks.feature_selection import FeatureSelection

FAMILY_SELECTIONS = {
    # Positions are added between two modules, after the first stage: the tail starts behind them.
    "VOLO": FeatureSelection(penultimate=1),
    # Its blocks pass on a second stream, of pixels, beside the patches: only the last block can
    # be run on patches alone.
    "TNT": FeatureSelection(penultimate=-2),
}
