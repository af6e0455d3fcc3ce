// BN and ReLU as one operation around other layers. Only the input is saved; the backward pass recomputes the mask.
#pragma once
#include "forward.h"

namespace kilolayer {

// a = ReLU(BN(t)). `input_sums` holds Σ t and Σ t² if an earlier layer has computed them, else null.
inline void bn_relu_forward(const Batch& b, const Norm& n, int channels, const bf16* t, const double* input_sums, bf16* a) {
  std::vector<double> norm_sums(2 * channels);
  if (input_sums) std::copy(input_sums, input_sums + 2 * channels, norm_sums.data());
  else channel_sums(b, t, channels, norm_sums.data());
  finalize_statistics(n, channels, norm_sums.data(), b.count());
  const Coefficients coefficients = bn_coefficients(n, channels);
  const BnReluLoad source{{t, channels, coefficients.first.data(), coefficients.second.data()}};
  parallel(b, [&](int, int from, int to) {
    for_chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
      Unscaled unscaled_copy;
      fill(source, pixel, count, a + pixel * channels, unscaled_copy);
    });
  });
}

struct ReluBackwardLoad {  // g where ReLU(scale·t + shift) is open, else 0; and t itself
  const bf16 *g, *t;
  int channels;
  const float *scale, *shift;
  struct Lane {
    const bf16 *g, *t;
    int channels;
    vec scale, shift;
    vec input(int64_t pixel) const { return load(t + pixel * channels); }
    vec mask(vec t_value, vec gradient) const {
      const __mmask16 open = _mm512_cmp_ps_mask(_mm512_fmadd_ps(t_value, scale, shift), _mm512_setzero_ps(), _CMP_GT_OQ);
      return _mm512_maskz_mov_ps(open, gradient);
    }
    vec operator()(int64_t pixel) const { return mask(input(pixel), load(g + pixel * channels)); }
  };
  Lane lane(int c) const { return {g + c, t + c, channels, _mm512_loadu_ps(scale + c), _mm512_loadu_ps(shift + c)}; }
};

inline void bn_relu_backward(const Batch& b, const Norm& n, int channels, const bf16* t, const bf16* da, bf16* dt) {
  const Coefficients coefficients = bn_coefficients(n, channels);
  const ReluBackwardLoad source{da, t, channels, coefficients.first.data(), coefficients.second.data()};
  ThreadSums thread_sums(b.threads, channels);
  parallel(b, [&](int thread, int from, int to) {
    WorkSums work_sums(thread_sums, thread, channels);
    for_chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
      work_sums.run([&] {
        correlate(work_sums.sums, channels, pixel, count, [&](int64_t at, int c, vec& t_value) {
          t_value = load(t + at);
          return source.lane(c).mask(t_value, load(da + at));
        });
      });
    });
  });
  std::vector<double> norm_sums(2 * channels);
  thread_sums.reduce(norm_sums.data());
  const Coefficients dnorm = bn_backward_coefficients(n, channels, norm_sums.data(), b.count());
  parallel(b, [&](int, int from, int to) {
    by_pixels(int64_t{from} * b.area(), int64_t{to} * b.area(), channels, [&](int64_t pixel, int count) {
      by_lanes(source, [&](auto& lanes, int c) {
        for (int64_t p = pixel; p < pixel + count; ++p) {
          int at = c;
          for (auto& lane : lanes) {
            const vec alpha = _mm512_loadu_ps(&dnorm.first[at]), beta = _mm512_loadu_ps(&dnorm.second[at]);
            const vec constant = _mm512_fmadd_ps(lane.input(p), beta, _mm512_loadu_ps(&dnorm.third[at]));
            store(dt + p * channels + at, _mm512_fmadd_ps(lane(p), alpha, constant));
            at += LANES;
          }
        }
      });
    });
  });
}

}  // namespace kilolayer
