// mirrorgan::glam_attention_mix on the CPU: what its two forms, of float32 vectors and of AMX tiles, share.

#pragma once

#include <cstdint>

#include "vectors.h"

namespace mirrorgan::attention_mix {

struct Arguments {
  const void* features;         // (N, H*W, C)
  const void* words;            // (N, T, C)
  const uint8_t* mask;          // (N, T)
  const void* sentence;         // (N, C) or null
  const void* sentence_weight;  // (C, C) or null
  const void* mix;              // (O, 2C) without a sentence, else (O, 3C)
  void* out;                    // (N, H*W, O)
  int64_t samples, channels, words_per_sample, pixels, out_channels;

  // Scores that a pixel has beside its features: of words, and of the sentence's channels.
  int64_t gates() const {
    return sentence == nullptr ? 0 : channels;
  }
};

// What a sample's pixels are multiplied with. Padding is left out rather than masked: it costs nothing, and nothing in it
// can reach the result. The 1x1 mix is folded into what the softmaxes weigh:
// out = mix_f f + (mix_w keys) softmax(keys f) + (mix_s s) softmax(gate f).
// For AMX mix_w is not folded into many words: keys softmax(keys f) is a shorter sum then.
struct Sample {
  int64_t words;          // the real ones
  const float* keys;      // (words, C)
  const float* sentence;  // (C)
  const float* gate;      // (C, C), M diag(s); for AMX also of the paper's form, where it is diag(s)
  const float* mix;       // (C + words + gates, O), or of many words (C + C + gates, O), which their context is mixed with
  bool folded;            // the mix into the words, which `keys` then only score
};

#if defined(MIRRORGAN_X86)
// Panels of right tiles that the AMX unit multiplies with, for one sample.
struct Panels {
  int64_t channels, words, gates, out_channels;  // filled up to whole tiles
  const bfloat16_bits *keys, *gate, *mix;
  const bfloat16_bits* values;  // of the words, if their context is computed
  const float* start;           // of the scores of words and gates: what was filled up has no share
};

// Words that the mix is folded into at the most.
int64_t most_folded(const Arguments& a);
// bfloat16 that the panels of a sample take at the most, and the sample's floats behind them.
int64_t panels_size(const Arguments& a);
Panels pack_panels(const Arguments& a, const Sample& sample, bfloat16_bits* storage);
// The panels of all samples, in memory of this thread that the next call takes again.
const Panels* prepare_panels(const Arguments& a);
// Rows of so many pixels of a sample, without gaps in the features; a row's result is `pitch` after that of the row before.
void attend_amx(const Arguments& a, const Panels& panels, const bfloat16_bits* features, bfloat16_bits* out, int64_t rows,
                int64_t pixels, int64_t pitch);
#endif

}  // namespace mirrorgan::attention_mix
