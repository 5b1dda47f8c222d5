// Multi-scale deformable attention on the CPU: forward, backward and the attention map. The formulas stand in
// arithmetic.h. The file is compiled once for every instruction set, each time in its own namespace SPARSE_DETR_ISA.
//
// For one (image, head):
//  1. The head's value is copied to a compact slab (N + 1, D'), D' being D rounded up to whole vectors. Rows of one
//     head lie M * D numbers apart in the value and so compete for few cache sets. The last row is zero: corners
//     outside of a level read it, without a branch. Padded tokens are zero. With few queries there is no copy.
//  2. For a query, one lane is one sample: a vector holds the geometry of 16 samples (float, AVX-512).
//  3. Then one lane is one channel: every corner of every sample adds share * row to the output.
// The backward pass repeats step 2, takes the dot product of grad_output with the row of every corner, adds
// share * grad_output to a row of a second slab, and computes gradients from the dot products, one lane for a sample.
//
// Deterministic for any number of threads: sums have a fixed order, and in the backward pass one thread owns an
// (image, head).
#include "kernels.h"

#include <type_traits>

#include "numbers.h"
#include "vector.h"

namespace sparse_detr {
namespace SPARSE_DETR_ISA {
namespace {

template <class Real>
using Vec = typename VectorOf<Real>::Type;

constexpr int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

template <class Body>
void for_ranges(ParallelFor parallel_for, int64_t count, int64_t grain, Body body) {
  if (count == 0) return;
  const RangeBody call = [](void* context, int64_t first, int64_t last) {
    (*static_cast<Body*>(context))(first, last);
  };
  parallel_for(count, grain, call, &body);
}

// Constants of the L * P samples of a query, padded to whole vectors; padding lies on the last level.
template <class Real>
struct SampleTable {
  using Int = std::remove_reference_t<decltype(IntOf<Vec<Real>>{}[0])>;
  static constexpr int64_t kStep = kLanes<Vec<Real>>;

  explicit SampleTable(const Problem& p)
      : count(p.levels * p.points),
        padded(round_up(count, kStep)),
        width(padded),
        height(padded),
        row_length(padded),
        start(padded),
        level(padded) {
    int64_t first = 0;
    for (int64_t l = 0, sample = 0; l < p.levels; ++l) {
      const int64_t h = p.level_shapes[2 * l], w = p.level_shapes[2 * l + 1];
      const int64_t end = l + 1 == p.levels ? padded : sample + p.points;
      for (; sample < end; ++sample) {
        width[sample] = static_cast<Real>(w);
        height[sample] = static_cast<Real>(h);
        row_length[sample] = static_cast<Int>(w);
        start[sample] = static_cast<Int>(first);
        level[sample] = static_cast<Int>(l);
      }
      first += h * w;
    }
  }

  int64_t count, padded;
  Buffer<Real> width, height;
  Buffer<Int> row_length, start, level;
};

// The samples of one query of one head, filled by `locate`: one number a sample, or one a sample and corner.
template <class Real>
struct Look {
  using Int = typename SampleTable<Real>::Int;
  using V = Vec<Real>;
  static constexpr int64_t kStep = kLanes<V>;

  explicit Look(int64_t padded)
      : offset(kCorners * padded), share(kCorners * padded), right(padded), down(padded), weight(padded) {}

  // Samples come in vectors, and in a vector corner by corner.
  static int64_t at(int64_t first_sample, int corner) { return kCorners * first_sample + corner * kStep; }

