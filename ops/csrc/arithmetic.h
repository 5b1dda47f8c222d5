// The arithmetic of multi-scale deformable attention (Deformable DETR, section 4.1), shared by every native kernel.
//
// A sample at location (x, y) in [0, 1] of a level of width x height cells lies at pixel coordinate
//     px = x * width - 0.5,   py = y * height - 0.5
// and reads the bilinear mean of the four cells around it:
//     sum over corners c of share_c * value[cell_c],   right = px - floor(px),   down = py - floor(py),
//     shares (1 - right)(1 - down), right (1 - down), (1 - right) down, right down.
// A corner outside of the level reads as zero, and so does a sample whose location is infinite or NaN.
//
// V is float or double on the GPU. In the CPU kernels it is a SIMD vector of them, and a lane is a sample.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define SPARSE_DETR_HD __host__ __device__ __forceinline__
#else
#define SPARSE_DETR_HD inline __attribute__((always_inline))
#endif

namespace sparse_detr {

// The type in which a stored T is computed: float for half precision.
template <class T>
struct Computed {
  using Type = float;
};
template <>
struct Computed<double> {
  using Type = double;
};
template <class T>
using RealOf = typename Computed<T>::Type;

// Top left, top right, bottom left, bottom right.
constexpr int kCorners = 4;

// What the formulas need besides the operators of V; vector.h specialises it for SIMD vectors.
template <class V>
struct Lanes {
  using Scalar = V;
  using Int = int32_t;
  using Mask = bool;
  SPARSE_DETR_HD static V all(Scalar x) { return x; }
  SPARSE_DETR_HD static Int truncate(V x) { return static_cast<Int>(x); }
  SPARSE_DETR_HD static V to_real(Int i) { return static_cast<V>(i); }
  template <class T>
  SPARSE_DETR_HD static T select(Mask mask, T yes, T no) {
    return mask ? yes : no;
  }
};

template <class V>
using ScalarOf = typename Lanes<V>::Scalar;
template <class V>
using IntOf = typename Lanes<V>::Int;
template <class V>
using MaskOf = typename Lanes<V>::Mask;

// The attention reads with shift -0.5; the public Sparse DETR computes its attention map with 0.
template <class V>
SPARSE_DETR_HD V pixel_of_location(V location, V size, ScalarOf<V> shift) {
  return location * size + shift;
}

// A reference point (x, y), to which offsets in pixels of the level are added.
template <class V>
SPARSE_DETR_HD V pixel_around_point(V centre, V offset, V size) {
  return centre * size + offset - ScalarOf<V>(0.5);
}

// A reference box (x, y, w, h), of which an offset of num_points is half; `half_share` is 0.5 / num_points.
template <class V>
SPARSE_DETR_HD V pixel_around_box(V centre, V extent, V offset, V size, ScalarOf<V> half_share) {
  return (centre + offset * extent * half_share) * size - ScalarOf<V>(0.5);
}

// The cells that a sample is interpolated from.
template <class V>
struct Footprint {
  IntOf<V> row, column;    // of the top left corner, -1 at the top and left borders
  V right, down;           // distance of the sample from that corner, in [0, 1)
  MaskOf<V> inside[kCorners];
};

template <class V>
SPARSE_DETR_HD IntOf<V> floor_to_int(V x) {
  using L = Lanes<V>;
  const IntOf<V> towards_zero = L::truncate(x);
  return L::select(x < L::to_real(towards_zero), towards_zero - 1, towards_zero);
}

template <class V>
SPARSE_DETR_HD Footprint<V> footprint(V x, V y, V width, V height) {
  using L = Lanes<V>;
  using Scalar = ScalarOf<V>;
  // False for NaN. A coordinate that does not touch the level becomes 0, so that it can be an integer.
  const MaskOf<V> touched = (x >= Scalar(-1)) & (y >= Scalar(-1)) & (x < width) & (y < height);
  x = L::select(touched, x, L::all(0));
  y = L::select(touched, y, L::all(0));
  Footprint<V> result;
  result.column = floor_to_int(x);
  result.row = floor_to_int(y);
  const V left = L::to_real(result.column), top = L::to_real(result.row);
  result.right = x - left;
  result.down = y - top;
  const MaskOf<V> in_left = touched & (left >= Scalar(0)), in_right = touched & (left < width - Scalar(1));
  const MaskOf<V> in_top = top >= Scalar(0), in_bottom = top < height - Scalar(1);
  result.inside[0] = in_left & in_top;
  result.inside[1] = in_right & in_top;
  result.inside[2] = in_left & in_bottom;
  result.inside[3] = in_right & in_bottom;
  return result;
}

// Bilinear mean of the values at the corners (zero outside of the level).
template <class V>
SPARSE_DETR_HD V interpolate(const V (&corner)[kCorners], V right, V down) {
  const V top = corner[0] + right * (corner[1] - corner[0]);
  const V bottom = corner[2] + right * (corner[3] - corner[2]);
  return top + down * (bottom - top);
}

// Its derivative by the pixel coordinates.
template <class V>
SPARSE_DETR_HD V slope_x(const V (&corner)[kCorners], V down) {
  return (ScalarOf<V>(1) - down) * (corner[1] - corner[0]) + down * (corner[3] - corner[2]);
}
template <class V>
SPARSE_DETR_HD V slope_y(const V (&corner)[kCorners], V right) {
  return (ScalarOf<V>(1) - right) * (corner[2] - corner[0]) + right * (corner[3] - corner[1]);
}

// Weight of every corner in that mean; in the attention map, the share of a sample's weight that its cell receives.
template <class V>
SPARSE_DETR_HD void shares(V right, V down, V weight, V (&share)[kCorners]) {
  const V below = weight * down, above = weight - below;
  share[1] = above * right;
  share[0] = above - share[1];
  share[3] = below * right;
  share[2] = below - share[3];
}

// The chain rule, but 0 for a gradient of 0, because a sample that reads nothing may have an infinite factor.
template <class V>
SPARSE_DETR_HD V chain(V gradient, V factor) {
  return Lanes<V>::select(gradient == ScalarOf<V>(0), gradient, gradient * factor);
}

// Gradient of a softmax's input: p_i (g_i - sum_j p_j g_j).
template <class V>
SPARSE_DETR_HD V softmax_gradient(V probability, V gradient, ScalarOf<V> expected_gradient) {
  return probability * (gradient - expected_gradient);
}

}  // namespace sparse_detr
