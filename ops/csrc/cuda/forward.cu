#include "device_block.cuh"
#include "launch.h"

namespace sparse_detr {
namespace {

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ Problem problem, const __grid_constant__ Division division,
                   const __grid_constant__ ForwardTensors<T> tensors) {
  forward_block<T, kVector>(DeviceBlock(division.group), problem, division, tensors);
}

}  // namespace

template <class T>
cudaError_t launch_forward(const Problem& problem, const ForwardTensors<T>& tensors, cudaStream_t stream) {
  const Division d = divide_forward<T>(problem);
  const auto kernel = vector_size<T>(problem) == 1 ? forward_kernel<T, 1> : forward_kernel<T, kVectorBytes / sizeof(T)>;
  kernel<<<static_cast<uint32_t>(d.blocks), d.threads(), d.shared_bytes(), stream>>>(problem, d, tensors);
  return cudaGetLastError();
}

template cudaError_t launch_forward(const Problem&, const ForwardTensors<float>&, cudaStream_t);
template cudaError_t launch_forward(const Problem&, const ForwardTensors<double>&, cudaStream_t);
template cudaError_t launch_forward(const Problem&, const ForwardTensors<Float16>&, cudaStream_t);
template cudaError_t launch_forward(const Problem&, const ForwardTensors<BFloat16>&, cudaStream_t);

}  // namespace sparse_detr