  Buffer<Int> offset;  // where the row of the corner starts
  Buffer<Real> share;  // weight * bilinear share of the corner, 0 outside
  Buffer<Real> right, down, weight;
};

// How the offset of a row is computed from its cell.
struct Rows {
  int64_t stride;            // numbers between the rows of two tokens
  int64_t outside;           // offset of what is read outside of a level
  const bool* padding_mask;  // (N) if padded tokens count as outside, else null
};

// The first `count` pairs of numbers as two vectors, the rest zero.
template <class V>
inline void load_pairs(const ScalarOf<V>* from, int64_t count, V* x, V* y) {
  ScalarOf<V> padded[2 * kLanes<V>];
  if (count < kLanes<V>) {
    for (int64_t i = 0; i < 2 * kLanes<V>; ++i) padded[i] = i < 2 * count ? from[i] : 0;
    from = padded;
  }
  const V low = load<V>(from), high = load<V>(from + kLanes<V>);
  *x = even_lanes(low, high);
  *y = odd_lanes(low, high);
}

// The first `count` numbers as a vector, the rest `filling`.
template <class V>
SPARSE_DETR_HD V load_some(const ScalarOf<V>* from, int64_t count, ScalarOf<V> filling) {
  if (count >= kLanes<V>) return load<V>(from);
  V result = V{} + filling;
  for (int64_t i = 0; i < count; ++i) result[i] = from[i];
  return result;
}

template <class V>
inline void store_pairs(V x, V y, int64_t count, ScalarOf<V>* to) {
  const V low = zip_low(x, y), high = zip_high(x, y);
  if (count >= kLanes<V>) {
    store(to, low);
    store(to + kLanes<V>, high);
    return;
  }
  ScalarOf<V> padded[2 * kLanes<V>];
  store(padded, low);
  store(padded + kLanes<V>, high);
  for (int64_t i = 0; i < 2 * count; ++i) to[i] = padded[i];
}

template <class V>
inline void store_some(V x, int64_t count, ScalarOf<V>* to) {
  if (count >= kLanes<V>) return store(to, x);
  for (int64_t i = 0; i < count; ++i) to[i] = x[i];
}

// One number of the reference point or box for every sample of a vector, according to the sample's level.
template <class Real>
SPARSE_DETR_HD Vec<Real> spread_levels(const SampleTable<Real>& table, int64_t sample, const Real* references,
                                       int64_t dim) {
  using V = Vec<Real>;
  const auto level = load<IntOf<V>>(&table.level[sample]);
  const int64_t first = level[0], last = level[kLanes<V> - 1];
  V result = V{} + references[first * dim];
  for (int64_t l = first + 1; l <= last; ++l) {
    const auto here = level == static_cast<typename SampleTable<Real>::Int>(l);
    result = Lanes<V>::select(here, V{} + references[l * dim], result);
  }
  return result;
}

template <class Real>
void softmax(const Real* logits, int64_t count, int64_t padded, Real* probabilities) {
  using V = Vec<Real>;
  constexpr int64_t kStep = kLanes<V>;
  V highest = V{} - INFINITY;
  for (int64_t i = 0; i < padded; i += kStep) {
    const V x = load_some<V>(logits + i, count - i, -INFINITY);
    store(probabilities + i, x);
    highest = Lanes<V>::select(x > highest, x, highest);
  }
  const Real top = max_lanes(highest);
  V total{};
  for (int64_t i = 0; i < padded; i += kStep) {
    const V x = exp_of_nonpositive(load<V>(probabilities + i) - top);
    store(probabilities + i, x);
    total += x;
  }
  const Real scale = 1 / sum_lanes(total);
  for (int64_t i = 0; i < padded; i += kStep) store(probabilities + i, load<V>(probabilities + i) * scale);
}

// Inputs of one query and head.
template <class Real>
struct QueryTensors {
  QueryTensors(const Problem& p, const ForwardTensors& t, int64_t n, int64_t q, int64_t m)
      : head(((n * p.queries + q) * p.heads + m)),
        points(static_cast<const Real*>(t.points) + (n * p.queries + q) * p.point_row + m * p.levels * p.points * 2),
        weights(static_cast<const Real*>(t.weights) + (n * p.queries + q) * p.weight_row + m * p.levels * p.points),
        references(t.references ? static_cast<const Real*>(t.references) +
                                      (n * p.queries + q) * p.levels * p.reference_dim
                                : nullptr) {}
  int64_t head;  // number of the (image, query, head)
  const Real *points, *weights, *references;
};

// Samples of the plain form lie at pixel = location * size + shift; those of the fused form have a shift of their own.
template <class Real>
void locate(const Problem& p, const SampleTable<Real>& table, const Rows& rows, const QueryTensors<Real>& query,
            Real shift, Look<Real>* look) {
  using V = Vec<Real>;
  using Int = typename SampleTable<Real>::Int;
  constexpr int64_t kStep = kLanes<V>;
  if (query.references) {
    softmax(query.weights, table.count, table.padded, look->weight.get());
  } else {
    for (int64_t i = 0; i < table.padded; i += kStep) {
      store(&look->weight[i], load_some<V>(query.weights + i, table.count - i, 0));
    }
  }
  for (int64_t first = 0; first < table.padded; first += kStep) {
    const V width = load<V>(&table.width[first]), height = load<V>(&table.height[first]);
    V x, y;
    load_pairs(query.points + 2 * first, table.count - first, &x, &y);
    if (!query.references) {
      x = pixel_of_location(x, width, shift);
      y = pixel_of_location(y, height, shift);
    } else {
      const V centre_x = spread_levels(table, first, query.references, p.reference_dim);
      const V centre_y = spread_levels(table, first, query.references + 1, p.reference_dim);
      if (p.reference_dim == 2) {
        x = pixel_around_point(centre_x, x, width);
        y = pixel_around_point(centre_y, y, height);
      } else {
        const Real half_share = Real(0.5) / p.points;
        x = pixel_around_box(centre_x, spread_levels(table, first, query.references + 2, 4), x, width, half_share);
        y = pixel_around_box(centre_y, spread_levels(table, first, query.references + 3, 4), y, height, half_share);
      }
    }
    const Footprint<V> print = footprint(x, y, width, height);
    store(&look->right[first], print.right);
    store(&look->down[first], print.down);
    V share[kCorners];
    shares(print.right, print.down, load<V>(&look->weight[first]), share);
    const auto row_length = load<IntOf<V>>(&table.row_length[first]), start = load<IntOf<V>>(&table.start[first]);
    const auto cell = start + print.row * row_length + print.column;
    const IntOf<V> corner_cell[kCorners] = {cell, cell + 1, cell + row_length, cell + row_length + 1};
    for (int c = 0; c < kCorners; ++c) {
      auto inside = print.inside[c];
      if (rows.padding_mask) {
        const auto readable = Lanes<V>::select(inside, corner_cell[c], IntOf<V>{});
        for (int i = 0; i < kStep; ++i) inside[i] &= -static_cast<Int>(!rows.padding_mask[readable[i]]);
      }
      const auto offset = corner_cell[c] * static_cast<Int>(rows.stride);
      const auto outside = IntOf<V>{} + static_cast<Int>(rows.outside);
      store(&look->offset[Look<Real>::at(first, c)], Lanes<V>::select(inside, offset, outside));
      store(&look->share[Look<Real>::at(first, c)], Lanes<V>::select(inside, share[c], V{}));
    }
  }
}

// Rows of one (image, head). In place, `outside` lies apart from them and has a negative offset.
template <class Real, bool kInPlace>
struct RowPointers {
  Real* rows;
  Real* outside;
  template <class Int>
  Real* at(Int offset) const {
    if constexpr (kInPlace) {
      return offset < 0 ? outside : rows + offset;
    } else {
      return rows + offset;
    }
  }
};

// Prefetch the rows of a query, which are scattered over the level.
template <class Rows, class Real>
SPARSE_DETR_HD void prefetch_rows(const Rows& rows, const Look<Real>& look, int64_t padded, int64_t row_length) {
  if (!rows.rows) return;
  for (int64_t i = 0; i < kCorners * padded; ++i) {
    const char* row = reinterpret_cast<const char*>(rows.at(look.offset[i]));
    for (int64_t byte = 0; byte < row_length * static_cast<int64_t>(sizeof(Real)); byte += 64) {
      __builtin_prefetch(row + byte);
    }
  }
}

// Sum of share * row over all corners of all samples, for kVectors vectors of channels from `channel` on.
template <int kVectors, class Real, bool kInPlace>
SPARSE_DETR_HD void sum_rows(const RowPointers<const Real, kInPlace>& rows, const Look<Real>& look, int64_t count,
                             int64_t channel, Real* output) {
  using V = Vec<Real>;
  constexpr int64_t kStep = kLanes<V>;
  constexpr int kChains = kVectors <= 2 ? kCorners : kVectors <= 4 ? 2 : 1;  // as many parallel sums as registers allow
  V sums[kChains][kVectors] = {};
  for (int64_t first = 0; first < count; first += kStep) {
    const int64_t in_vector = count - first < kStep ? count - first : kStep;
    const auto* offset = &look.offset[Look<Real>::at(first, 0)];
    const Real* share = &look.share[Look<Real>::at(first, 0)];
    for (int64_t i = 0; i < in_vector; ++i) {
      for (int c = 0; c < kCorners; ++c) {
        const Real* row = rows.at(offset[c * kStep + i]) + channel;
        const V scale = V{} + share[c * kStep + i];
        for (int k = 0; k < kVectors; ++k) sums[c % kChains][k] += scale * load<V>(row + k * kStep);
      }
    }
  }
  for (int k = 0; k < kVectors; ++k) {
    V total = sums[0][k];
    for (int i = 1; i < kChains; ++i) total += sums[i][k];
    store(output + channel + k * kStep, total);
  }
}

template <class Real, bool kInPlace>
SPARSE_DETR_HD void sum_all_rows(const RowPointers<const Real, kInPlace>& rows, const Look<Real>& look, int64_t count,
                                 int64_t padded_dim, Real* output) {
  constexpr int64_t kStep = kLanes<Vec<Real>>;
  int64_t channel = 0;
  for (; channel + 4 * kStep <= padded_dim; channel += 4 * kStep) sum_rows<4>(rows, look, count, channel, output);
  if (channel + 2 * kStep <= padded_dim) {
    sum_rows<2>(rows, look, count, channel, output);
    channel += 2 * kStep;
  }
  if (channel < padded_dim) sum_rows<1>(rows, look, count, channel, output);
}

// Dot products of `grad` with the row of every corner of the samples of one vector, and grad_row += share * grad.
//
// The rows of a sample's corners are four different rows, or rows that are discarded, so all are read before one is
// written: a processor that has seen a row read again soon after a write waits for every write from then on.
template <int kVectors, class Real, bool kInPlace>
SPARSE_DETR_HD void meet_rows(const RowPointers<const Real, kInPlace>& rows,
                              const RowPointers<Real, kInPlace>& grad_rows, const Look<Real>& look, int64_t first,
                              int64_t in_vector, const Real* grad, int64_t padded_dim, Vec<Real>* dots) {
  using V = Vec<Real>;
  constexpr int64_t kStep = kLanes<V>;
  const int64_t vectors = kVectors ? kVectors : padded_dim / kStep;
  const auto* offset = &look.offset[Look<Real>::at(first, 0)];
  const Real* share = &look.share[Look<Real>::at(first, 0)];
  V products[kCorners][kStep];
  for (int64_t i = 0; i < in_vector; ++i) {
    V product[kCorners] = {};
    if (rows.rows) {
      for (int c = 0; c < kCorners; ++c) {
        const Real* row = rows.at(offset[c * kStep + i]);
        for (int64_t k = 0; k < vectors; ++k) product[c] += load<V>(grad + k * kStep) * load<V>(row + k * kStep);
      }
    }
    for (int c = 0; c < kCorners; ++c) products[c][i] = product[c];
    if (grad_rows.rows) {
      for (int64_t k = 0; k < vectors; ++k) {
        Real* row[kCorners];
        V sum[kCorners];
        for (int c = 0; c < kCorners; ++c) {
          row[c] = grad_rows.at(offset[c * kStep + i]) + k * kStep;
          sum[c] = load<V>(row[c]) + (V{} + share[c * kStep + i]) * load<V>(grad + k * kStep);
        }
        for (int c = 0; c < kCorners; ++c) store(row[c], sum[c]);
      }
    }
  }
  for (int64_t i = in_vector; i < kStep; ++i) {
    for (int c = 0; c < kCorners; ++c) products[c][i] = V{};
  }
  for (int c = 0; c < kCorners; ++c) dots[c] = sum_each(products[c]);
}

// ------------------------------------------------------------------------------------------------------------ forward

// With fewer queries than tokens / this number, a copy of the value costs more than its slow layout. Measured with
// 20 197 tokens of 8 heads and 32 channels: break-even at 7.5 in the forward pass, at 13 in the backward pass.
constexpr int64_t kCopyWorth = 12;

// Whether there are too few queries for a copy.
template <class T>
bool reads_in_place(const Problem& p) {
  using Real = RealOf<T>;
  constexpr int64_t kLargestOffset = sizeof(Real) == 4 ? INT32_MAX : INT64_MAX;
  return sizeof(T) == sizeof(Real) && p.head_dim % kLanes<Vec<Real>> == 0 && kCopyWorth * p.queries <= p.tokens &&
         p.tokens * p.heads * p.head_dim <= kLargestOffset;
}

// Head m of image n as rows of `padded_dim`, zero on padding.
template <class T>
void fill_slab(const Problem& p, const ForwardTensors& t, int64_t n, int64_t m, int64_t padded_dim, int64_t first,
               int64_t last, RealOf<T>* slab) {
  for (int64_t token = first; token < last; ++token) {
    const T* from = static_cast<const T*>(t.value) + ((n * p.tokens + token) * p.heads + m) * p.head_dim;
    RealOf<T>* to = slab + token * padded_dim;
    const bool padding = t.padding_mask && t.padding_mask[n * p.tokens + token];
    if (!padding) read_row(from, p.head_dim, to);
    for (int64_t d = padding ? 0 : p.head_dim; d < padded_dim; ++d) to[d] = 0;
  }
}

// Writes the output of one query and head.
template <class T, bool kInPlace>
void sum_query(const Problem& p, const RowPointers<const RealOf<T>, kInPlace>& rows, const Look<RealOf<T>>& look,
               int64_t samples, int64_t padded_dim, RealOf<T>* sum, T* output) {
  if constexpr (sizeof(T) == sizeof(RealOf<T>)) {
    if (padded_dim == p.head_dim) return sum_all_rows(rows, look, samples, padded_dim, output);
  }
  sum_all_rows(rows, look, samples, padded_dim, sum);
  write_row(sum, p.head_dim, output);
}

template <class T>
void forward_in_place(const Problem& p, const ForwardTensors& t, ParallelFor parallel_for) {
  using Real = RealOf<T>;
  const SampleTable<Real> table(p);
  Buffer<Real> zeros(p.head_dim);
  for (int64_t d = 0; d < p.head_dim; ++d) zeros[d] = 0;
  for_ranges(parallel_for, p.batch * p.queries * p.heads, 64, [&](int64_t first, int64_t last) {
    Look<Real> looks[2] = {Look<Real>(table.padded), Look<Real>(table.padded)};
    const auto rows_of = [&](int64_t i) {
      const int64_t n = i / (p.queries * p.heads), m = i % p.heads;
      const Real* value = static_cast<const Real*>(t.value) + (n * p.tokens * p.heads + m) * p.head_dim;
      return RowPointers<const Real, true>{value, zeros.get()};
    };
    const auto look_at = [&](int64_t i) {
      const int64_t n = i / (p.queries * p.heads);
      const Rows layout{p.heads * p.head_dim, -1, t.padding_mask ? t.padding_mask + n * p.tokens : nullptr};
      const QueryTensors<Real> query(p, t, n, i / p.heads % p.queries, i % p.heads);
      locate(p, table, layout, query, Real(-0.5), &looks[i % 2]);
      prefetch_rows(rows_of(i), looks[i % 2], table.padded, p.head_dim);
    };
    look_at(first);
    for (int64_t i = first; i < last; ++i) {
      if (i + 1 < last) look_at(i + 1);
      T* output = static_cast<T*>(t.output) + i * p.head_dim;
      sum_query<T>(p, rows_of(i), looks[i % 2], table.count, p.head_dim, static_cast<Real*>(nullptr), output);
    }
  });
}

template <class T>
void forward_by_slab(const Problem& p, const ForwardTensors& t, ParallelFor parallel_for) {
  using Real = RealOf<T>;
  const SampleTable<Real> table(p);
  const int64_t padded_dim = round_up(p.head_dim, kLanes<Vec<Real>>);
  Buffer<Real> slab((p.tokens + 1) * padded_dim);
  for (int64_t d = 0; d < padded_dim; ++d) slab[p.tokens * padded_dim + d] = 0;
  const Rows layout{padded_dim, p.tokens * padded_dim, nullptr};
  const RowPointers<const Real, false> rows{slab.get(), nullptr};
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t m = 0; m < p.heads; ++m) {
      for_ranges(parallel_for, p.tokens, 2048, [&](int64_t first, int64_t last) {
        fill_slab<T>(p, t, n, m, padded_dim, first, last, slab.get());
      });
      for_ranges(parallel_for, p.queries, 64, [&](int64_t first, int64_t last) {
        Look<Real> look(table.padded);
        Buffer<Real> sum(padded_dim);
        for (int64_t q = first; q < last; ++q) {
          const QueryTensors<Real> query(p, t, n, q, m);
          locate(p, table, layout, query, Real(-0.5), &look);
          T* output = static_cast<T*>(t.output) + query.head * p.head_dim;
          sum_query<T>(p, rows, look, table.count, padded_dim, sum.get(), output);
        }
      });
    }
  }
}

template <class T>
void forward_of(const Problem& p, const ForwardTensors& t, ParallelFor parallel_for) {
  if constexpr (sizeof(T) == sizeof(RealOf<T>)) {
    if (reads_in_place<T>(p)) return forward_in_place<T>(p, t, parallel_for);
  }
  forward_by_slab<T>(p, t, parallel_for);
}

// ----------------------------------------------------------------------------------------------------------- backward

// Gradients of the samples of one query and head, from the dot products of grad_output with the corners' rows.
template <class Real>
struct SampleGradients {
  explicit SampleGradients(int64_t padded) : weight(padded), pixel_x(padded), pixel_y(padded) {}
  Buffer<Real> weight;            // by the attention weight
  Buffer<Real> pixel_x, pixel_y;  // by the pixel coordinate
};

template <class Real>
inline void differentiate(const Look<Real>& look, int64_t first, const Vec<Real> (&dots)[kCorners],
                          SampleGradients<Real>* gradients) {
  using V = Vec<Real>;
  const V right = load<V>(&look.right[first]), down = load<V>(&look.down[first]), weight = load<V>(&look.weight[first]);
  store(&gradients->weight[first], interpolate(dots, right, down));
  store(&gradients->pixel_x[first], weight * slope_x(dots, down));
  store(&gradients->pixel_y[first], weight * slope_y(dots, right));
}

// grad_points and grad_weights of one query and head.
template <class Real>
void write_sample_gradients(const Problem& p, const SampleTable<Real>& table, const Look<Real>& look,
                                   const SampleGradients<Real>& gradients, const Real* references, Real* grad_points,
                                   Real* grad_weights) {
  using V = Vec<Real>;
  const Real half_share = Real(0.5) / p.points;
  V expected_terms{};
  for (int64_t first = 0; first < table.padded; first += kLanes<V>) {
    expected_terms += load<V>(&look.weight[first]) * load<V>(&gradients.weight[first]);
  }
  const Real expected = references ? sum_lanes(expected_terms) : 0;
  for (int64_t first = 0; first < table.padded; first += kLanes<V>) {
    V by_weight = load<V>(&gradients.weight[first]);
    V by_x = load<V>(&gradients.pixel_x[first]), by_y = load<V>(&gradients.pixel_y[first]);
    if (references) by_weight = softmax_gradient(load<V>(&look.weight[first]), by_weight, expected);
    if (p.reference_dim != 2) {  // with 2, points are already in pixels
      by_x *= load<V>(&table.width[first]);
      by_y *= load<V>(&table.height[first]);
    }
    if (p.reference_dim == 4) {
      by_x = chain<V>(by_x, spread_levels(table, first, references + 2, 4) * half_share);
      by_y = chain<V>(by_y, spread_levels(table, first, references + 3, 4) * half_share);
    }
    const int64_t count = table.count - first;
    store_pairs(by_x, by_y, count, grad_points + 2 * first);
    store_some(by_weight, count, grad_weights + first);
  }
}

// (L, 2|4): what one head adds to the gradient of a query's reference points.
template <class Real>
void write_reference_gradients(const Problem& p, const SampleTable<Real>& table,
                                      const SampleGradients<Real>& gradients, const Real* offsets,
                                      Real* grad_references) {
  const Real half_share = Real(0.5) / p.points;
  for (int64_t l = 0; l < p.levels; ++l) {
    Real sums[4] = {};
    for (int64_t i = l * p.points; i < (l + 1) * p.points; ++i) {
      const Real by_x = gradients.pixel_x[i] * table.width[i], by_y = gradients.pixel_y[i] * table.height[i];
      sums[0] += by_x;
      sums[1] += by_y;
      sums[2] += chain(by_x, offsets[2 * i] * half_share);
      sums[3] += chain(by_y, offsets[2 * i + 1] * half_share);
    }
    for (int64_t i = 0; i < p.reference_dim; ++i) grad_references[l * p.reference_dim + i] = sums[i];
  }
}

// All queries of one (image, head), in order.
template <class T, int kVectors, bool kInPlace>
void backward_head(const Problem& p, const ForwardTensors& t, const BackwardTensors& g,
                   const SampleTable<RealOf<T>>& table, const Rows& layout,
                   const RowPointers<const RealOf<T>, kInPlace>& rows,
                   const RowPointers<RealOf<T>, kInPlace>& grad_rows, int64_t n, int64_t m, int64_t padded_dim) {
  using Real = RealOf<T>;
  using V = Vec<Real>;
  constexpr int64_t kStep = kLanes<V>;
  Look<Real> looks[2] = {Look<Real>(table.padded), Look<Real>(table.padded)};
  SampleGradients<Real> gradients(table.padded);
  Buffer<Real> grad(padded_dim);
  for (int64_t d = 0; d < padded_dim; ++d) grad[d] = 0;
  const auto look_at = [&](int64_t q) {
    const QueryTensors<Real> query(p, t, n, q, m);
    locate(p, table, layout, query, Real(-0.5), &looks[q % 2]);
    if constexpr (kInPlace) {
      prefetch_rows(rows, looks[q % 2], table.padded, padded_dim);
      prefetch_rows(grad_rows, looks[q % 2], table.padded, padded_dim);
    }
  };
  if (p.queries > 0) look_at(0);
  for (int64_t q = 0; q < p.queries; ++q) {
    if (q + 1 < p.queries) look_at(q + 1);
    const Look<Real>& look = looks[q % 2];
    const QueryTensors<Real> query(p, t, n, q, m);
    read_row(static_cast<const T*>(g.grad_output) + query.head * p.head_dim, p.head_dim, grad.get());
    for (int64_t first = 0; first < table.count; first += kStep) {
      const int64_t in_vector = table.count - first < kStep ? table.count - first : kStep;
      V dots[kCorners];
      meet_rows<kVectors>(rows, grad_rows, look, first, in_vector, grad.get(), padded_dim, dots);
      differentiate(look, first, dots, &gradients);
    }
    const int64_t samples = query.head * p.levels * p.points;
    if (g.grad_points) {
      write_sample_gradients(p, table, look, gradients, query.references,
                             static_cast<Real*>(g.grad_points) + samples * 2,
                             static_cast<Real*>(g.grad_weights) + samples);
    }
    if (g.grad_references) {
      write_reference_gradients(p, table, gradients, query.points,
                                static_cast<Real*>(g.grad_references) + query.head * p.levels * p.reference_dim);
    }
  }
}

// The same with the number of vectors in a row known to the compiler, where it is a common one.
template <class T, bool kInPlace, class... Arguments>
void backward_head_of(int64_t vectors, const Arguments&... arguments) {
  switch (vectors) {
    case 1:
      return backward_head<T, 1, kInPlace>(arguments...);
    case 2:
      return backward_head<T, 2, kInPlace>(arguments...);
    case 4:
      return backward_head<T, 4, kInPlace>(arguments...);
    default:
      return backward_head<T, 0, kInPlace>(arguments...);
  }
}

template <class T>
void backward_in_place(const Problem& p, const ForwardTensors& t, const BackwardTensors& g, ParallelFor parallel_for) {
  using Real = RealOf<T>;
  const SampleTable<Real> table(p);
  const bool need_samples = g.grad_points || g.grad_references;
  const int64_t token_bytes = sizeof(Real) * p.heads * p.head_dim;
  for_ranges(parallel_for, g.grad_value ? p.batch * p.tokens : 0, 1024, [&](int64_t first, int64_t last) {
    std::memset(static_cast<char*>(g.grad_value) + first * token_bytes, 0, (last - first) * token_bytes);
  });
  for_ranges(parallel_for, p.batch * p.heads, 1, [&](int64_t first, int64_t last) {
    Buffer<Real> zeros(p.head_dim), discarded(p.head_dim);
    for (int64_t d = 0; d < p.head_dim; ++d) zeros[d] = discarded[d] = 0;
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / p.heads, m = i % p.heads;
      const int64_t start = (n * p.tokens * p.heads + m) * p.head_dim, stride = p.heads * p.head_dim;
      const Rows layout{stride, -1, t.padding_mask ? t.padding_mask + n * p.tokens : nullptr};
      const RowPointers<const Real, true> rows{need_samples ? static_cast<const Real*>(t.value) + start : nullptr,
                                               zeros.get()};
      const RowPointers<Real, true> grad_rows{g.grad_value ? static_cast<Real*>(g.grad_value) + start : nullptr,
                                              discarded.get()};
      backward_head_of<T, true>(p.head_dim / kLanes<Vec<Real>>, p, t, g, table, layout, rows, grad_rows, n, m,
                                p.head_dim);
    }
  });
}

