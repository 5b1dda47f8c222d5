// What register.cpp calls and the .cu files implement. The sizes must have been checked: see `register.cpp`.
#pragma once

#include <cuda_runtime_api.h>

#include "backward.h"
#include "forward.h"
#include "splat.h"

namespace sparse_detr {

template <class T>
cudaError_t launch_forward(const Problem& problem, const ForwardTensors<T>& tensors, cudaStream_t stream);

// Sum is RealOf<T>, or int64_t for fixed point.
template <class T, class Sum>
cudaError_t launch_backward(const Problem& problem, const ForwardTensors<T>& tensors,
                            const BackwardTensors<T, Sum>& gradients, cudaStream_t stream);

template <class Real>
cudaError_t launch_splat(const Problem& problem, const SplatTensors<Real>& tensors, cudaStream_t stream);

// Raises *largest, 0 at first, to the largest magnitude of `count` numbers.
template <class T>
cudaError_t launch_largest(const T* numbers, int64_t count, RealOf<T>* largest, cudaStream_t stream);

template <class T>
cudaError_t launch_from_fixed(const int64_t* sums, int64_t count, double terms, const RealOf<T>* largest,
                              const RealOf<T>* largest_weight, const int32_t* unrepresentable, T* result,
                              cudaStream_t stream);

}  // namespace sparse_detr
