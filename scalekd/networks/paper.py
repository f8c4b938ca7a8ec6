"""Where the paper's own models depart from the general rules, by their names in timm.

The general rules: taps as `Taps` finds them, projector heads of 64 channels. This list is closed:
it says what one paper did, and other models need no entry.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperTaps:
    """Arguments of `Taps` for a student of the paper."""

    penultimate: int
    final_norm: bool


STUDENT_TAPS = {
    "mixer_s16_224": PaperTaps(penultimate=5, final_norm=False),
    "mixer_b16_224": PaperTaps(penultimate=9, final_norm=False),
}

TEACHER_HEADS = {
    "swin_small_patch4_window7_224": (3, 6),
    "swin_base_patch4_window7_224": (8, 16),
    "swin_large_patch4_window7_224": (16, 24),
}
"""Heads of CAP3 and CAP4."""
