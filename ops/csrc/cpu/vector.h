// SIMD vectors of the instruction set that this file is compiled for, by the compilers' vector extensions (GCC, Clang).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../arithmetic.h"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#ifndef SPARSE_DETR_ISA
#define SPARSE_DETR_ISA baseline
#endif

namespace sparse_detr {

// The same names are other types in the object file of another instruction set, so each has its own namespace.
namespace SPARSE_DETR_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float Type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Int __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double Type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Int __attribute__((vector_size(kVectorBytes)));
};
using FloatVector = VectorOf<float>::Type;
using DoubleVector = VectorOf<double>::Type;

template <class V, class Real>
struct SimdLanes {
  using Scalar = Real;
  using Int = typename VectorOf<Real>::Int;
  using Mask = Int;  // all bits of a lane set, or none
  SPARSE_DETR_HD static V all(Scalar x) { return V{} + x; }
  SPARSE_DETR_HD static Int truncate(V x) { return __builtin_convertvector(x, Int); }
  SPARSE_DETR_HD static V to_real(Int i) { return __builtin_convertvector(i, V); }
  template <class T>
  SPARSE_DETR_HD static T select(Mask mask, T yes, T no) {
    return mask ? yes : no;
  }
};
}  // namespace SPARSE_DETR_ISA

template <>
struct Lanes<SPARSE_DETR_ISA::FloatVector> : SPARSE_DETR_ISA::SimdLanes<SPARSE_DETR_ISA::FloatVector, float> {};
template <>
struct Lanes<SPARSE_DETR_ISA::DoubleVector> : SPARSE_DETR_ISA::SimdLanes<SPARSE_DETR_ISA::DoubleVector, double> {};

namespace SPARSE_DETR_ISA {

template <class V>
constexpr int kLanes = kVectorBytes / sizeof(ScalarOf<V>);

template <class V>
SPARSE_DETR_HD V load(const void* from) {
  V result;
  std::memcpy(&result, from, sizeof(V));
  return result;
}

template <class V>
SPARSE_DETR_HD void store(void* to, V x) {
  std::memcpy(to, &x, sizeof(V));
}

// Lanes of `a` then `b`, picked by the constant indices.
template <int... kIndices, class V>
SPARSE_DETR_HD V shuffle(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kIndices...);
#else
  return __builtin_shuffle(a, b, IntOf<V>{kIndices...});
#endif
}

// a0 a2 a4 ... b0 b2 ... (or the odd ones): takes (x, y) pairs apart.
template <class V, int... i>
SPARSE_DETR_HD V every_second(V a, V b, std::integer_sequence<int, i...>, bool odd) {
  return odd ? shuffle<2 * i + 1 ...>(a, b) : shuffle<2 * i...>(a, b);
}
template <class V>
SPARSE_DETR_HD V even_lanes(V a, V b) {
  return every_second(a, b, std::make_integer_sequence<int, kLanes<V>>{}, false);
}
template <class V>
SPARSE_DETR_HD V odd_lanes(V a, V b) {
  return every_second(a, b, std::make_integer_sequence<int, kLanes<V>>{}, true);
}

// x0 y0 x1 y1 ...: puts pairs together again, first half and second half.
template <int kHalf, class V, int... i>
SPARSE_DETR_HD V zip_half(V x, V y, std::integer_sequence<int, i...>) {
  return shuffle<(i % 2) * kLanes<V> + kHalf * kLanes<V> / 2 + i / 2 ...>(x, y);
}
template <class V>
SPARSE_DETR_HD V zip_low(V x, V y) {
  return zip_half<0>(x, y, std::make_integer_sequence<int, kLanes<V>>{});
}
template <class V>
SPARSE_DETR_HD V zip_high(V x, V y) {
  return zip_half<1>(x, y, std::make_integer_sequence<int, kLanes<V>>{});
}

// Lanes whose bit kStep is clear from `a`, and from `b` moved up by kStep; and the same of the lanes where it is set.
template <int kStep, int kBit, class V, int... i>
SPARSE_DETR_HD V pick_by_bit(V a, V b, std::integer_sequence<int, i...>) {
  return shuffle<((i & kStep) ? kLanes<V> : 0) + (i & ~kStep) + kBit * kStep...>(a, b);
}

// Adds up the lanes of each of kLanes vectors; lane i of the result is the sum of vector i. A tree of half as many
// vectors at each step.
template <class V, int kStep = 1>
SPARSE_DETR_HD V sum_each(V* vectors) {
  if constexpr (kStep == kLanes<V>) {
    return vectors[0];
  } else {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes<V>>{};
    for (int i = 0; i < kLanes<V> / kStep / 2; ++i) {
      const V a = vectors[2 * i], b = vectors[2 * i + 1];
      vectors[i] = pick_by_bit<kStep, 0>(a, b, lanes) + pick_by_bit<kStep, 1>(a, b, lanes);
    }
    return sum_each<V, 2 * kStep>(vectors);
  }
}

template <class V, int kStep, int... i>
SPARSE_DETR_HD V swap_lanes(V x, std::integer_sequence<int, i...>) {
  return shuffle<(i ^ kStep)...>(x, x);
}

// Sum or maximum of all lanes.
template <class V, int kStep = kLanes<V> / 2>
SPARSE_DETR_HD ScalarOf<V> sum_lanes(V x) {
  if constexpr (kStep == 0) {
    return x[0];
  } else {
    return sum_lanes<V, kStep / 2>(x + swap_lanes<V, kStep>(x, std::make_integer_sequence<int, kLanes<V>>{}));
  }
}
template <class V, int kStep = kLanes<V> / 2>
SPARSE_DETR_HD ScalarOf<V> max_lanes(V x) {
  if constexpr (kStep == 0) {
    return x[0];
  } else {
    const V other = swap_lanes<V, kStep>(x, std::make_integer_sequence<int, kLanes<V>>{});
    return max_lanes<V, kStep / 2>(Lanes<V>::select(x > other, x, other));
  }
}

// e^x for x <= 0, NaN for NaN; of float, 0 below the smallest normal number.
SPARSE_DETR_HD FloatVector exp_of_nonpositive(FloatVector x) {
  using L = Lanes<FloatVector>;
  constexpr float kLowest = -87.33654f;
  const auto underflow = x < kLowest;
  x = L::select(underflow, L::all(kLowest), x);
  // x = n ln 2 + r with |r| <= ln(2) / 2; e^r by its Taylor polynomial, 2^n by the exponent's bits.
  const auto n = L::truncate(x * 1.44269504f - 0.5f);
  const FloatVector n_real = L::to_real(n);
  const FloatVector r = (x - n_real * 0.693359375f) + n_real * 2.12194440e-4f;
  FloatVector poly = L::all(1.0f / 5040);
  poly = poly * r + 1.0f / 720;
  poly = poly * r + 1.0f / 120;
  poly = poly * r + 1.0f / 24;
  poly = poly * r + 1.0f / 6;
  poly = poly * r + 0.5f;
  poly = poly * r + 1.0f;
  poly = poly * r + 1.0f;
  const IntOf<FloatVector> bits = (n + 127) << 23;
  return L::select(underflow, FloatVector{}, poly * load<FloatVector>(&bits));
}
SPARSE_DETR_HD DoubleVector exp_of_nonpositive(DoubleVector x) {
  for (int i = 0; i < kLanes<DoubleVector>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace SPARSE_DETR_ISA
}  // namespace sparse_detr
