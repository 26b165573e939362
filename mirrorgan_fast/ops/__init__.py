"""The ops, one file for each, and the choice between their implementations."""

from mirrorgan_fast.ops.batch_norm_glu import batch_norm_glu
from mirrorgan_fast.ops.batch_norm_leaky_relu import batch_norm_leaky_relu
from mirrorgan_fast.ops.bidirectional_lstm import PackedLSTM, bidirectional_lstm, pack_lstm
from mirrorgan_fast.ops.build_info import (
    BuildInfo,
    build_info,
    instruction_set,
    why_no_cuda_kernels,
    why_not_compiled,
)
from mirrorgan_fast.ops.choice import Choice, asked_for, report, use
from mirrorgan_fast.ops.conv2d import conv2d
from mirrorgan_fast.ops.conv_add import conv_add
from mirrorgan_fast.ops.conv_glu import conv_glu
from mirrorgan_fast.ops.conv_relu import conv_relu
from mirrorgan_fast.ops.glam import PackedGLAM, PackedLayer, PackedStage, glam
from mirrorgan_fast.ops.glam_attention import glam_attention, word_attention_map
from mirrorgan_fast.ops.glam_attention_mix import glam_attention_mix
from mirrorgan_fast.ops.glam_stage import glam_stage
from mirrorgan_fast.ops.image_head import image_head
from mirrorgan_fast.ops.instance_norm import instance_norm
from mirrorgan_fast.ops.packing import Layout, pack, pack_transposed
from mirrorgan_fast.ops.word_similarity import word_similarity

__all__ = [
    "BuildInfo",
    "Choice",
    "Layout",
    "PackedGLAM",
    "PackedLSTM",
    "PackedLayer",
    "PackedStage",
    "asked_for",
    "batch_norm_glu",
    "batch_norm_leaky_relu",
    "bidirectional_lstm",
    "build_info",
    "conv2d",
    "conv_add",
    "conv_glu",
    "conv_relu",
    "glam",
    "glam_attention",
    "glam_attention_mix",
    "glam_stage",
    "image_head",
    "instance_norm",
    "instruction_set",
    "pack",
    "pack_lstm",
    "pack_transposed",
    "report",
    "use",
    "why_no_cuda_kernels",
    "why_not_compiled",
    "word_attention_map",
    "word_similarity",
]
