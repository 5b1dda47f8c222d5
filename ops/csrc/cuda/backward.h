// Backward pass. With g the gradient of a query's output in one head:
//     dot[s, c] = sum over d of g[d] * value[cell[s, c], d]
//     grad_value[cell[s, c], d] += share[s, c] * g[d]
//     gradient by the weight:    bilinear mean of dot[s, .]
//     gradient by the pixel:     weight * slope of that mean
// and from these the gradients by location, offset, reference and logit, see ../arithmetic.h.
//
// Dot products: every thread sums over its channels, then one thread of the group adds the sums up, in shared memory
// and in a fixed order. The value's gradient is added to memory by atomic additions of four floats (sm_90) or one
// number. It is a sum of Real, or of int64 in fixed point, where the order of the additions does not matter.
#pragma once

#include <type_traits>

#include "fixed_point.h"
#include "samples.h"

namespace sparse_detr {

constexpr int kTile = 8;  // samples whose dot products are in shared memory at a time

// Gradients that are null are not computed; grad_points and grad_weights are both null or neither.
template <class T, class Sum>
struct BackwardTensors {
  using Real = RealOf<T>;
  const T* grad_output;   // (B, Q, M, D)
  Sum* grad_value;        // (B, N, M, D), zero at first: Real, or int64_t in fixed point
  Real* grad_points;      // like points
  Real* grad_weights;     // like weights
  Real* grad_references;  // (B, Q, M, L, 2|4), still to be summed over heads
  // Only in fixed point:
  const Real* largest_grad;    // max |grad_output|
  const Real* largest_weight;  // max |weights|, or null for 1
  int32_t* unrepresentable;    // becomes 1 if a term is infinite or NaN
};

// The largest number of terms of one cell of grad_value: one for each sample of its level.
SPARSE_DETR_HD double value_terms(const Problem& problem) {
  return static_cast<double>(problem.queries) * problem.num_points;
}

template <class Real>
struct GradientSamples : Samples<Real> {
  Pack<Real, kCorners>* dots;  // of the samples of a tile, every thread's own; rows are padded against bank conflicts
  int32_t dots_row;
};

template <class Real>
int64_t backward_bytes_per_query(const Problem& problem, int32_t group) {
  const int64_t samples = problem.samples() * static_cast<int64_t>(Samples<Real>::kBytes);
  const int64_t dots = kTile * (group + 1) * sizeof(Pack<Real, kCorners>);
  return whole_vectors(samples + dots + 2 * group * sizeof(Real));
}

template <class T>
Division divide_backward(const Problem& problem) {
  return divide(problem, vector_size<T>(problem), backward_bytes_per_query<RealOf<T>>);
}

template <class Real>
SPARSE_DETR_DEVICE GradientSamples<Real> gradient_samples(char* shared, int32_t count, int32_t group) {
  GradientSamples<Real> samples{};
  samples.dots_row = group + 1;
  samples.dots = reinterpret_cast<Pack<Real, kCorners>*>(shared);
  samples.numbers = samples.dots + kTile * samples.dots_row;
  samples.cells = reinterpret_cast<Pack<int32_t, kCorners>*>(samples.numbers + count);
  samples.scratch = reinterpret_cast<Real*>(samples.cells + count);
  return samples;
}

// Dot products of this thread's channels with the corners of samples [first, last).
template <class T, int kVector>
SPARSE_DETR_DEVICE void gather_dots(const Problem& problem, const Division& division, const Place& place,
                                    const ForwardTensors<T>& tensors, const T* grad_output,
                                    const GradientSamples<RealOf<T>>& samples, int first, int last) {
  using Real = RealOf<T>;
  for (int channel = place.lane * kVector; channel < problem.channels; channel += division.group * kVector) {
    const Pack<T, kVector> grad = load_pack<kVector>(grad_output + channel);
    const Rows<const T> value = rows_of(tensors.value, problem, place, channel);
    SPARSE_DETR_UNROLL(1)
    for (int s = first; s < last; ++s) {
      const Pack<int32_t, kCorners> cells = samples.cells[s];
      Pack<T, kVector> rows[kCorners];
      load_corners(value, cells, rows);
      Pack<Real, kCorners>* dots = samples.dots + (s - first) * samples.dots_row + place.lane;
      Pack<Real, kCorners> sums{};
      if (channel >= division.group * kVector) sums = *dots;  // of the channels before
      SPARSE_DETR_UNROLL(4)
      for (int corner = 0; corner < kCorners; ++corner) {
        Real dot = 0;
        SPARSE_DETR_UNROLL(8)
        for (int i = 0; i < kVector; ++i) dot += to_real(grad.x[i]) * to_real(rows[corner].x[i]);
        // If nothing is read, an infinite gradient must not become NaN.
        sums.x[corner] += cells.x[corner] >= 0 ? dot : Real(0);
      }
      *dots = sums;
    }
  }
}

// How numbers are added to grad_value: as they are, or in fixed point.
template <class Sum, class Real, class Block>
struct ValueAdder {
  const Block& block;
  FixedPoint<Real> fixed;
  int32_t* unrepresentable;

