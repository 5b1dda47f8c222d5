// The CUDA kernels as implementations of torch.library's `sparse_detr` operators, through torch's stable ABI: one built
// library serves every torch from 2.10 on. Schemas, shapes for tracing and autograd are Python's (sparse_detr/ops).
//
// Everything is queued on the current stream; nothing waits for the GPU.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "launch.h"

namespace sparse_detr {
namespace {

// ------------------------------------------------------------------------------------------------ tensors to pointers

// Calls body(T{}) with the type of the tensor's numbers.
template <class Body>
void with_type(const Tensor& tensor, Body body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    case ScalarType::Half:
      return body(Float16{});
    case ScalarType::BFloat16:
      return body(BFloat16{});
    default:
      STD_TORCH_CHECK(false, "value must be float32, float64, bfloat16 or float16");
  }
}

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}
template <class T>
T* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

// Contiguous, and at an address from which whole vectors can be read.
Tensor packed(const Tensor& tensor) {
  Tensor result = torch::stable::contiguous(tensor);
  const bool aligned = reinterpret_cast<uintptr_t>(result.data_ptr()) % kVectorBytes == 0;
  return aligned ? result : torch::stable::clone(result);
}
std::optional<Tensor> packed(const std::optional<Tensor>& tensor) {
  if (!tensor) return std::nullopt;
  return packed(*tensor);
}

void check_on_device(const Tensor& tensor, const Tensor& value, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == value.get_device_index(), name,
                  " must be on the same GPU as value");
}

int32_t narrow(int64_t size, const char* what) {
  STD_TORCH_CHECK(size <= INT32_MAX, "the CUDA kernels take fewer than 2^31 ", what, ", got ", size);
  return static_cast<int32_t>(size);
}

// `channels` is that of a head.
Problem describe(const Tensor& points, int64_t channels, const Shapes& spatial_shapes) {
  const int64_t num_levels = points.size(3), num_points = points.size(4);
  STD_TORCH_CHECK(num_levels <= kMaxLevels, "the CUDA kernels take at most ", kMaxLevels, " levels, got ", num_levels);
  const int64_t all_tokens = count_tokens(spatial_shapes, num_levels);
  Problem problem{};
  int64_t tokens = 0;
  for (int64_t level = 0; level < num_levels; ++level) {
    const int64_t height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    problem.levels[level] = {narrow(height, "rows"), narrow(width, "columns"), narrow(tokens, "tokens")};
    tokens += height * width;
  }
  problem.batch = points.size(0);
  problem.tokens = narrow(all_tokens, "tokens");
  problem.queries = narrow(points.size(1), "queries");
  problem.heads = narrow(points.size(2), "heads");
  problem.channels = narrow(channels, "channels");
  const int64_t row = int64_t{problem.channels} * problem.heads;
  narrow(narrow(row, "channels of all heads") * int64_t{sizeof(double)}, "bytes in a token");
  problem.num_levels = static_cast<int32_t>(num_levels);
  problem.num_points = narrow(num_points, "points");
  narrow(num_levels * num_points, "samples of a query and head");
  problem.derive();
  return problem;
}

void check_division(const Division& division, const Problem& problem) {
  STD_TORCH_CHECK(division.queries_per_block > 0, "the CUDA kernels hold the samples of a query and head in ",
                  kSharedBytes, " bytes of shared memory, and ", problem.num_levels, " levels of ", problem.num_points,
                  " points need more; use backend='triton' or backend='reference'");
  STD_TORCH_CHECK(division.blocks <= INT32_MAX, "batch * queries * heads is too large for one launch (",
                  division.blocks, " blocks); split the batch");
}

// Inputs as the kernels take them, kept alive for the pointers.
struct Inputs {
  Inputs(const Tensor& value, const Tensor& points, const Tensor& weights, const std::optional<Tensor>& references,
         const std::optional<Tensor>& padding_mask, const Shapes& spatial_shapes)
      : value(packed(value)),
        points(packed(points)),
        weights(packed(weights)),
        references(packed(references)),
        padding_mask(packed(padding_mask)) {
    check_attention(value, points, weights, references, padding_mask, spatial_shapes);
    check_on_device(points, value, "points");
    check_on_device(weights, value, "weights");
    if (references) check_on_device(*references, value, "reference_points");
    if (padding_mask) check_on_device(*padding_mask, value, "padding_mask");
    problem = describe(points, value.size(3), spatial_shapes);
    problem.reference_dim = references ? narrow(references->size(3), "numbers in a reference point") : 0;
  }
  Inputs(const Inputs&) = delete;

