// A block of threads on the GPU, as the kernels see it.
#pragma once

#include <cstdint>

#include "samples.h"

// Four floats at a time can be added to memory from sm_90 on, in PTX since CUDA 12.1.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1201
#define SPARSE_DETR_VECTOR_ATOMICS 1
#else
#define SPARSE_DETR_VECTOR_ATOMICS 0
#endif

namespace sparse_detr {

class DeviceBlock {
 public:
  // Threads wait for those of their group, or with 0 for all.
  explicit __device__ DeviceBlock(int32_t group) : groups_in_warps_(group != 0 && 32 % group == 0) {}

  __device__ int32_t thread() const { return threadIdx.x; }
  __device__ uint32_t index() const { return blockIdx.x; }

  __device__ char* shared() const {
    extern __shared__ __align__(kVectorBytes) char memory[];
    return memory;
  }

  __device__ void barrier() const {
    if (groups_in_warps_) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  // How many numbers one atomic addition takes.
  template <class Sum>
  static constexpr __host__ __device__ int atomic_size() {
    return sizeof(Sum) == sizeof(float) && SPARSE_DETR_VECTOR_ATOMICS ? 4 : 1;
  }

  __device__ void add(float* to, Pack<float, 1> x) const { atomicAdd(to, x.x[0]); }
  __device__ void add(double* to, Pack<double, 1> x) const { atomicAdd(to, x.x[0]); }
  __device__ void add(int64_t* to, Pack<int64_t, 1> x) const {
    atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(x.x[0]));
  }
#if SPARSE_DETR_VECTOR_ATOMICS
  __device__ void add(float* to, Pack<float, 4> x) const {
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "f"(x.x[0]), "f"(x.x[1]), "f"(x.x[2]), "f"(x.x[3])
                 : "memory");
  }
#endif

  // Raises a number that is not negative: its bits are ordered like the numbers, and NaN comes last.
  __device__ void raise(float* to, float x) const {
    atomicMax(reinterpret_cast<unsigned int*>(to), __float_as_uint(fabsf(x)));
  }
  __device__ void raise(double* to, double x) const {
    atomicMax(reinterpret_cast<unsigned long long*>(to),
              static_cast<unsigned long long>(__double_as_longlong(fabs(x))));
  }

 private:
  bool groups_in_warps_;
};

}  // namespace sparse_detr