template <class T>
void backward_by_slab(const Problem& p, const ForwardTensors& t, const BackwardTensors& g, ParallelFor parallel_for) {
  using Real = RealOf<T>;
  const SampleTable<Real> table(p);
  const int64_t padded_dim = round_up(p.head_dim, kLanes<Vec<Real>>);
  const int64_t slab_size = (p.tokens + 1) * padded_dim;
  const bool need_samples = g.grad_points || g.grad_references;
  const Rows layout{padded_dim, p.tokens * padded_dim, nullptr};
  for_ranges(parallel_for, p.batch * p.heads, 1, [&](int64_t first, int64_t last) {
    Buffer<Real> slab(need_samples ? slab_size : 0), grad_slab(g.grad_value ? slab_size : 0);
    for (int64_t i = first; i < last; ++i) {
      const int64_t n = i / p.heads, m = i % p.heads;
      if (need_samples) {
        fill_slab<T>(p, t, n, m, padded_dim, 0, p.tokens, slab.get());
        std::memset(slab.get() + p.tokens * padded_dim, 0, sizeof(Real) * padded_dim);
      }
      if (g.grad_value) std::memset(grad_slab.get(), 0, sizeof(Real) * slab_size);
      const RowPointers<const Real, false> rows{need_samples ? slab.get() : nullptr, nullptr};
      const RowPointers<Real, false> grad_rows{g.grad_value ? grad_slab.get() : nullptr, nullptr};
      backward_head_of<T, false>(padded_dim / kLanes<Vec<Real>>, p, t, g, table, layout, rows, grad_rows, n, m,
                                 padded_dim);
      for (int64_t token = 0; g.grad_value && token < p.tokens; ++token) {
        T* to = static_cast<T*>(g.grad_value) + ((n * p.tokens + token) * p.heads + m) * p.head_dim;
        if (t.padding_mask && t.padding_mask[n * p.tokens + token]) {
          for (int64_t d = 0; d < p.head_dim; ++d) to[d] = from_real<T>(0);
        } else {
          write_row(&grad_slab[token * padded_dim], p.head_dim, to);
        }
      }
    }
  });
}

