// The AMX instructions as functions. They are for tests of the AMX kernels on processors without AMX, and under sanitizers,
// which cannot see the memory accesses of the real instructions. Enabled by -DMIRRORGAN_EMULATED_TILES (`make sanitize`).

#pragma once

#include <cstdint>

#include "vectors.h"

namespace mirrorgan::emulated_tiles {

using Row = Vector<16>::Bits;

struct Registers {
  Row tiles[8][16] = {};
  bool usable = false;
};
inline thread_local Registers registers;

inline Row* tile(int number) {
  if (!registers.usable) {
    __builtin_trap();  // the processor traps as well
  }
  return registers.tiles[number];
}

inline void configure(bool usable) {
  registers = Registers{};
  registers.usable = usable;
}

inline void zero(int number) {
  __builtin_memset(tile(number), 0, sizeof registers.tiles[number]);
}

inline void load(int number, const void* source, int64_t stride) {
  Row* rows = tile(number);
  for (int row = 0; row < 16; ++row) {
    __builtin_memcpy(rows + row, static_cast<const char*>(source) + row * stride, sizeof(Row));
  }
}

inline void store(int number, void* target, int64_t stride) {
  const Row* rows = tile(number);
  for (int row = 0; row < 16; ++row) {
    __builtin_memcpy(static_cast<char*>(target) + row * stride, rows + row, sizeof(Row));
  }
}

// Sums the even and the odd elements separately, then adds both sums. Without sanitizers: it accesses no memory but the
// emulated registers, and would take most of the test's time.
__attribute__((target("avx512f"), no_sanitize("address", "undefined"))) inline void multiply(
    int sums, int left, int right) {
  using Float = Vector<16>::Float;
  Row* const out = tile(sums);
  const Row *const rows = tile(left), *const columns = tile(right);
  for (int row = 0; row < 16; ++row) {
    Float even = {}, odd = {};
    for (int pair = 0; pair < 16; ++pair) {
      const uint32_t both = rows[row][pair];
      even += (Float)(Row{} + (both << 16)) * (Float)(columns[pair] << 16);
      odd += (Float)(Row{} + (both & 0xffff0000u)) * (Float)(columns[pair] & 0xffff0000u);
    }
    out[row] = (Row)((Float)out[row] + (even + odd));
  }
}

}  // namespace mirrorgan::emulated_tiles

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(shapes) (static_cast<void>(shapes), ::mirrorgan::emulated_tiles::configure(true))
#define _tile_release() ::mirrorgan::emulated_tiles::configure(false)
#define _tile_zero ::mirrorgan::emulated_tiles::zero
#define _tile_loadd ::mirrorgan::emulated_tiles::load
#define _tile_stored ::mirrorgan::emulated_tiles::store
#define _tile_dpbf16ps ::mirrorgan::emulated_tiles::multiply
