// How often this processor multiplies and adds in fp32, in bf16 two products at a time, or in fp16 two of them side by side.
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstring>

namespace {

constexpr int ROUNDS = 4000, SUMS = 12, LANES = 16;
constexpr double SECONDS = 0.2;

// Of one instruction, per second, on all threads together. Each thread is timed by itself, in the fastest of many
// repeats: others may take its core away in between, and a barrier would wait for whoever was held back.
template <class Sum, class Multiply>
double rate(int threads, const Multiply& multiply) {
  double found = 0;
  // More threads than cores take turns, each at full speed in its own.
  threads = std::min(threads, omp_get_num_procs());
#pragma omp parallel num_threads(threads) reduction(+ : found)
  {
    double least = 1e9;
    Sum sum[SUMS] = {}, a = {};
    for (int i = 0; i < SUMS; ++i) asm volatile("" : "+v"(sum[i]));  // lest the compiler takes equal ones for one
#pragma omp barrier
    for (const double began = omp_get_wtime(); omp_get_wtime() - began < SECONDS;) {
      const double started = omp_get_wtime();
      for (int round = 0; round < ROUNDS; ++round) {
        asm volatile("" : "+v"(a));
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; ++i) sum[i] = multiply(sum[i], a);
      }
      for (int i = 0; i < SUMS; ++i) asm volatile("" : "+v"(sum[i]));
      least = std::min(least, omp_get_wtime() - started);
    }
    found += ROUNDS * SUMS / least;
  }
  return found;
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
