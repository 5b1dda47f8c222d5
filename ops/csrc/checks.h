// Checks of the tensors of all native operators. The public Python functions have better messages; these checks protect
// memory if the operators are called directly, as by an exported program.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

namespace sparse_detr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shapes = std::vector<int64_t>;

// The type of locations, weights and reference points beside a value.
inline ScalarType geometry_type(const Tensor& value) {
  return value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_sizes(const Tensor& tensor, std::initializer_list<int64_t> sizes, const char* name,
                        const char* letters) {
  bool equal = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t i = 0;
  for (const int64_t size : sizes) equal = equal && tensor.size(i++) == size;
  STD_TORCH_CHECK(equal, name, " must be ", letters, " with the sizes of the other arguments");
}

// An image must have fewer tokens than this, so that the number of a cell, even just outside of a level, fits 32 bits.
constexpr int64_t kMaxTokens = int64_t{1} << 28;

// Two sizes whose product is computed; with each below 2^31, it does not overflow.
inline void check_product(int64_t a, int64_t b, const char* what) {
  STD_TORCH_CHECK(a <= INT32_MAX && b <= INT32_MAX && a * b <= INT32_MAX, what, " must be fewer than 2^31, got ", a,
                  " x ", b);
}

// N, from `spatial_shapes`.
inline int64_t count_tokens(const Shapes& spatial_shapes, int64_t levels) {
  STD_TORCH_CHECK(static_cast<int64_t>(spatial_shapes.size()) == 2 * levels, "spatial_shapes must have (h, w) of ",
                  levels, " levels, got ", spatial_shapes.size(), " numbers");
  int64_t tokens = 0;
  for (int64_t level = 0; level < levels; ++level) {
    const int64_t height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    STD_TORCH_CHECK(height >= 1 && width >= 1, "spatial_shapes must be at least 1, got ", height, " x ", width);
    STD_TORCH_CHECK(height < kMaxTokens && width < kMaxTokens && tokens + height * width < kMaxTokens,
                    "spatial_shapes must add up to fewer than ", kMaxTokens, " tokens, got ", height, " x ", width,
                    " at level ", level);
    tokens += height * width;
  }
  return tokens;
}

// Locations (or offsets) and weights (or logits) of at least one sample a query.
inline void check_samples(const Tensor& points, const Tensor& weights, ScalarType type) {
  STD_TORCH_CHECK(points.dim() == 6 && points.size(5) == 2 && points.size(3) > 0 && points.size(4) > 0,
                  "points must be (B, Q, M, L, P, 2) with at least one level and point");
  check_product(points.size(3), points.size(4), "samples of a query and head");
  check_product(points.size(1), 1, "queries");
  check_product(points.size(0), points.size(2), "heads of all images");
  check_sizes(weights, {points.size(0), points.size(1), points.size(2), points.size(3), points.size(4)}, "weights",
              "(B, Q, M, L, P)");
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "points must be float32 or float64");
  STD_TORCH_CHECK(points.scalar_type() == type && weights.scalar_type() == type, "points and weights must be ",
                  type == ScalarType::Double ? "float64, as value is" : "float32, as value is not float64");
}

inline void check_attention(const Tensor& value, const Tensor& points, const Tensor& weights,
                            const std::optional<Tensor>& references, const std::optional<Tensor>& padding_mask,
                            const Shapes& spatial_shapes) {
  check_samples(points, weights, geometry_type(value));
  STD_TORCH_CHECK(value.dim() == 4 && value.size(0) == points.size(0) && value.size(2) == points.size(2),
                  "value must be (B, N, M, D) with the images and heads of points");
  check_product(value.size(2), value.size(3), "channels of all heads");
  const int64_t tokens = count_tokens(spatial_shapes, points.size(3));
  STD_TORCH_CHECK(tokens == value.size(1), "spatial_shapes add up to ", tokens, " tokens, and value has ",
                  value.size(1));
  if (references) {
    const int64_t numbers = references->dim() == 4 ? references->size(3) : 0;
    STD_TORCH_CHECK(numbers == 2 || numbers == 4, "reference_points must be (B, Q, L, 2) or (B, Q, L, 4)");
    check_sizes(*references, {points.size(0), points.size(1), points.size(3), numbers}, "reference_points",
                "(B, Q, L, 2 or 4)");
    STD_TORCH_CHECK(references->scalar_type() == points.scalar_type(), "reference_points must have the type of points");
  }
  if (padding_mask) {
    check_sizes(*padding_mask, {value.size(0), value.size(1)}, "padding_mask", "(B, N)");
    STD_TORCH_CHECK(padding_mask->scalar_type() == ScalarType::Bool, "padding_mask must be bool");
  }
}

inline void check_grad_output(const Tensor& grad_output, const Tensor& value, const Tensor& points) {
  check_sizes(grad_output, {points.size(0), points.size(1), value.size(2) * value.size(3)}, "grad_output",
              "(B, Q, M * D)");
  STD_TORCH_CHECK(grad_output.scalar_type() == value.scalar_type(), "grad_output must have the type of value");
}

}  // namespace sparse_detr