  template <class T>
  ForwardTensors<T> tensors(T* output) const {
    using Real = RealOf<T>;
    return {pointer<const T>(value),         pointer<const Real>(points),       pointer<const Real>(weights),
            pointer<const Real>(references), pointer<const bool>(padding_mask), output};
  }

  // There is nothing to compute: outputs and gradients are empty or zero.
  bool empty() const {
    return value.numel() == 0 || weights.numel() == 0;
  }

  Tensor value, points, weights;
  std::optional<Tensor> references, padding_mask;
  Problem problem;
};

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// ------------------------------------------------------------------------------------------------- sums in fixed point

// Sums in fixed point, and what turns them into numbers.
struct FixedSums {
  FixedSums(const Tensor& like, const Shapes& sizes, ScalarType real)
      : sums(torch::stable::new_zeros(like, sizes, ScalarType::Long)),
        largest(torch::stable::new_zeros(like, {2}, real)),
        unrepresentable(torch::stable::new_zeros(like, {1}, ScalarType::Int)) {}

  // The first or second factor of every term is at most the largest of these numbers.
  void bound(int factor, const Tensor& numbers, cudaStream_t stream) {
    with_type(numbers, [&](auto zero) {
      using T = decltype(zero);
      STD_CUDA_CHECK(launch_largest(pointer<const T>(numbers), numbers.numel(), largest_of<RealOf<T>>(factor), stream));
    });
  }

  template <class Real>
  Real* largest_of(int factor) const {
    return pointer<Real>(largest) + factor;
  }

  // `factors` is how many factors were bounded; the second is 1 otherwise.
  void round_to(const Tensor& result, double terms, int factors, cudaStream_t stream) const {
    with_type(result, [&](auto zero) {
      using T = decltype(zero);
      using Real = RealOf<T>;
      STD_CUDA_CHECK(launch_from_fixed(pointer<const int64_t>(sums), sums.numel(), terms, largest_of<const Real>(0),
                                       factors == 2 ? largest_of<const Real>(1) : nullptr,
                                       pointer<const int32_t>(unrepresentable), pointer<T>(result), stream));
    });
  }

  Tensor sums, largest, unrepresentable;
};

// ---------------------------------------------------------------------------------------------------------- operators

