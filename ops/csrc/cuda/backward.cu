// The value's gradient as a sum of floating point numbers.
#include "backward_kernel.cuh"

namespace sparse_detr {

SPARSE_DETR_INSTANTIATE(float, float);
SPARSE_DETR_INSTANTIATE(double, double);
SPARSE_DETR_INSTANTIATE(Float16, float);
SPARSE_DETR_INSTANTIATE(BFloat16, float);

}  // namespace sparse_detr
