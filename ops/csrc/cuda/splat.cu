#include <algorithm>

#include "device_block.cuh"
#include "launch.h"

namespace sparse_detr {
namespace {

constexpr int64_t kLargestBlocks = 1024;  // enough for every GPU; each takes what it can

template <class Real>
__global__ void __launch_bounds__(kThreads)
    splat_kernel(const __grid_constant__ Problem problem, const __grid_constant__ SplatTensors<Real> tensors) {
  splat_block(DeviceBlock(0), problem, tensors);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    largest_kernel(const T* numbers, int64_t count, int64_t blocks, RealOf<T>* largest) {
  largest_block(DeviceBlock(0), numbers, count, blocks, largest);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    from_fixed_kernel(const int64_t* sums, int64_t count, int64_t blocks, double terms, const RealOf<T>* largest,
                      const RealOf<T>* largest_weight, const int32_t* unrepresentable, T* result) {
  from_fixed_block(DeviceBlock(0), sums, count, blocks, terms, largest, largest_weight, unrepresentable, result);
}

int64_t blocks_for(int64_t count) { return (count + kThreads - 1) / kThreads; }

}  // namespace

template <class Real>
cudaError_t launch_splat(const Problem& problem, const SplatTensors<Real>& tensors, cudaStream_t stream) {
  const auto blocks = static_cast<uint32_t>(splat_blocks(problem) * problem.batch);
  splat_kernel<<<blocks, kThreads, 0, stream>>>(problem, tensors);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_largest(const T* numbers, int64_t count, RealOf<T>* largest, cudaStream_t stream) {
  const int64_t blocks = std::min(blocks_for(count), kLargestBlocks);
  largest_kernel<<<static_cast<uint32_t>(blocks), kThreads, kThreads * sizeof(RealOf<T>), stream>>>(numbers, count,
                                                                                                  blocks, largest);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_from_fixed(const int64_t* sums, int64_t count, double terms, const RealOf<T>* largest,
                              const RealOf<T>* largest_weight, const int32_t* unrepresentable, T* result,
                              cudaStream_t stream) {
  const int64_t blocks = std::min<int64_t>(blocks_for(count), INT32_MAX);
  from_fixed_kernel<<<static_cast<uint32_t>(blocks), kThreads, 0, stream>>>(sums, count, blocks, terms, largest,
                                                                            largest_weight, unrepresentable, result);
  return cudaGetLastError();
}

template cudaError_t launch_splat(const Problem&, const SplatTensors<float>&, cudaStream_t);
template cudaError_t launch_splat(const Problem&, const SplatTensors<double>&, cudaStream_t);

#define SPARSE_DETR_INSTANTIATE(T)                                                                       \
  template cudaError_t launch_largest(const T*, int64_t, RealOf<T>*, cudaStream_t);                        \
  template cudaError_t launch_from_fixed(const int64_t*, int64_t, double, const RealOf<T>*, const RealOf<T>*, \
                                         const int32_t*, T*, cudaStream_t)
SPARSE_DETR_INSTANTIATE(float);
SPARSE_DETR_INSTANTIATE(double);
SPARSE_DETR_INSTANTIATE(Float16);
SPARSE_DETR_INSTANTIATE(BFloat16);

}  // namespace sparse_detr
