// Forward pass:   output[d] = sum over samples s and corners c of share[s, c] * value[cell[s, c], d],
// share = weight * bilinear share. The plain and the fused form differ only in `locate`.
#pragma once

#include "samples.h"

namespace sparse_detr {

template <class Real>
int64_t forward_bytes_per_query(const Problem& problem, int32_t group) {
  return whole_vectors(problem.samples() * static_cast<int64_t>(Samples<Real>::kBytes) + 2 * group * sizeof(Real));
}

template <class T>
Division divide_forward(const Problem& problem) {
  return divide(problem, vector_size<T>(problem), forward_bytes_per_query<RealOf<T>>);
}

template <class T, int kVector, class Block>
SPARSE_DETR_DEVICE void forward_block(const Block& block, const Problem& problem, const Division& division,
                                  const ForwardTensors<T>& tensors) {
  using Real = RealOf<T>;
  const Place place = place_of(block, problem, division);
  const int count = problem.samples();
  Samples<Real> samples{};
  char* shared = block.shared() + place.slot * division.bytes_per_query;
  samples.numbers = reinterpret_cast<Pack<Real, 4>*>(shared);
  samples.cells = reinterpret_cast<Pack<int32_t, kCorners>*>(samples.numbers + count);
  samples.scratch = reinterpret_cast<Real*>(samples.cells + count);

  locate<false>(block, problem, division, place, tensors, samples);
  if (!place.exists) return;

  for (int channel = place.lane * kVector; channel < problem.channels; channel += division.group * kVector) {
    const Rows<const T> value = rows_of(tensors.value, problem, place, channel);
    Real sum[kVector] = {};
    SPARSE_DETR_UNROLL(2)
    for (int s = 0; s < count; ++s) {
      const Pack<Real, 4> share = samples.numbers[s];
      Pack<T, kVector> rows[kCorners];
      load_corners(value, samples.cells[s], rows);
      SPARSE_DETR_UNROLL(4)
      for (int corner = 0; corner < kCorners; ++corner) {
        SPARSE_DETR_UNROLL(8)
        for (int i = 0; i < kVector; ++i) sum[i] += share.x[corner] * to_real(rows[corner].x[i]);
      }
    }
    Pack<T, kVector> result;
    SPARSE_DETR_UNROLL(8)
    for (int i = 0; i < kVector; ++i) result.x[i] = from_real<T>(sum[i]);
    store_pack(tensors.output + place.row * problem.channels + channel, result);
  }
}

}  // namespace sparse_detr
