// Sums in 64 bit fixed point: integers add up to the same number in any order, so atomic additions are deterministic.
//
// Terms of at most `largest` are multiplied by a power of two for which `terms` of them stay below 2^62, and rounded:
//     sum = inverse * (integer sum of round(term * scale)),   scale = 2^power,   inverse = 2^-power.
// In float32 a term keeps its 24 bits unless it is smaller than 2^-38 / terms of the largest.
#pragma once

#include <cmath>
#include <cstdint>

#include "../arithmetic.h"

namespace sparse_detr {

constexpr int kFixedPointBits = 62;

template <class Real>
struct FixedPoint {
  Real scale, inverse;
};

// If `largest` is infinite or NaN, the scale and all sums are 0; the result of `sum_of_fixed` is then not valid.
template <class Real>
SPARSE_DETR_HD FixedPoint<Real> fixed_point(double largest, double terms) {
  const double total = largest * terms;
  if (!(total <= 1.7976931348623157e308)) return {Real(0), Real(0)};
  constexpr int most = sizeof(Real) == 4 ? 126 : 1000;  // both factors are normal numbers then
  int power = most;
  if (total > 0) {
    int exponent;
    std::frexp(total, &exponent);  // total < 2^exponent
    if (kFixedPointBits - exponent < power) power = kFixedPointBits - exponent;
    if (power < -most) power = -most;
  }
  return {static_cast<Real>(std::ldexp(1.0, power)), static_cast<Real>(std::ldexp(1.0, -power))};
}

// Rounded to the nearest. False for NaN and for numbers too large for an integer: `fixed` is 0 then.
template <class Real>
SPARSE_DETR_HD bool to_fixed(Real term, Real scale, int64_t* fixed) {
  const Real scaled = term * scale;
  const bool representable = scaled > Real(-9.2e18) && scaled < Real(9.2e18);
  *fixed = representable ? static_cast<int64_t>(std::llrint(scaled)) : 0;
  return representable;
}

template <class Real>
SPARSE_DETR_HD Real from_fixed(int64_t fixed, Real inverse) {
  return static_cast<Real>(fixed) * inverse;
}

}  // namespace sparse_detr
