// Functions that Python calls (native_library.py): the forward passes of a residual unit, of BN-ReLU and of single convolutions.
//
// Activations and their gradients are bf16, channels last. Parameters and their gradients are fp32.
#include "bn_relu.h"
#include "conv.h"
#include "im2col.h"

extern "C" {

void kilolayer_unit_forward(const kilolayer::Batch* batch, const kilolayer::Unit* unit, const double* input_sums, double* sums) {
  kilolayer::forward(*batch, *unit, input_sums, sums);
}

void kilolayer_bn_relu_forward(const kilolayer::Batch* batch, const kilolayer::Norm* norm, int32_t channels,
                                  const kilolayer::bf16* t, const double* input_sums, kilolayer::bf16* a) {
  kilolayer::bn_relu_forward(*batch, *norm, channels, t, input_sums, a);
}

void kilolayer_conv_forward(const kilolayer::Batch* batch, const kilolayer::Conv* conv) {
  kilolayer::single_conv_forward(*batch, *conv);
}

void kilolayer_im2col_forward(const kilolayer::Batch* batch, const kilolayer::Images* images, const kilolayer::Weights* weights,
                               kilolayer::bf16* y, double* sums) {
  kilolayer::im2col_forward(*batch, *images, *weights, y, sums);
}
}
