// The x86-64 intrinsics without warnings from their header, and macros for the targets of functions that call them.

#pragma once

// GCC 12 wrongly warns about values that its own intrinsics leave uninitialized on purpose (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

// Functions between the two macros are compiled for the instruction sets that the string names.
#define MIRRORGAN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define MIRRORGAN_BEGIN_TARGET(names) \
  MIRRORGAN_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define MIRRORGAN_END_TARGET MIRRORGAN_PRAGMA(clang attribute pop)
#else
#define MIRRORGAN_BEGIN_TARGET(names) MIRRORGAN_PRAGMA(GCC push_options) MIRRORGAN_PRAGMA(GCC target(names))
#define MIRRORGAN_END_TARGET MIRRORGAN_PRAGMA(GCC pop_options)
#endif
