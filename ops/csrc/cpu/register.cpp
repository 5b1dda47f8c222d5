// The CPU kernels as implementations of torch.library's `sparse_detr` operators, through torch's stable ABI: one built
// library serves every torch from 2.10 on. Schemas, shapes for tracing and autograd are Python's (sparse_detr/ops).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "kernels.h"

namespace sparse_detr {
namespace {

// ------------------------------------------------------------------------------------------- choice of instruction set

struct Choice {
  const char* name;
  const Kernels* kernels;
};

// The best instruction set of this machine, limited by SPARSE_DETR_CPU_ISA.
Choice choose_kernels() {
  const char* limit = std::getenv("SPARSE_DETR_CPU_ISA");
  const std::string most = limit && *limit ? limit : "avx512";
  STD_TORCH_CHECK(most == "avx512" || most == "avx2" || most == "baseline",
                  "SPARSE_DETR_CPU_ISA must be avx512, avx2 or baseline, got ", most);
#if defined(__x86_64__)
  __builtin_cpu_init();
  // Every processor with AVX2 also has F16C, for which some compilers have no check.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && most == "avx512") return {"avx512", &avx512::kernels};
  if (avx2 && most != "baseline") return {"avx2", &avx2::kernels};
#endif
  return {"baseline", &baseline::kernels};
}

const Choice& chosen() {
  static const Choice choice = choose_kernels();
  return choice;
}

void parallel_for(int64_t count, int64_t grain, RangeBody body, void* context) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t first, int64_t last) { body(context, first, last); });
}

// ------------------------------------------------------------------------------------------------- tensors to pointers

DType dtype_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "value must be float32, float64, bfloat16 or float16");
  }
}

// The rows of a head are addressed by 32 bits, but for float64.
void check_head_size(const Problem& p, const Tensor& value) {
  constexpr int64_t kWidestVector = 16;
  const bool fits = (p.tokens + 1) * (p.head_dim + kWidestVector) < INT32_MAX;
  STD_TORCH_CHECK(fits || value.scalar_type() == ScalarType::Double, "value has ", p.tokens, " tokens of ", p.head_dim,
                  " channels a head: the CPU kernels take fewer than 2^31 numbers a head, or float64");
}

// A tensor (B, Q, ...) whose numbers of one query lie together, and the distance between two queries.
struct EvenRows {
  Tensor tensor;
  int64_t row;
};

// The tensor itself if it is so, such as a part of the columns of a linear layer's result; else a contiguous copy.
EvenRows with_even_rows(const Tensor& tensor) {
  if (tensor.dim() < 2) return {torch::stable::contiguous(tensor), 0};  // refused by the check that follows
  int64_t dense = 1;
  bool even = true;
  for (int64_t i = tensor.dim() - 1; i >= 2; --i) {
    even = even && (tensor.size(i) == 1 || tensor.stride(i) == dense);
    dense *= tensor.size(i);
  }
  const int64_t images = tensor.size(0), queries = tensor.size(1);
  const int64_t row = queries > 1 ? tensor.stride(1) : images > 1 ? tensor.stride(0) : dense;
  even = even && row >= dense && (images == 1 || queries == 1 || tensor.stride(0) == queries * row);
  if (even) return {tensor, row};
  return {torch::stable::contiguous(tensor), dense};
}

// Inputs as the kernels take them, kept alive for the pointers.
struct Inputs {
  Inputs(const Tensor& value, const Tensor& points, const Tensor& weights, const std::optional<Tensor>& references,
         const std::optional<Tensor>& padding_mask, const Shapes& spatial_shapes)
      : value(torch::stable::contiguous(value)),
        points(with_even_rows(points)),
        weights(with_even_rows(weights)),
        shapes(spatial_shapes) {
    check_attention(value, points, weights, references, padding_mask, spatial_shapes);
    problem = {value.size(0),  value.size(1), value.size(2), value.size(3),    points.size(1),    points.size(3),
               points.size(4), 0,             shapes.data(), this->points.row, this->weights.row};
    check_head_size(problem, value);
    tensors = {this->value.data_ptr(), this->points.tensor.data_ptr(), this->weights.tensor.data_ptr(), nullptr, nullptr,
               nullptr};
    if (references) {
      this->references = torch::stable::contiguous(*references);
      problem.reference_dim = references->size(3);
      tensors.references = this->references->data_ptr();
    }
    if (padding_mask) {
      this->padding_mask = torch::stable::contiguous(*padding_mask);
      tensors.padding_mask = static_cast<const bool*>(this->padding_mask->data_ptr());
    }
  }
  Inputs(const Inputs&) = delete;

  Tensor value;
  EvenRows points, weights;
  std::optional<Tensor> references, padding_mask;
  Shapes shapes;
  Problem problem;
  ForwardTensors tensors;
};

// --------------------------------------------------------------------------------------------------------- operators

