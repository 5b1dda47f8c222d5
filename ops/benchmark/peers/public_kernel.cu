// A plain stand-in for the public CUDA kernels of multi-scale deformable attention, only to compare timings with.
//
// It follows their algorithm, not their text: a thread computes one output channel with scalar loads. Backward, a block
// is one (image, query, head), its threads are channels; the value's gradient is added with scalar atomics, and the
// channels' shares of the gradients by location and weight meet in shared memory, where one thread adds them up.
//
// value (B, N, M, D), shapes (L, 2) and starts (L) int64, locations (B, Q, M, L, P, 2), weights (B, Q, M, L, P),
// output (B, Q, M * D); float32, contiguous.
#include <cuda_runtime.h>

#include <cstdint>

struct Sizes {
  int batch, tokens, heads, channels, levels, queries, points;
};

namespace {

// The four cells around a sample, for one channel.
struct Corners {
  float value[4];
  int64_t index[4];  // -1 outside of the level
  float right, down;
};

__device__ Corners read_corners(const float* value, const int64_t* shape, int64_t first, float x, float y, int stride) {
  const int height = shape[0], width = shape[1];
  const float px = x * width - 0.5f, py = y * height - 0.5f;
  const float left = floorf(px), top = floorf(py);
  Corners c;
  c.right = px - left;
  c.down = py - top;
  for (int corner = 0; corner < 4; ++corner) {
    const int column = static_cast<int>(left) + (corner & 1), row = static_cast<int>(top) + (corner >> 1);
    const bool inside = px > -1 && py > -1 && px < width && py < height && column >= 0 && column < width && row >= 0 &&
                        row < height;
    c.index[corner] = inside ? first + static_cast<int64_t>(row * width + column) * stride : -1;
    c.value[corner] = inside ? value[c.index[corner]] : 0.f;
  }
  return c;
}

__device__ float mean(const Corners& c) {
  return (1 - c.down) * ((1 - c.right) * c.value[0] + c.right * c.value[1]) +
         c.down * ((1 - c.right) * c.value[2] + c.right * c.value[3]);
}

__global__ void forward(const float* value, const int64_t* shapes, const int64_t* starts, const float* locations,
                        const float* weights, Sizes s, float* output) {
  const int64_t total = static_cast<int64_t>(s.batch) * s.queries * s.heads * s.channels;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int stride = s.heads * s.channels;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < total; i += step) {
    const int channel = i % s.channels;
    const int64_t group = i / s.channels;  // (image, query, head)
    const int head = group % s.heads;
    const int64_t image = group / s.heads / s.queries;
    int64_t sample = group * s.levels * s.points;
    float sum = 0;
    for (int level = 0; level < s.levels; ++level) {
      const int64_t first = (image * s.tokens + starts[level]) * stride + head * s.channels + channel;
      for (int point = 0; point < s.points; ++point, ++sample) {
        const Corners c =
            read_corners(value, shapes + 2 * level, first, locations[2 * sample], locations[2 * sample + 1], stride);
        sum += mean(c) * weights[sample];
      }
    }
    output[i] = sum;
  }
}

__global__ void backward(const float* grad_output, const float* value, const int64_t* shapes, const int64_t* starts,
                         const float* locations, const float* weights, Sizes s, float* grad_value,
                         float* grad_locations, float* grad_weights) {
  extern __shared__ float shared[];  // three gradients for every channel
  const int channel = threadIdx.x, stride = s.heads * s.channels;
  const int64_t group = blockIdx.x;
  const int head = group % s.heads;
  const int64_t image = group / s.heads / s.queries;
  const float grad = grad_output[group * s.channels + channel];
  int64_t sample = group * s.levels * s.points;
  for (int level = 0; level < s.levels; ++level) {
    const int height = shapes[2 * level], width = shapes[2 * level + 1];
    const int64_t first = (image * s.tokens + starts[level]) * stride + head * s.channels + channel;
    for (int point = 0; point < s.points; ++point, ++sample) {
      const Corners c =
          read_corners(value, shapes + 2 * level, first, locations[2 * sample], locations[2 * sample + 1], stride);
      const float weighted = grad * weights[sample];
      const float share[4] = {(1 - c.right) * (1 - c.down), c.right * (1 - c.down), (1 - c.right) * c.down,
                              c.right * c.down};
      for (int corner = 0; corner < 4; ++corner)
        if (c.index[corner] >= 0) atomicAdd(grad_value + c.index[corner], weighted * share[corner]);
      shared[3 * channel] = grad * mean(c);
      shared[3 * channel + 1] = weighted * width *
                                ((1 - c.down) * (c.value[1] - c.value[0]) + c.down * (c.value[3] - c.value[2]));
      shared[3 * channel + 2] = weighted * height *
                                ((1 - c.right) * (c.value[2] - c.value[0]) + c.right * (c.value[3] - c.value[1]));
      __syncthreads();
      if (channel == 0) {
        float sum[3] = {0, 0, 0};
        for (int other = 0; other < s.channels; ++other)
          for (int k = 0; k < 3; ++k) sum[k] += shared[3 * other + k];
        grad_weights[sample] = sum[0];
        grad_locations[2 * sample] = sum[1];
        grad_locations[2 * sample + 1] = sum[2];
      }
      __syncthreads();
    }
  }
}

}  // namespace

extern "C" int public_forward(const float* value, const int64_t* shapes, const int64_t* starts, const float* locations,
                              const float* weights, Sizes s, float* output, cudaStream_t stream) {
  constexpr int threads = 1024;
  const int64_t total = static_cast<int64_t>(s.batch) * s.queries * s.heads * s.channels;
  if (total == 0) return 0;
  const int64_t blocks = (total + threads - 1) / threads;
  forward<<<blocks, threads, 0, stream>>>(value, shapes, starts, locations, weights, s, output);
  return cudaGetLastError();
}

extern "C" int public_backward(const float* grad_output, const float* value, const int64_t* shapes,
                               const int64_t* starts, const float* locations, const float* weights, Sizes s,
                               float* grad_value, float* grad_locations, float* grad_weights, cudaStream_t stream) {
  const int64_t groups = static_cast<int64_t>(s.batch) * s.queries * s.heads;
  if (groups == 0) return 0;
  backward<<<groups, s.channels, 3 * s.channels * sizeof(float), stream>>>(
      grad_output, value, shapes, starts, locations, weights, s, grad_value, grad_locations, grad_weights);
  return cudaGetLastError();
}
