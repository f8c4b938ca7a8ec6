"""What a family of timm's needs said that probing does not find: one entry, by its class.

An index counts from the end where it is negative. Everything else about a model is found by
watching it; most families need no entry.
"""

from scalekd.networks.plan import TapSettings

TEACHER_TAPS = {
    # Its blocks pass on a second stream, of pixels, beside the patches: only the last block can
    # be run on patches alone.
    "TNT": TapSettings(penultimate=-2),
}
