// Which arithmetic this processor multiplies faster in: bf16, two products at a time, or fp32.
#include <immintrin.h>

#include <algorithm>
#include <chrono>

namespace {

constexpr int REPEATS = 40, ROUNDS = 4000, SUMS = 12;

template <int Terms>
double seconds() {  // of the fastest of many repeats: others may take the core away in between
  using Clock = std::chrono::steady_clock;
  __m512 sum[SUMS] = {}, a = _mm512_set1_ps(1e-3f), b = a;
  double least = 1e9;
  for (int repeat = 0; repeat < REPEATS; ++repeat) {
    const auto started = Clock::now();
    for (int round = 0; round < ROUNDS; ++round) {
      asm volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 12
      for (int i = 0; i < SUMS; ++i)
        sum[i] = Terms == 2 ? _mm512_dpbf16_ps(sum[i], (__m512bh)a, (__m512bh)b) : _mm512_fmadd_ps(a, b, sum[i]);
    }
    least = std::min(least, std::chrono::duration<double>(Clock::now() - started).count());
  }
  for (int i = 0; i < SUMS; ++i) asm volatile("" : : "v"(sum[i]));
  return least / Terms;
}

}  // namespace

extern "C" int kilolayer_terms() { return seconds<2>() < seconds<1>() ? 2 : 1; }
