// Functions that Python calls (native_library.py) at inference: runs of units, and the convolution of a stem.
#include "inference.h"
#include "im2col.h"

extern "C" {

float kilolayer_pack(const kilolayer::Weights* weights, kilolayer::mul_t* packed) { return kilolayer::pack(*weights, packed); }

void kilolayer_infer(const kilolayer::Batch* batch, const kilolayer::FoldedUnit* units, int32_t count,
                     const kilolayer::bf16* x, kilolayer::bf16* y) {
  kilolayer::infer_run(*batch, units, count, x, y);
}

void kilolayer_im2col_infer(const kilolayer::Batch* batch, const kilolayer::Images* images, const kilolayer::Weights* weights,
                             const float* bias, int32_t has_relu, kilolayer::bf16* y) {
  kilolayer::im2col_infer(*batch, *images, *weights, bias, has_relu, y);
}
}