  template <int kSize>
  SPARSE_DETR_DEVICE void add(Sum* to, Real share, const Pack<Real, kSize>& grad) const {
    Pack<Sum, kSize> terms;
    SPARSE_DETR_UNROLL(4)
    for (int i = 0; i < kSize; ++i) {
      if constexpr (std::is_same_v<Sum, int64_t>) {
        if (!to_fixed(share * grad.x[i], fixed.scale, &terms.x[i])) *unrepresentable = 1;
      } else {
        terms.x[i] = share * grad.x[i];
      }
    }
    block.add(to, terms);
  }
};

template <class T, class Sum, class Block>
SPARSE_DETR_DEVICE ValueAdder<Sum, RealOf<T>, Block> value_adder(const Block& block, const Problem& problem,
                                                                const BackwardTensors<T, Sum>& gradients) {
  FixedPoint<RealOf<T>> fixed{};
  if constexpr (std::is_same_v<Sum, int64_t>) {
    if (gradients.grad_value != nullptr) {
      const double weight = gradients.largest_weight == nullptr ? 1.0 : static_cast<double>(*gradients.largest_weight);
      fixed = fixed_point<RealOf<T>>(*gradients.largest_grad * weight, value_terms(problem));
    }
  }
  return {block, fixed, gradients.unrepresentable};
}

// Adds the gradients of the corners of samples [first, last) to grad_value. Where an atomic addition is narrower than a
// vector, a thread has other channels than in `gather_dots`: neighbouring threads still add to neighbouring numbers.
template <class T, int kVector, class Sum, class Block>
SPARSE_DETR_DEVICE void add_to_value(const Problem& problem, const Division& division, const Place& place,
                                     Sum* grad_value, const T* grad_output,
                                     const ValueAdder<Sum, RealOf<T>, Block>& adder,
                                     const GradientSamples<RealOf<T>>& samples, int first, int last) {
  using Real = RealOf<T>;
  constexpr int kAtomic = Block::template atomic_size<Sum>();
  constexpr int kPiece = kVector % kAtomic == 0 ? kAtomic : 1, kPieces = kVector / kPiece;
  const int step = division.group * kPiece;  // from piece to piece of a thread
  for (int channel = place.lane * kPiece; channel < problem.channels; channel += step * kPieces) {
    Pack<Real, kPiece> grads[kPieces];
    SPARSE_DETR_UNROLL(8)
    for (int p = 0; p < kPieces; ++p) {
      Pack<T, kPiece> pack{};
      if (channel + p * step < problem.channels) pack = load_pack<kPiece>(grad_output + channel + p * step);
      SPARSE_DETR_UNROLL(4)
      for (int i = 0; i < kPiece; ++i) grads[p].x[i] = to_real(pack.x[i]);
    }
    const Rows<Sum> rows = rows_of(grad_value, problem, place, channel);
    for (int s = first; s < last; ++s) {
      const Pack<int32_t, kCorners> cells = samples.cells[s];
      const Pack<Real, 4> numbers = samples.numbers[s];
      Real share[kCorners];
      shares(numbers.x[kRight], numbers.x[kDown], numbers.x[kWeight], share);
      SPARSE_DETR_UNROLL(4)
      for (int corner = 0; corner < kCorners; ++corner) {
        if (cells.x[corner] < 0) continue;
        Sum* to = rows.at(cells.x[corner]);
        SPARSE_DETR_UNROLL(8)
        for (int p = 0; p < kPieces; ++p) {
          if (channel + p * step < problem.channels) adder.add(to + p * step, share[corner], grads[p]);
        }
      }
    }
  }
}

// From the dot products of a sample to the gradients by its weight and its pixel coordinates.
template <class Real>
SPARSE_DETR_DEVICE void finish_sample(const GradientSamples<Real>& samples, int32_t group, int s, int first) {
  const Pack<Real, kCorners>* row = samples.dots + (s - first) * samples.dots_row;
  Real dot[kCorners] = {};
  for (int lane = 0; lane < group; ++lane) {
    const Pack<Real, kCorners> part = row[lane];
    SPARSE_DETR_UNROLL(4)
    for (int corner = 0; corner < kCorners; ++corner) dot[corner] += part.x[corner];
  }
  const Pack<int32_t, kCorners> cells = samples.cells[s];
  const bool reads = cells.x[0] >= 0 || cells.x[1] >= 0 || cells.x[2] >= 0 || cells.x[3] >= 0;
  Pack<Real, 4> numbers = samples.numbers[s];
  const Real right = numbers.x[kRight], down = numbers.x[kDown], weight = numbers.x[kWeight];
  numbers.x[kGradWeight] = reads ? interpolate(dot, right, down) : Real(0);
  numbers.x[kSlopeX] = reads ? weight * slope_x(dot, down) : Real(0);
  numbers.x[kSlopeY] = reads ? weight * slope_y(dot, right) : Real(0);
  samples.numbers[s] = numbers;
}

template <class T, class Sum, class Block>
SPARSE_DETR_DEVICE void write_sample_gradients(const Block& block, const Problem& problem, const Division& division,
                                           const Place& place, const ForwardTensors<T>& tensors,
                                           const BackwardTensors<T, Sum>& gradients,
                                           const GradientSamples<RealOf<T>>& samples) {
  using Real = RealOf<T>;
  const int count = problem.samples();
  const bool fused = problem.reference_dim != 0;
  Real expected = 0;
  if (fused) {
    Real mine = 0;
    if (place.exists) {
      for (int s = place.lane; s < count; s += division.group) {
        mine += samples.numbers[s].x[kWeight] * samples.numbers[s].x[kGradWeight];
      }
    }
    expected = combine_group(block, place, division.group, samples.scratch, mine, Plus());
  }
  if (!place.exists) return;
  const Real half_share = static_cast<Real>(problem.half_share);
  for (int s = place.lane; s < count; s += division.group) {
    const int level = s / problem.num_points;
    Real factor_x = 1, factor_y = 1;
    if (problem.reference_dim != 2) {
      factor_x = static_cast<Real>(problem.levels[level].width);
      factor_y = static_cast<Real>(problem.levels[level].height);
    }
    if (problem.reference_dim == 4) {
      const Real* reference = tensors.references + (place.query * problem.num_levels + level) * 4;
      const Pack<Real, 2> extent = load_pack<2>(reference + 2);
      factor_x *= extent.x[0] * half_share;
      factor_y *= extent.x[1] * half_share;
    }
    const int64_t index = place.row * count + s;
    const Pack<Real, 4> numbers = samples.numbers[s];
    const Pack<Real, 2> grad_point{{chain(numbers.x[kSlopeX], factor_x), chain(numbers.x[kSlopeY], factor_y)}};
    store_pack(gradients.grad_points + 2 * index, grad_point);
    const Real grad_weight = numbers.x[kGradWeight];
    gradients.grad_weights[index] = fused ? softmax_gradient(numbers.x[kWeight], grad_weight, expected) : grad_weight;
  }
}

// A thread sums one number of the reference over the points of its level.
template <class T, class Sum>
SPARSE_DETR_DEVICE void write_reference_gradients(const Problem& problem, const Division& division, const Place& place,
                                              const ForwardTensors<T>& tensors,
                                              const BackwardTensors<T, Sum>& gradients,
                                              const GradientSamples<RealOf<T>>& samples) {
  using Real = RealOf<T>;
  const int32_t size = problem.num_levels * problem.reference_dim;
  const Real* offsets = tensors.points + 2 * place.row * problem.samples();
  for (int i = place.lane; i < size; i += division.group) {
    const int level = i / problem.reference_dim, number = i % problem.reference_dim, axis = number % 2;
    const Level& shape = problem.levels[level];
    Real sum = 0;
    for (int p = 0; p < problem.num_points; ++p) {
      const int s = level * problem.num_points + p;
      const Real slope = samples.numbers[s].x[axis == 0 ? kSlopeX : kSlopeY];
      sum += number < 2 ? slope : chain(slope, offsets[2 * s + axis]);
    }
    sum *= static_cast<Real>(axis == 0 ? shape.width : shape.height);
    gradients.grad_references[place.row * size + i] = number < 2 ? sum : sum * static_cast<Real>(problem.half_share);
  }
}

template <class T, int kVector, class Sum, class Block>
SPARSE_DETR_DEVICE void backward_block(const Block& block, const Problem& problem, const Division& division,
                                   const ForwardTensors<T>& tensors, const BackwardTensors<T, Sum>& gradients) {
  using Real = RealOf<T>;
  const Place place = place_of(block, problem, division);
  const int count = problem.samples();
  const bool need_samples = gradients.grad_points != nullptr, need_references = gradients.grad_references != nullptr;
  const bool need_dots = need_samples || need_references;
  char* shared = block.shared() + place.slot * division.bytes_per_query;
  const GradientSamples<Real> samples = gradient_samples<Real>(shared, count, division.group);
  const T* grad_output = gradients.grad_output + place.row * problem.channels;
  const auto adder = value_adder(block, problem, gradients);

  locate<true>(block, problem, division, place, tensors, samples);
  for (int first = 0; first < count; first += kTile) {
    const int last = first + kTile < count ? first + kTile : count;
    if (place.exists && need_dots) {
      gather_dots<T, kVector>(problem, division, place, tensors, grad_output, samples, first, last);
    }
    if (place.exists && gradients.grad_value != nullptr) {
      add_to_value<T, kVector>(problem, division, place, gradients.grad_value, grad_output, adder, samples, first,
                               last);
    }
    if (!need_dots) continue;
    block.barrier();
    if (place.exists) {
      for (int s = first + place.lane; s < last; s += division.group) finish_sample(samples, division.group, s, first);
    }
    block.barrier();
  }
  if (need_samples) write_sample_gradients(block, problem, division, place, tensors, gradients, samples);
  if (need_references && place.exists) {
    write_reference_gradients(problem, division, place, tensors, gradients, samples);
  }
}

}  // namespace sparse_detr