template <class T>
void backward_of(const Problem& p, const ForwardTensors& t, const BackwardTensors& g, ParallelFor parallel_for) {
  if constexpr (sizeof(T) == sizeof(RealOf<T>)) {
    if (reads_in_place<T>(p)) return backward_in_place<T>(p, t, g, parallel_for);
  }
  backward_by_slab<T>(p, t, g, parallel_for);
}

// ------------------------------------------------------------------------------------------------------ attention map

// Every head of an image has its own map; the maps are added up in the order of the heads.
template <class Real>
void splat_of(const Problem& p, const void* locations, const void* weights, double shift, void* received,
              ParallelFor parallel_for) {
  const SampleTable<Real> table(p);
  const ForwardTensors t{nullptr, locations, weights, nullptr, nullptr, nullptr};
  const int64_t map_size = p.tokens + 1;  // the last cell takes what falls outside
  const Rows layout{1, p.tokens, nullptr};
  Buffer<Real> maps(p.batch * p.heads * map_size);
  for_ranges(parallel_for, p.batch * p.heads, 1, [&](int64_t first, int64_t last) {
    Look<Real> look(table.padded);
    for (int64_t i = first; i < last; ++i) {
      Real* map = maps.get() + i * map_size;
      std::memset(map, 0, sizeof(Real) * map_size);
      for (int64_t q = 0; q < p.queries; ++q) {
        const QueryTensors<Real> query(p, t, i / p.heads, q, i % p.heads);
        locate(p, table, layout, query, static_cast<Real>(shift), &look);
        for (int64_t j = 0; j < kCorners * table.padded; ++j) map[look.offset[j]] += look.share[j];
      }
    }
  });
  for_ranges(parallel_for, p.batch * p.tokens, 4096, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Real* map = maps.get() + i / p.tokens * p.heads * map_size + i % p.tokens;
      Real sum = 0;
      for (int64_t m = 0; m < p.heads; ++m) sum += map[m * map_size];
      static_cast<Real*>(received)[i] = sum;
    }
  });
}

