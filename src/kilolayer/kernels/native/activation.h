// BN and ReLU as one operation around other layers: only their input is kept, the mask is computed again.
#pragma once
#include "forward.h"

namespace kilolayer {

// a = ReLU(BN(t)); `known`: Σ t and Σ t², where they are.
inline void activation_forward(const Batch& b, const Norm& n, int channels, const bf16* t, const double* known, bf16* a) {
  std::vector<double> total(2 * channels);
  if (known) std::copy(known, known + 2 * channels, total.data());
  else moments(b, t, channels, total.data());
  measure(n, channels, total.data(), b.count());
  const Coefficients of = affine(n, channels);
  const Activated source{{t, channels, of.first.data(), of.second.data()}};
  parallel(b, [&](int, int from, int to) {
    chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
      Unchanged unchanged;
      fill(source, pixel, count, a + pixel * channels, unchanged);
    });
  });
}

struct Opened {  // g where ReLU(scale·t + shift) let t through, and t itself
  const bf16 *g, *t;
  int channels;
  const float *scale, *shift;
  struct Lane {
    const bf16 *g, *t;
    int channels;
    vec scale, shift;
    vec before(int64_t pixel) const { return load(t + pixel * channels); }
    vec through(vec before, vec gradient) const {
      const __mmask16 open = _mm512_cmp_ps_mask(_mm512_fmadd_ps(before, scale, shift), _mm512_setzero_ps(), _CMP_GT_OQ);
      return _mm512_maskz_mov_ps(open, gradient);
    }
    vec operator()(int64_t pixel) const { return through(before(pixel), load(g + pixel * channels)); }
  };
  Lane lane(int c) const { return {g + c, t + c, channels, _mm512_loadu_ps(scale + c), _mm512_loadu_ps(shift + c)}; }
};

inline void activation_backward(const Batch& b, const Norm& n, int channels, const bf16* t, const bf16* da, bf16* dt) {
  const Coefficients of = affine(n, channels);
  const Opened source{da, t, channels, of.first.data(), of.second.data()};
  Partial partial(b.threads, channels);
  parallel(b, [&](int thread, int from, int to) {
    Piece piece(partial, thread, channels);
    chunks(int64_t{from} * b.area(), int64_t{to} * b.area(), [&](int64_t pixel, int count) {
      piece.run([&] {
        correlate(piece.sums, channels, pixel, count, [&](int64_t at, int c, vec& before) {
          before = load(t + at);
          return source.lane(c).through(before, load(da + at));
        });
      });
    });
  });
  std::vector<double> total(2 * channels);
  partial.total(total.data());
  const Coefficients back = before(n, channels, total.data(), b.count());
  parallel(b, [&](int, int from, int to) {
    by_pixels(int64_t{from} * b.area(), int64_t{to} * b.area(), channels, [&](int64_t pixel, int count) {
      by_lanes(source, [&](auto& lanes, int c) {
        for (int64_t p = pixel; p < pixel + count; ++p) {
          int at = c;
          for (auto& lane : lanes) {
            const vec alpha = _mm512_loadu_ps(&back.first[at]), beta = _mm512_loadu_ps(&back.second[at]);
            const vec rest = _mm512_fmadd_ps(lane.before(p), beta, _mm512_loadu_ps(&back.third[at]));
            store(dt + p * channels + at, _mm512_fmadd_ps(lane(p), alpha, rest));
            at += LANES;
          }
        }
      });
    });
  });
}

}  // namespace kilolayer
