// The value's gradient as a sum in fixed point.
#include "backward_kernel.cuh"

namespace sparse_detr {

SPARSE_DETR_INSTANTIATE(float, int64_t);
SPARSE_DETR_INSTANTIATE(double, int64_t);
SPARSE_DETR_INSTANTIATE(Float16, int64_t);
SPARSE_DETR_INSTANTIATE(BFloat16, int64_t);

}  // namespace sparse_detr
