// Measures the multiply-add rate of this processor: in fp32, in bf16 (two products per lane) and in fp16 (twice as many lanes).
#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cstring>

namespace {

constexpr int ROUNDS = 4000, SUMS = 12, LANES = 16;
constexpr double SECONDS = 0.2;

// The rate of one instruction per second, summed over threads. Every thread times itself and reports its fastest repeat: another
// process may take its core away in between, and a barrier would wait for the slowest thread.
template <class Sum, class Multiply>
double rate(int threads, const Multiply& multiply) {
  double rates = 0;
  // More threads than cores would take turns, each at full speed, and the sum would be too high.
  threads = std::min(threads, omp_get_num_procs());
#pragma omp parallel num_threads(threads) reduction(+ : rates)
  {
    double fastest = 1e9;
    Sum sum[SUMS] = {}, a = {};
    for (int i = 0; i < SUMS; ++i) asm volatile("" : "+v"(sum[i]));  // prevents the compiler from merging equal sums
#pragma omp barrier
    for (const double start = omp_get_wtime(); omp_get_wtime() - start < SECONDS;) {
      const double repeat_start = omp_get_wtime();
      for (int round = 0; round < ROUNDS; ++round) {
        asm volatile("" : "+v"(a));
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; ++i) sum[i] = multiply(sum[i], a);
      }
      for (int i = 0; i < SUMS; ++i) asm volatile("" : "+v"(sum[i]));
      fastest = std::min(fastest, omp_get_wtime() - repeat_start);
    }
    rates += ROUNDS * SUMS / fastest;
  }
  return rates;
}

}  // namespace

// Multiply-adds per second of "fp32", "bf16" or "fp16"; 0 if the processor has no instruction for it.
extern "C" double kilolayer_peak_multiply_adds(const char* name, int threads) {
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
