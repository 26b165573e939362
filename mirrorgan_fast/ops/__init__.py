"""The ops, one file each, and the choice between their implementations."""

from mirrorgan_fast.ops.batch_norm_glu import batch_norm_glu
from mirrorgan_fast.ops.build_info import BuildInfo, build_info, why_not_compiled
from mirrorgan_fast.ops.choice import Choice, report, use
from mirrorgan_fast.ops.glam_attention import glam_attention, word_attention_map

__all__ = [
    "BuildInfo",
    "Choice",
    "batch_norm_glu",
    "build_info",
    "glam_attention",
    "report",
    "use",
    "why_not_compiled",
    "word_attention_map",
]
