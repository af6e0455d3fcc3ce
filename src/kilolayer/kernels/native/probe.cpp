// How often this processor multiplies and adds in fp32, in bf16 two products at a time, or in fp16 two of them side by side.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstring>

namespace {

constexpr int REPEATS = 40, ROUNDS = 4000, SUMS = 12, LANES = 16;

// Of one instruction, per second; of the fastest of many repeats: others may take the cores away in between.
template <class Sum, class Multiply>
double rate(int threads, const Multiply& multiply) {
  double least = 1e9;
  for (int repeat = 0; repeat < REPEATS; ++repeat) {
    const double started = omp_get_wtime();
#pragma omp parallel num_threads(threads)
    {
      Sum sum[SUMS] = {}, a = {};
      for (int i = 0; i < SUMS; ++i) asm volatile("" : "+v"(sum[i]));  // lest the compiler takes equal ones for one
      for (int round = 0; round < ROUNDS; ++round) {
        asm volatile("" : "+v"(a));
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; ++i) sum[i] = multiply(sum[i], a);
      }
      for (int i = 0; i < SUMS; ++i) asm volatile("" : : "v"(sum[i]));
    }
    least = std::min(least, omp_get_wtime() - started);
  }
  return double(threads) * ROUNDS * SUMS / least;
}

}  // namespace

// Multiply-adds per second of "fp32", "bf16" or "fp16"; 0 where there is no instruction for them.
extern "C" double kilolayer_multiply_adds(const char* name, int threads) {
  if (!std::strcmp(name, "fp32"))
    return LANES * rate<__m512>(threads, [](__m512 sum, __m512 a) { return _mm512_fmadd_ps(a, a, sum); });
#ifdef __AVX512BF16__
  if (!std::strcmp(name, "bf16"))
    return 2 * LANES * rate<__m512>(threads, [](__m512 sum, __m512 a) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)a); });
#endif
#ifdef __AVX512FP16__
  if (!std::strcmp(name, "fp16"))
    return 2 * LANES * rate<__m512h>(threads, [](__m512h sum, __m512h a) { return _mm512_fmadd_ph(a, a, sum); });
#endif
  return 0;
}
