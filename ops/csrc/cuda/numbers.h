// Half-precision numbers: CUDA's own types, or those of the CPU kernels where a test compiles the kernels for the host.
#pragma once

#if !defined(SPARSE_DETR_ON_HOST)

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../arithmetic.h"

namespace sparse_detr {

using Float16 = __half;
using BFloat16 = __nv_bfloat16;

SPARSE_DETR_HD float to_real(float x) { return x; }
SPARSE_DETR_HD double to_real(double x) { return x; }
SPARSE_DETR_HD float to_real(Float16 x) { return __half2float(x); }
SPARSE_DETR_HD float to_real(BFloat16 x) { return __bfloat162float(x); }

// To the nearest, ties to even.
template <class T>
SPARSE_DETR_HD T from_real(RealOf<T> x);
template <>
SPARSE_DETR_HD float from_real<float>(float x) {
  return x;
}
template <>
SPARSE_DETR_HD double from_real<double>(double x) {
  return x;
}
template <>
SPARSE_DETR_HD Float16 from_real<Float16>(float x) {
  return __float2half_rn(x);
}
template <>
SPARSE_DETR_HD BFloat16 from_real<BFloat16>(float x) {
  return __float2bfloat16_rn(x);
}

}  // namespace sparse_detr

#else
#include "../cpu/numbers.h"
#endif
