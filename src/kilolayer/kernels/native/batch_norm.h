// Batch-normalisation coefficients, computed from sums over all pixels of the batch.
#pragma once
#include <cmath>
#include <vector>

#include "prologues.h"
#include "epilogues.h"

namespace kilolayer {

// The parameters and running averages of one BN, and the batch statistics that the forward pass saves for the backward pass.
struct Norm {
  const float *weight, *bias;
  float *running_mean, *running_var;  // null: the running averages are not updated
  float *mean, *inverse;  // of the batch: mean and 1/√(var + ε)
  float *dweight, *dbias;
  double momentum, epsilon;
};

// Adds Σ a and Σ a·b of every channel over `count` pixels to `sums`. both(at, c, b) returns a and sets b, for 16 channels from c.
template <class Both>
void correlate(const Sums& sums, int channels, int64_t pixel, int count, const Both& both) {
  by_pixels(pixel, pixel + count, channels, [&](int64_t from, int size) {
    for (int c = 0; c < channels; c += LANES)
      accumulate<1, 1>(sums, c, [&](int, int, vec& sum, vec& products) {
        for (int64_t at = from * channels + c; at < (from + size) * channels; at += channels) {
          vec b;
          const vec a = both(at, c, b);
          sum = _mm512_add_ps(sum, a);
          products = _mm512_fmadd_ps(a, b, products);
        }
      });
  });
}

// Two sums per channel for every thread, in fp64.
class ThreadSums {
 public:
  ThreadSums(int threads, int channels) : channels_(channels), sums_(size_t(2) * threads * channels) {}
  void add(int thread, const Sums& part) {
    double* thread_sums = &sums_[size_t(2) * thread * channels_];
    for (int c = 0; c < channels_; ++c) thread_sums[c] += part.first[c], thread_sums[channels_ + c] += part.second[c];
  }
  // Adds the threads in their order, so that the same number of threads gives the same bits.
  void reduce(double* out) const {
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

// Computes the batch's mean and 1/√(var + ε) from Σ t and Σ t², and updates the running averages.
inline void finalize_statistics(const Norm& n, int channels, const double* sums, double count) {
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

// The coefficients of BN(t) = scale·t + shift.
inline Coefficients bn_coefficients(const Norm& n, int channels) {
  Coefficients coefficients(channels);
  for (int c = 0; c < channels; ++c) {
    coefficients.first[c] = n.weight[c] * n.inverse[c];
    coefficients.second[c] = n.bias[c] - n.mean[c] * coefficients.first[c];
  }
  return coefficients;
}

// BN's backward pass from Σ g and Σ g·t: the coefficients of dt = alpha·g + beta·t + gamma, and the gradients of the parameters.
inline Coefficients bn_backward_coefficients(const Norm& n, int channels, const double* sums, double count) {
  Coefficients coefficients(channels);
  for (int c = 0; c < channels; ++c) {
    const double inverse = n.inverse[c], alpha = n.weight[c] * inverse, mean = n.mean[c];
    const double product = sums[channels + c] - mean * sums[c];  // Σ g·(t − mean)
    const double beta = -alpha * inverse * inverse * product / count;
    coefficients.first[c] = static_cast<float>(alpha);
    coefficients.second[c] = static_cast<float>(beta);
    coefficients.third[c] = static_cast<float>(-alpha * sums[c] / count - beta * mean);
    n.dweight[c] = static_cast<float>(product * inverse);
    n.dbias[c] = static_cast<float>(sums[c]);
  }
  return coefficients;
}

}  // namespace kilolayer
