// What Python calls (library.py) at inference: runs of units, and the convolution of a stem.
#include "infer.h"
#include "patches.h"

extern "C" {

float kilolayer_pack(const kilolayer::Weights* weights, kilolayer::num* packed) { return kilolayer::pack(*weights, packed); }

void kilolayer_infer(const kilolayer::Batch* batch, const kilolayer::FoldedUnit* units, int32_t count,
                     const kilolayer::bf16* x, kilolayer::bf16* y) {
  kilolayer::infer_run(*batch, units, count, x, y);
}

void kilolayer_patches_infer(const kilolayer::Batch* batch, const kilolayer::Images* images, const kilolayer::Weights* weights,
                             const float* bias, int32_t rectified, kilolayer::bf16* y) {
  kilolayer::patches_infer(*batch, *images, *weights, bias, rectified, y);
}
}
