// BN's coefficients for one batch, from sums over all its pixels.
#pragma once
#include <cmath>
#include <vector>

#include "loads.h"
#include "stores.h"

namespace kilolayer {

// The parameters and running averages of a BN, and what the forward pass leaves for the backward pass.
struct Norm {
  const float *weight, *bias;
  float *running_mean, *running_var;  // null where they are not to be touched
  float *mean, *inverse;              // of the batch: mean, 1/√(var + ε)
  float *dweight, *dbias;
  double momentum, epsilon;
};

// Σ a and Σ a·b of every channel over `count` pixels; a = both(at, c, b) sets b too, for the channels from c on.
template <class Both>
void correlate(const Sums& sums, int channels, int64_t pixel, int count, const Both& both) {
  by_pixels(pixel, pixel + count, channels, [&](int64_t from, int some) {
    for (int c = 0; c < channels; c += LANES)
      accumulate<1, 1>(sums, c, [&](int, int, vec& sum, vec& products) {
        for (int64_t at = from * channels + c; at < (from + some) * channels; at += channels) {
          vec b;
          const vec a = both(at, c, b);
          sum = _mm512_add_ps(sum, a);
          products = _mm512_fmadd_ps(a, b, products);
        }
      });
  });
}

// Every thread's two sums per channel, in fp64.
class Partial {
 public:
  Partial(int threads, int channels) : channels_(channels), sums_(size_t(2) * threads * channels) {}
  void add(int thread, const Sums& part) {
    double* own = &sums_[size_t(2) * thread * channels_];
    for (int c = 0; c < channels_; ++c) own[c] += part.first[c], own[channels_ + c] += part.second[c];
  }
  // In the order of the threads, so the same bits every time.
  void total(double* out) const {
    std::fill(out, out + 2 * channels_, 0.0);
    for (size_t i = 0; i < sums_.size(); ++i) out[i % (2 * channels_)] += sums_[i];
  }

 private:
  int channels_;
  std::vector<double> sums_;
};

struct Coefficients {
  std::vector<float> first, second, third;
  explicit Coefficients(int channels) : first(channels), second(channels), third(channels) {}
};

// The batch's mean and 1/√(var + ε) from Σ t, Σ t²; the running averages follow.
inline void measure(const Norm& n, int channels, const double* sums, double count) {
  for (int c = 0; c < channels; ++c) {
    const double mean = sums[c] / count;
    const double var = std::max(0.0, sums[channels + c] / count - mean * mean);
    n.mean[c] = static_cast<float>(mean);
    n.inverse[c] = static_cast<float>(1 / std::sqrt(var + n.epsilon));
    if (!n.running_mean) continue;
    const double unbiased = var * count / (count - 1);
    n.running_mean[c] = static_cast<float>((1 - n.momentum) * n.running_mean[c] + n.momentum * mean);
    n.running_var[c] = static_cast<float>((1 - n.momentum) * n.running_var[c] + n.momentum * unbiased);
  }
}

// BN(t) = scale·t + shift
inline Coefficients affine(const Norm& n, int channels) {
  Coefficients of(channels);
  for (int c = 0; c < channels; ++c) {
    of.first[c] = n.weight[c] * n.inverse[c];
    of.second[c] = n.bias[c] - n.mean[c] * of.first[c];
  }
  return of;
}

// BN's backward pass from Σ g and Σ g·t: dt = alpha·g + beta·t + gamma, and the parameters' gradients.
inline Coefficients before(const Norm& n, int channels, const double* sums, double count) {
  Coefficients of(channels);
  for (int c = 0; c < channels; ++c) {
    const double inverse = n.inverse[c], alpha = n.weight[c] * inverse, mean = n.mean[c];
    const double product = sums[channels + c] - mean * sums[c];  // Σ g·(t − mean)
    const double beta = -alpha * inverse * inverse * product / count;
    of.first[c] = static_cast<float>(alpha);
    of.second[c] = static_cast<float>(beta);
    of.third[c] = static_cast<float>(-alpha * sums[c] / count - beta * mean);
    n.dweight[c] = static_cast<float>(product * inverse);
    n.dbias[c] = static_cast<float>(sums[c]);
  }
  return of;
}

}  // namespace kilolayer