Tensor deformable_attention(Tensor value, Tensor points, Tensor weights, std::optional<Tensor> reference_points,
                            std::optional<Tensor> padding_mask, Shapes spatial_shapes) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Inputs inputs(value, points, weights, reference_points, padding_mask, spatial_shapes);
  const Problem& p = inputs.problem;
  const Shapes size{p.batch, p.queries, int64_t{p.heads} * p.channels};
  if (inputs.empty()) return torch::stable::new_zeros(value, size);
  Tensor output = torch::stable::new_empty(value, size);
  with_type(value, [&](auto zero) {
    using T = decltype(zero);
    check_division(divide_forward<T>(p), p);
    STD_CUDA_CHECK(launch_forward(p, inputs.tensors(pointer<T>(output)), current_stream(value)));
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> deformable_attention_backward(
    Tensor grad_output, Tensor value, Tensor points, Tensor weights, std::optional<Tensor> reference_points,
    std::optional<Tensor> padding_mask, Shapes spatial_shapes, bool need_value, bool need_samples, bool need_reference,
    bool deterministic) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Inputs inputs(value, points, weights, reference_points, padding_mask, spatial_shapes);
  const Problem& p = inputs.problem;
  check_on_device(grad_output, value, "grad_output");
  check_grad_output(grad_output, value, points);
  const Tensor grad = packed(grad_output);
  need_reference = need_reference && reference_points;
  const bool empty = inputs.empty();
  const auto like = [&](const Tensor& tensor, bool needed) {
    if (!needed) return torch::stable::new_empty(tensor, {0});
    const auto sizes = tensor.sizes();
    const Shapes size(sizes.begin(), sizes.end());
    return empty ? torch::stable::new_zeros(tensor, size) : torch::stable::new_empty(tensor, size);
  };
  Tensor grad_points = like(points, need_samples), grad_weights = like(weights, need_samples);
  Tensor grad_value = like(value, need_value && (empty || deterministic));
  Tensor grad_reference = like(need_reference ? *reference_points : points, need_reference && empty);
  if (empty || !(need_value || need_samples || need_reference)) {
    return {grad_value, grad_points, grad_weights, grad_reference};
  }
  if (need_reference) {  // one for every head
    grad_reference = torch::stable::new_empty(points, {p.batch, p.queries, p.heads, p.num_levels, p.reference_dim});
  }
  const cudaStream_t stream = current_stream(value);
  const Shapes value_size{p.batch, p.tokens, p.heads, p.channels};
  with_type(value, [&](auto zero) {
    using T = decltype(zero);
    using Real = RealOf<T>;
    check_division(divide_backward<T>(p), p);
    const auto launch = [&](auto gradients) {
      gradients.grad_output = pointer<const T>(grad);
      if (need_samples) {
        gradients.grad_points = pointer<Real>(grad_points);
        gradients.grad_weights = pointer<Real>(grad_weights);
      }
      if (need_reference) gradients.grad_references = pointer<Real>(grad_reference);
      STD_CUDA_CHECK(launch_backward(p, inputs.tensors<T>(nullptr), gradients, stream));
    };
    if (need_value && deterministic) {
      FixedSums fixed(value, value_size, geometry_type(value));
      const bool fused = reference_points.has_value();  // probabilities are at most 1
      fixed.bound(0, grad, stream);
      if (!fused) fixed.bound(1, inputs.weights, stream);
      BackwardTensors<T, int64_t> gradients{};
      gradients.grad_value = pointer<int64_t>(fixed.sums);
      gradients.largest_grad = fixed.template largest_of<Real>(0);
      gradients.largest_weight = fused ? nullptr : fixed.template largest_of<Real>(1);
      gradients.unrepresentable = pointer<int32_t>(fixed.unrepresentable);
      launch(gradients);
      fixed.round_to(grad_value, value_terms(p), fused ? 1 : 2, stream);
    } else {
      BackwardTensors<T, Real> gradients{};
      if (need_value) {
        grad_value = torch::stable::new_zeros(value, value_size, geometry_type(value));
        gradients.grad_value = pointer<Real>(grad_value);
      }
      launch(gradients);
    }
  });
  if (grad_value.scalar_type() != value.scalar_type()) grad_value = torch::stable::to(grad_value, value.scalar_type());
  if (need_reference) grad_reference = torch::stable::sum(grad_reference, Shapes{2});
  return {grad_value, grad_points, grad_weights, grad_reference};
}

Tensor splat_attention(Tensor locations, Tensor weights, Shapes spatial_shapes, double pixel_offset) {
  const torch::stable::accelerator::DeviceGuard guard(locations.get_device_index());
  check_samples(locations, weights, locations.scalar_type());
  check_on_device(weights, locations, "weights");
  const Problem p = describe(locations, 1, spatial_shapes);
  const Shapes size{p.batch, p.tokens};
  if (weights.numel() == 0) return torch::stable::new_zeros(locations, size);
  const int64_t samples = weights.numel() / p.batch;
  STD_TORCH_CHECK(samples <= INT32_MAX && p.batch * splat_blocks(p) <= INT32_MAX,
                  "the CUDA kernel takes fewer than 2^31 samples of an image, and blocks of ", kThreads, ", got ",
                  samples, " of ", p.batch, " images; split the batch");
  const Tensor all_locations = packed(locations), all_weights = packed(weights);
  const cudaStream_t stream = current_stream(locations);
  Tensor received = torch::stable::new_empty(locations, size);
  FixedSums fixed(locations, size, locations.scalar_type());
  fixed.bound(0, all_weights, stream);
  const auto launch = [&](auto zero) {
    using Real = decltype(zero);
    const SplatTensors<Real> tensors{pointer<const Real>(all_locations), pointer<const Real>(all_weights),
                                     pointer<int64_t>(fixed.sums),       fixed.template largest_of<Real>(0),
                                     pointer<int32_t>(fixed.unrepresentable), static_cast<Real>(pixel_offset)};
    STD_CUDA_CHECK(launch_splat(p, tensors, stream));
  };
  locations.scalar_type() == ScalarType::Double ? launch(double{}) : launch(float{});
  fixed.round_to(received, splat_terms(p), 1, stream);
  return received;
}

}  // namespace
}  // namespace sparse_detr

STABLE_TORCH_LIBRARY_IMPL(sparse_detr, CUDA, m) {
  m.impl("deformable_attention", TORCH_BOX(&sparse_detr::deformable_attention));
  m.impl("deformable_attention_backward", TORCH_BOX(&sparse_detr::deformable_attention_backward));
  m.impl("splat_attention", TORCH_BOX(&sparse_detr::splat_attention));
}
