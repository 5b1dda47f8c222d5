// The backward kernel's launch, for a file with sums in floating point and one with sums in fixed point: they compile
// side by side.
#pragma once

#include "device_block.cuh"
#include "launch.h"

namespace sparse_detr {
namespace {

// Blocks that an SM has registers for. Shared memory allows about as many.
template <class T, class Sum>
constexpr int kResidentBlocks = sizeof(RealOf<T>) == 4 && sizeof(Sum) == 4 ? 6 : 5;

template <class T, int kVector, class Sum>
__global__ void __launch_bounds__(kThreads, (kResidentBlocks<T, Sum>))
    backward_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Division division,
                    const __grid_constant__ ForwardTensors<T> tensors,
                    const __grid_constant__ BackwardTensors<T, Sum> gradients) {
  backward_block<T, kVector>(DeviceBlock(division.group), problem, division, tensors, gradients);
}

}  // namespace

template <class T, class Sum>
cudaError_t launch_backward(const Problem& problem, const ForwardTensors<T>& tensors,
                            const BackwardTensors<T, Sum>& gradients, cudaStream_t stream) {
  const Division d = divide_backward<T>(problem);
  const auto kernel =
      vector_size<T>(problem) == 1 ? backward_kernel<T, 1, Sum> : backward_kernel<T, kVectorBytes / sizeof(T), Sum>;
  kernel<<<static_cast<uint32_t>(d.blocks), d.threads(), d.shared_bytes(), stream>>>(problem, d, tensors, gradients);
  return cudaGetLastError();
}

#define SPARSE_DETR_INSTANTIATE(T, Sum)                                                                          \
  template cudaError_t launch_backward(const Problem&, const ForwardTensors<T>&, const BackwardTensors<T, Sum>&, \
                                       cudaStream_t)

}  // namespace sparse_detr
