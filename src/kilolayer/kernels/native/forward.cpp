// What Python calls (library.py) ahead: the forward pass of a residual unit, of BN with ReLU, and of a convolution.
//
// Activations and their gradients are bf16, channels last; parameters and their gradients fp32.
#include "activation.h"
#include "alone.h"
#include "patches.h"

extern "C" {

void kilolayer_unit_forward(const kilolayer::Batch* batch, const kilolayer::Unit* unit, const double* known, double* sums) {
  kilolayer::forward(*batch, *unit, known, sums);
}

void kilolayer_activation_forward(const kilolayer::Batch* batch, const kilolayer::Norm* norm, int32_t channels,
                                  const kilolayer::bf16* t, const double* known, kilolayer::bf16* a) {
  kilolayer::activation_forward(*batch, *norm, channels, t, known, a);
}

void kilolayer_convolution_forward(const kilolayer::Batch* batch, const kilolayer::Conv* conv) {
  kilolayer::convolution_forward(*batch, *conv);
}

void kilolayer_patches_forward(const kilolayer::Batch* batch, const kilolayer::Images* images, const kilolayer::Weights* weights,
                               kilolayer::bf16* y, double* sums) {
  kilolayer::patches_forward(*batch, *images, *weights, y, sums);
}
}
