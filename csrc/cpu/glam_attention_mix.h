// mirrorgan::glam_attention_mix on the CPU: what its two forms share, one with float32 vectors and one with AMX.

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

  // How many scores of the sentence a pixel has.
  int64_t gates() const {
    return sentence == nullptr ? 0 : channels;
  }
};

// The matrices that a sample's pixels are multiplied by. Padding is left out rather than masked. So it takes no time,
// and NaN in it cannot reach the result. The 1x1 mix is folded into the matrices that the softmaxes are multiplied by:
// out = mix_f f + (mix_w keys) softmax(keys f) + (mix_s s) softmax(gate f). With AMX and many words, mix_w is not
// folded: keys softmax(keys f) has fewer rows then.
struct Sample {
  int64_t words;          // real words
  const float* keys;      // (words, C)
  const float* sentence;  // (C)
  const float* gate;      // (C, C), M diag(s); for AMX also in the paper's form, where it is diag(s)
  const float* mix;       // (C + words + gates, O) if folded, otherwise (C + C + gates, O)
  bool folded;            // whether mix_w is folded into the words
};

#if defined(MIRRORGAN_X86)
// Panels of right tiles for AMX, for one sample.
struct Panels {
  int64_t channels, words, gates, out_channels;  // padded to whole tiles
  const bfloat16_bits *keys, *gate, *mix;
  const bfloat16_bits* values;  // of the words, if the mix is not folded into them
  const float* start;           // initial scores of words and gates: very low for padding, so that it has no share
};

// The mix is folded into at most this many words.
int64_t max_folded_words(const Arguments& a);
// The maximum number of bfloat16 in a sample's panels.
int64_t panels_size(const Arguments& a);
Panels pack_panels(const Arguments& a, const Sample& sample, bfloat16_bits* storage);
// The panels of all samples, in memory of this thread that the next call overwrites.
const Panels* prepare_panels(const Arguments& a);
// Computes `rows` rows of `pixels` pixels of a sample. The rows of the features follow each other; those of the result are
// `pitch` elements apart.
void attend_amx(const Arguments& a, const Panels& panels, const bfloat16_bits* features, bfloat16_bits* out, int64_t rows,
                int64_t pixels, int64_t pitch);
#endif

}  // namespace mirrorgan::attention_mix
