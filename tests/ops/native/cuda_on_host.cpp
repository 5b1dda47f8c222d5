// The CUDA kernels of ops/csrc/cuda, compiled for the host, as a library for ctypes. Pointers are those of contiguous
// CPU tensors. A function returns null, or what went wrong.
#define SPARSE_DETR_ON_HOST

#include <string>

#include "cuda/backward.h"
#include "cuda/forward.h"
#include "cuda/splat.h"
#include "host_block.h"

namespace sparse_detr {
namespace {

// As in the ctypes structure of test_cuda_arithmetic.py.
struct Call {
  int64_t batch, queries, heads, channels, num_levels, num_points, reference_dim;
  const int64_t* spatial_shapes;
  const char* dtype;
  int64_t reverse, vector_atomics, deterministic;
  const void *value, *points, *weights, *references;
  const bool* padding_mask;
  void* output;
  const void* grad_output;
  void *grad_value, *grad_points, *grad_weights, *grad_references;  // grad_value is of Real, or of T in fixed point
  double pixel_offset;

  Order order() const { return reverse ? Order::kReverse : Order::kForward; }
};

Problem describe(const Call& call) {
  Problem problem{};
  problem.batch = call.batch;
  problem.queries = static_cast<int32_t>(call.queries);
  problem.heads = static_cast<int32_t>(call.heads);
  problem.channels = static_cast<int32_t>(call.channels);
  problem.num_levels = static_cast<int32_t>(call.num_levels);
  problem.num_points = static_cast<int32_t>(call.num_points);
  problem.reference_dim = static_cast<int32_t>(call.reference_dim);
  for (int level = 0; level < call.num_levels; ++level) {
    const auto height = static_cast<int32_t>(call.spatial_shapes[2 * level]);
    const auto width = static_cast<int32_t>(call.spatial_shapes[2 * level + 1]);
    problem.levels[level] = {height, width, problem.tokens};
    problem.tokens += height * width;
  }
  problem.derive();
  return problem;
}

template <class T>
ForwardTensors<T> tensors_of(const Call& call) {
  using Real = RealOf<T>;
  return {static_cast<const T*>(call.value),         static_cast<const Real*>(call.points),
          static_cast<const Real*>(call.weights),    static_cast<const Real*>(call.references),
          call.padding_mask,                         static_cast<T*>(call.output)};
}

// Calls body(std::integral_constant<int, vector>{}), as the launches do.
template <class T, class Body>
void with_vector(const Problem& problem, Body body) {
  constexpr int vector = kVectorBytes / sizeof(T);
  if (vector_size<T>(problem) == 1) return body(std::integral_constant<int, 1>{});
  body(std::integral_constant<int, vector>{});
}

void check(const Division& division) {
  if (division.queries_per_block == 0) throw std::runtime_error("too many samples for shared memory");
}

template <class T>
void forward(const Call& call) {
  const Problem problem = describe(call);
  const Division division = divide_forward<T>(problem);
  check(division);
  with_vector<T>(problem, [&](auto vector) {
    launch_on_host<false>(division.blocks, division.threads(), division.shared_bytes(), call.order(), [&](auto block) {
      forward_block<T, decltype(vector)::value>(block, problem, division, tensors_of<T>(call));
    });
  });
}

template <bool kVectorAtomics, class T, class Sum>
void run_backward(const Call& call, const Problem& problem, BackwardTensors<T, Sum> gradients) {
  using Real = RealOf<T>;
  const Division division = divide_backward<T>(problem);
  check(division);
  gradients.grad_output = static_cast<const T*>(call.grad_output);
  gradients.grad_points = static_cast<Real*>(call.grad_points);
  gradients.grad_weights = static_cast<Real*>(call.grad_weights);
  gradients.grad_references = static_cast<Real*>(call.grad_references);
  with_vector<T>(problem, [&](auto vector) {
    launch_on_host<kVectorAtomics>(
        division.blocks, division.threads(), division.shared_bytes(), call.order(), [&](auto block) {
          backward_block<T, decltype(vector)::value>(block, problem, division, tensors_of<T>(call), gradients);
        });
  });
}

template <class T>
RealOf<T> largest_of(Order order, const T* numbers, int64_t count) {
  RealOf<T> largest = 0;
  const int64_t blocks = 2;
  launch_on_host<false>(blocks, kThreads, kThreads * sizeof(RealOf<T>), order,
                        [&](auto block) { largest_block(block, numbers, count, blocks, &largest); });
  return largest;
}

template <class T>
void round_fixed(const Call& call, const std::vector<int64_t>& sums, double terms, const RealOf<T>* largest,
                 const RealOf<T>* largest_weight, const int32_t* unrepresentable, void* result) {
  const int64_t blocks = 2;
  launch_on_host<false>(blocks, kThreads, 0, call.order(), [&](auto block) {
    from_fixed_block(block, sums.data(), static_cast<int64_t>(sums.size()), blocks, terms, largest, largest_weight,
                     unrepresentable, static_cast<T*>(result));
  });
}

template <class T>
void backward(const Call& call) {
  using Real = RealOf<T>;
  const Problem problem = describe(call);
  if (!call.deterministic || !call.grad_value) {
    BackwardTensors<T, Real> gradients{};
    gradients.grad_value = static_cast<Real*>(call.grad_value);
    if (call.vector_atomics) return run_backward<true>(call, problem, gradients);
    return run_backward<false>(call, problem, gradients);
  }
  const int64_t rows = problem.batch * problem.queries * problem.heads;
  const Real largest = largest_of(call.order(), static_cast<const T*>(call.grad_output), rows * problem.channels);
  const Real weight = largest_of(call.order(), static_cast<const Real*>(call.weights), rows * problem.samples());
  const bool fused = problem.reference_dim != 0;
  std::vector<int64_t> sums(problem.batch * problem.tokens * problem.heads * problem.channels);
  int32_t unrepresentable = 0;
  BackwardTensors<T, int64_t> gradients{};
  gradients.grad_value = sums.data();
  gradients.largest_grad = &largest;
  gradients.largest_weight = fused ? nullptr : &weight;
  gradients.unrepresentable = &unrepresentable;
  run_backward<false>(call, problem, gradients);
  round_fixed<T>(call, sums, value_terms(problem), &largest, gradients.largest_weight, &unrepresentable,
                 call.grad_value);
}

template <class Real>
void splat(const Call& call) {
  const Problem problem = describe(call);
  const auto* weights = static_cast<const Real*>(call.weights);
  const Real largest = largest_of(call.order(), weights, problem.batch * splat_samples(problem));
  std::vector<int64_t> sums(problem.batch * problem.tokens);
  int32_t unrepresentable = 0;
  const SplatTensors<Real> tensors{static_cast<const Real*>(call.points), weights,          sums.data(), &largest,
                                   &unrepresentable, static_cast<Real>(call.pixel_offset)};
  launch_on_host<false>(splat_blocks(problem) * problem.batch, kThreads, 0, call.order(),
                        [&](auto block) { splat_block(block, problem, tensors); });
  round_fixed<Real>(call, sums, splat_terms(problem), &largest, nullptr, &unrepresentable, call.output);
}

template <class Body>
const char* report(Body body) {
  static std::string message;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace
}  // namespace sparse_detr

using namespace sparse_detr;

extern "C" const char* run_forward(const Call* call) {
  return report([&] {
    const std::string dtype = call->dtype;
    if (dtype == "float32") return forward<float>(*call);
    if (dtype == "float64") return forward<double>(*call);
    if (dtype == "float16") return forward<Float16>(*call);
    forward<BFloat16>(*call);
  });
}

extern "C" const char* run_backward(const Call* call) {
  return report([&] {
    const std::string dtype = call->dtype;
    if (dtype == "float32") return backward<float>(*call);
    if (dtype == "float64") return backward<double>(*call);
    if (dtype == "float16") return backward<Float16>(*call);
    backward<BFloat16>(*call);
  });
}

extern "C" const char* run_splat(const Call* call) {
  return report([&] { call->dtype == std::string("float64") ? splat<double>(*call) : splat<float>(*call); });
}

// The largest magnitude.
extern "C" float largest_number(const float* numbers, int64_t count, bool reverse) {
  return largest_of(reverse ? Order::kReverse : Order::kForward, numbers, count);
}

// The scale for sums of `terms` numbers of at most `largest`.
extern "C" double fixed_scale(double largest, double terms, bool is_double) {
  return is_double ? fixed_point<double>(largest, terms).scale : fixed_point<float>(largest, terms).scale;
}
