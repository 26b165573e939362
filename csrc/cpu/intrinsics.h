// The intrinsics of x86-64, without the warnings of their own header, and targets for the functions that call them.

#pragma once

// GCC 12 believes that what its own intrinsics leave undefined on purpose is read (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif

// The functions between the two are compiled for what the string names, in the compilers' own words.
#define MIRRORGAN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define MIRRORGAN_BEGIN_TARGET(names) \
  MIRRORGAN_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define MIRRORGAN_END_TARGET MIRRORGAN_PRAGMA(clang attribute pop)
#else
#define MIRRORGAN_BEGIN_TARGET(names) MIRRORGAN_PRAGMA(GCC push_options) MIRRORGAN_PRAGMA(GCC target(names))
#define MIRRORGAN_END_TARGET MIRRORGAN_PRAGMA(GCC pop_options)
#endif
