// What this processor can do at most: loops of nothing but tile products or fused multiply-adds.
// Built and called by limits.py.

#include <thread>
#include <vector>

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

template <class Loop>
void on_threads(int threads, Loop loop) {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(loop);
    loop();
    for (std::thread& other : others) other.join();
}

// Four accumulators of two by two operands, as in a product that tiles both of its sides.
__attribute__((target("amx-tile,amx-bf16"))) void tile_products(long count) {
    static const struct {
        unsigned char palette = 1, start_row = 0, reserved[14] = {};
        unsigned short columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        unsigned char rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } whole_tiles;
    alignas(64) const char zeros[1024] = {};
    _tile_loadconfig(&whole_tiles);
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    _tile_loadd(6, zeros, 64);
    _tile_loadd(7, zeros, 64);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (long i = 0; i < count; i += 4) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}

// Ten chains: two units of four or five cycles each.
__attribute__((target("avx512f"))) void avx512_multiply_adds(long count) {
    __m512 sums[10] = {};
    const __m512 factor = _mm512_setzero_ps();
    for (long i = 0; i < count; i += 10)
#pragma GCC unroll 10
        for (__m512& sum : sums) {
            sum = _mm512_fmadd_ps(factor, factor, sum);
            asm volatile("" : "+v"(sum));  // or the compiler does it once
        }
}

__attribute__((target("avx512f,avx512bf16"))) void avx512_pair_products(long count) {
    __m512 sums[10] = {};
    const __m512bh factor = (__m512bh)_mm512_setzero_si512();
    for (long i = 0; i < count; i += 10)
#pragma GCC unroll 10
        for (__m512& sum : sums) {
            sum = _mm512_dpbf16_ps(sum, factor, factor);
            asm volatile("" : "+v"(sum));
        }
}

__attribute__((target("avx2,fma"))) void avx2_multiply_adds(long count) {
    __m256 sums[10] = {};
    const __m256 factor = _mm256_setzero_ps();
    for (long i = 0; i < count; i += 10)
#pragma GCC unroll 10
        for (__m256& sum : sums) {
            sum = _mm256_fmadd_ps(factor, factor, sum);
            asm volatile("" : "+x"(sum));
        }
}

}  // namespace

extern "C" {

// False where the kernel grants no tiles.
bool has_amx() {
    constexpr int request_permission = 0x1023, tile_data = 18;
    return __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

// Each thread's `count` products of 16x32 and 32x16 bfloat16: 16384 operations each.
void amx_loop(int threads, long count) {
    on_threads(threads, [count] { tile_products(count); });
}

bool has_pairs() {
    return __builtin_cpu_supports("avx512bf16");
}

// Each thread's `count` vectors of pairs of bfloat16, multiplied and added: 64 operations each.
void pairs_loop(int threads, long count) {
    on_threads(threads, [count] { avx512_pair_products(count); });
}

// Each thread's `count` vectors of multiply-adds; returns operations a vector.
int fma_loop(int threads, long count) {
    if (__builtin_cpu_supports("avx512f")) {
        on_threads(threads, [count] { avx512_multiply_adds(count); });
        return 32;
    }
    on_threads(threads, [count] { avx2_multiply_adds(count); });
    return 16;
}
}
