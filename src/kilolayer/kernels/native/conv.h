// A single convolution outside a fused unit: y = W∗x, and its backward pass.
#pragma once
#include "backward.h"

namespace kilolayer {

inline void single_conv_forward(const Batch& b, const Conv& conv) {
  const Weights& w = conv.weights;
  std::vector<double> unused(2 * w.outputs);
  conv_forward(b, conv, IdentityLoad{conv.in, w.inputs}, [&](Sums) { return PlainStore{conv.out, w.outputs}; }, unused.data());
}

inline void single_conv_backward(const Batch& b, const Conv& conv, const bf16* dy, bf16* dx) {
  const Weights& w = conv.weights;
  std::vector<double> unused(2 * w.inputs);
  const auto written = [&](Sums) { return PlainStore{dx, w.inputs}; };
  conv_backward(b, conv, IdentityLoad{dy, w.outputs}, IdentityLoad{conv.in, w.inputs}, written, unused.data());
}

}  // namespace kilolayer