Tensor deformable_attention(Tensor value, Tensor points, Tensor weights, std::optional<Tensor> reference_points,
                            std::optional<Tensor> padding_mask, Shapes spatial_shapes) {
  Inputs inputs(value, points, weights, reference_points, padding_mask, spatial_shapes);
  const Problem& p = inputs.problem;
  Tensor output = torch::stable::new_empty(value, {p.batch, p.queries, p.heads * p.head_dim});
  inputs.tensors.output = output.data_ptr();
  chosen().kernels->forward(dtype_of(value), p, inputs.tensors, parallel_for);
  return output;
}

// (B, Q, M, L, R) to (B, Q, L, R), in the order of the heads.
template <class Real>
void sum_heads(const Problem& p, const Tensor& by_head, const Tensor& sum) {
  const int64_t size = p.levels * p.reference_dim;
  const Real* from = static_cast<const Real*>(by_head.data_ptr());
  Real* to = static_cast<Real*>(sum.data_ptr());
  for (int64_t i = 0; i < p.batch * p.queries; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      Real total = 0;
      for (int64_t m = 0; m < p.heads; ++m) total += from[(i * p.heads + m) * size + j];
      to[i * size + j] = total;
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deformable_attention_backward(
    Tensor grad_output, Tensor value, Tensor points, Tensor weights, std::optional<Tensor> reference_points,
    std::optional<Tensor> padding_mask, Shapes spatial_shapes, bool need_value, bool need_samples, bool need_reference,
    bool /*deterministic: always*/) {
  Inputs inputs(value, points, weights, reference_points, padding_mask, spatial_shapes);
  const Problem& p = inputs.problem;
  check_grad_output(grad_output, value, points);
  const Tensor grad = torch::stable::contiguous(grad_output);
  need_reference = need_reference && reference_points;
  const auto like = [](const Tensor& tensor, bool needed) {
    if (!needed) return torch::stable::new_empty(tensor, {0});
    const auto sizes = tensor.sizes();
    return torch::stable::new_empty(tensor, std::vector<int64_t>(sizes.begin(), sizes.end()));
  };
  Tensor grad_value = like(value, need_value);
  Tensor grad_points = like(points, need_samples), grad_weights = like(weights, need_samples);
  Tensor grad_references = like(need_reference ? *reference_points : points, need_reference);
  BackwardTensors g{grad.data_ptr(), nullptr, nullptr, nullptr, nullptr};
  if (need_value) g.grad_value = grad_value.data_ptr();
  if (need_samples) {
    g.grad_points = grad_points.data_ptr();
    g.grad_weights = grad_weights.data_ptr();
  }
  std::optional<Tensor> by_head;
  if (need_reference) {
    by_head = torch::stable::new_empty(points, {p.batch, p.queries, p.heads, p.levels, p.reference_dim});
    g.grad_references = by_head->data_ptr();
  }
  chosen().kernels->backward(dtype_of(value), p, inputs.tensors, g, parallel_for);
  if (need_reference) {
    const bool is_double = value.scalar_type() == ScalarType::Double;
    is_double ? sum_heads<double>(p, *by_head, grad_references) : sum_heads<float>(p, *by_head, grad_references);
  }
  return {grad_value, grad_points, grad_weights, grad_references};
}

Tensor splat_attention(Tensor locations, Tensor weights, Shapes spatial_shapes, double pixel_offset) {
  check_samples(locations, weights, locations.scalar_type());
  const int64_t tokens = count_tokens(spatial_shapes, locations.size(3));
  const EvenRows all_locations = with_even_rows(locations), all_weights = with_even_rows(weights);
  const Problem p{locations.size(0),     tokens,        locations.size(2), 1, locations.size(1), locations.size(3),
                  locations.size(4),     0,             spatial_shapes.data(), all_locations.row, all_weights.row};
  STD_TORCH_CHECK(tokens < INT32_MAX, "the CPU kernel takes fewer than 2^31 tokens, got ", tokens);
  Tensor received = torch::stable::new_empty(locations, {p.batch, tokens});
  chosen().kernels->splat(dtype_of(locations), p, all_locations.tensor.data_ptr(),
                          all_weights.tensor.data_ptr(), pixel_offset, received.data_ptr(), parallel_for);
  return received;
}

}  // namespace
}  // namespace sparse_detr

// For sparse_detr.ops.native: the instruction set in use; null if SPARSE_DETR_CPU_ISA is wrong, which a call reports.
extern "C" __attribute__((visibility("default"))) const char* sparse_detr_cpu_isa() noexcept {
  try {
    return sparse_detr::chosen().name;
  } catch (...) {
    return nullptr;
  }
}

STABLE_TORCH_LIBRARY_IMPL(sparse_detr, CPU, m) {
  m.impl("deformable_attention", TORCH_BOX(&sparse_detr::deformable_attention));
  m.impl("deformable_attention_backward", TORCH_BOX(&sparse_detr::deformable_attention_backward));
  m.impl("splat_attention", TORCH_BOX(&sparse_detr::splat_attention));
}
