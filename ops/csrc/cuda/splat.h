// The attention map:   received[cell[s, c]] += weight[s] * bilinear share[s, c],
// and what sums in fixed point need: the largest magnitude of the terms before, numbers from integers after.
#pragma once

#include "fixed_point.h"
#include "samples.h"

namespace sparse_detr {

template <class Real>
struct SplatTensors {
  const Real* locations;  // (B, Q, M, L, P, 2)
  const Real* weights;    // (B, Q, M, L, P)
  int64_t* received;      // (B, N) in fixed point, zero at first
  const Real* largest_weight;
  int32_t* unrepresentable;  // becomes 1 if a term is infinite or NaN
  Real shift;                // pixel = location * size + shift
};

// Terms that one cell receives at most.
SPARSE_DETR_HD double splat_terms(const Problem& problem) {
  return static_cast<double>(problem.queries) * problem.heads * problem.num_points;
}

// Samples of an image, and blocks that they take.
SPARSE_DETR_HD uint32_t splat_samples(const Problem& problem) {
  return static_cast<uint32_t>(problem.queries) * problem.heads * problem.samples();
}
SPARSE_DETR_HD uint32_t splat_blocks(const Problem& problem) { return (splat_samples(problem) - 1) / kThreads + 1; }

// A thread is a sample.
template <class Real, class Block>
SPARSE_DETR_DEVICE void splat_block(const Block& block, const Problem& problem, const SplatTensors<Real>& tensors) {
  const uint32_t blocks = splat_blocks(problem);
  const int64_t image = block.index() / blocks;
  const int64_t in_image = static_cast<int64_t>(block.index() % blocks) * kThreads + block.thread();
  if (in_image >= splat_samples(problem)) return;
  const int level = static_cast<uint32_t>(in_image) / problem.num_points % problem.num_levels;
  const Level& shape = problem.levels[level];
  const Real width = static_cast<Real>(shape.width), height = static_cast<Real>(shape.height);
  const int64_t sample = image * splat_samples(problem) + in_image;
  const Pack<Real, 2> location = load_pack<2>(tensors.locations + 2 * sample);
  const auto print = footprint(pixel_of_location(location.x[0], width, tensors.shift),
                               pixel_of_location(location.x[1], height, tensors.shift), width, height);
  Real share[kCorners];
  shares(print.right, print.down, tensors.weights[sample], share);
  const auto fixed = fixed_point<Real>(*tensors.largest_weight, splat_terms(problem));
  SPARSE_DETR_UNROLL(4)
  for (int corner = 0; corner < kCorners; ++corner) {
    if (!print.inside[corner]) continue;
    const int32_t row = print.row + corner / 2, column = print.column + corner % 2;
    Pack<int64_t, 1> term;
    if (!to_fixed(share[corner], fixed.scale, &term.x[0])) *tensors.unrepresentable = 1;
    block.add(tensors.received + image * problem.tokens + shape.first_token + row * shape.width + column, term);
  }
}

template <class Real>
SPARSE_DETR_HD Real larger_or_nan(Real a, Real b) {
  return b > a || b != b ? b : a;
}

// The largest |x|, to which `largest` is raised; NaN is larger than all. Every block takes part of the numbers.
template <class T, class Block>
SPARSE_DETR_DEVICE void largest_block(const Block& block, const T* numbers, int64_t count, int64_t blocks,
                                  RealOf<T>* largest) {
  using Real = RealOf<T>;
  Real* shared = reinterpret_cast<Real*>(block.shared());
  Real mine = 0;
  for (int64_t i = static_cast<int64_t>(block.index()) * kThreads + block.thread(); i < count; i += blocks * kThreads) {
    const Real x = to_real(numbers[i]);
    mine = larger_or_nan(mine, x < 0 ? -x : x);
  }
  shared[block.thread()] = mine;
  block.barrier();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (block.thread() < half) {
      shared[block.thread()] = larger_or_nan(shared[block.thread()], shared[block.thread() + half]);
    }
    block.barrier();
  }
  if (block.thread() == 0) block.raise(largest, shared[0]);
}

// result = sum in fixed point, or NaN if a term was infinite or NaN. `terms` and the largest factors of a
// term, the second of them null for 1, are those of the sums.
template <class T, class Block>
SPARSE_DETR_DEVICE void from_fixed_block(const Block& block, const int64_t* sums, int64_t count, int64_t blocks,
                                         double terms, const RealOf<T>* largest, const RealOf<T>* largest_weight,
                                         const int32_t* unrepresentable, T* result) {
  using Real = RealOf<T>;
  const double weight = largest_weight == nullptr ? 1.0 : static_cast<double>(*largest_weight);
  const auto fixed = fixed_point<Real>(*largest * weight, terms);
  const bool trusted = *unrepresentable == 0 && fixed.scale > 0;
  for (int64_t i = static_cast<int64_t>(block.index()) * kThreads + block.thread(); i < count; i += blocks * kThreads) {
    result[i] = from_real<T>(trusted ? from_fixed(sums[i], fixed.inverse) : Real(NAN));
  }
}

}  // namespace sparse_detr