// -------------------------------------------------------------------------------------------------------------- table

void forward(DType dtype, const Problem& p, const ForwardTensors& t, ParallelFor parallel_for) {
  switch (dtype) {
    case DType::kFloat32:
      return forward_of<float>(p, t, parallel_for);
    case DType::kFloat64:
      return forward_of<double>(p, t, parallel_for);
    case DType::kBFloat16:
      return forward_of<BFloat16>(p, t, parallel_for);
    case DType::kFloat16:
      return forward_of<Float16>(p, t, parallel_for);
  }
}

void backward(DType dtype, const Problem& p, const ForwardTensors& t, const BackwardTensors& g,
              ParallelFor parallel_for) {
  switch (dtype) {
    case DType::kFloat32:
      return backward_of<float>(p, t, g, parallel_for);
    case DType::kFloat64:
      return backward_of<double>(p, t, g, parallel_for);
    case DType::kBFloat16:
      return backward_of<BFloat16>(p, t, g, parallel_for);
    case DType::kFloat16:
      return backward_of<Float16>(p, t, g, parallel_for);
  }
}

void splat(DType dtype, const Problem& p, const void* locations, const void* weights, double shift, void* received,
           ParallelFor parallel_for) {
  if (dtype == DType::kFloat64) return splat_of<double>(p, locations, weights, shift, received, parallel_for);
  return splat_of<float>(p, locations, weights, shift, received, parallel_for);
}

}  // namespace

extern const Kernels kernels = {forward, backward, splat};

}  // namespace SPARSE_DETR_ISA
}  // namespace sparse_detr
