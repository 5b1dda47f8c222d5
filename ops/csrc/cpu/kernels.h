// What register.cpp calls and kernels.cpp implements, once for every instruction set.
//
// No torch and no templates of the standard library here: kernels.cpp is compiled with instructions that the machine
// may not have, and if several files use a template, the linker keeps one copy, which could be the one with them.
#pragma once

#include <cstdint>

namespace sparse_detr {

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Sizes of one call; all its tensors are contiguous, but for the rows of points and weights.
struct Problem {
  int64_t batch, tokens, heads, head_dim, queries, levels, points;
  int64_t reference_dim;        // 2 or 4 in the fused form, 0 in the plain one
  const int64_t* level_shapes;  // h0, w0, h1, w1, ...
  int64_t point_row, weight_row;  // numbers between the points, and the weights, of two queries
};

struct ForwardTensors {
  const void* value;         // (B, N, M, D)
  const void* points;        // (B, Q, M, L, P, 2): locations, or offsets in the fused form
  const void* weights;       // (B, Q, M, L, P): attention, or logits in the fused form
  const void* references;    // (B, Q, L, 2|4), or null
  const bool* padding_mask;  // (B, N), or null
  void* output;              // (B, Q, M, D); not used by the backward pass
};

// Gradients that are null are not computed; grad_points and grad_weights are both null or neither.
struct BackwardTensors {
  const void* grad_output;  // (B, Q, M, D)
  void* grad_value;
  void* grad_points;
  void* grad_weights;
  void* grad_references;  // (B, Q, M, L, 2|4), still to be summed over heads
};

// Calls body(context, first, last) for parts of [0, count) from several threads. Only the last may be below `grain`.
using RangeBody = void (*)(void* context, int64_t first, int64_t last);
using ParallelFor = void (*)(int64_t count, int64_t grain, RangeBody body, void* context);

// `dtype` is the type of value, output and their gradients. All else is float, or double if `dtype` is double.
struct Kernels {
  void (*forward)(DType dtype, const Problem&, const ForwardTensors&, ParallelFor);
  void (*backward)(DType dtype, const Problem&, const ForwardTensors&, const BackwardTensors&, ParallelFor);
  // locations (B, Q, M, L, P, 2) and weights (B, Q, M, L, P) to received (B, N); pixel = location * size + shift.
  void (*splat)(DType dtype, const Problem&, const void* locations, const void* weights, double shift, void* received,
                ParallelFor);
};

namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace baseline {
extern const Kernels kernels;
}

}  // namespace sparse_detr
