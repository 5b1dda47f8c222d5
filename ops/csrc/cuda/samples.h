// What the forward and the backward kernel share: the sizes of a call, how a block's threads divide the work, and where
// the samples of a query lie. The formulas stand in ../arithmetic.h.
//
// A block handles neighbouring queries of one head, which read neighbouring cells. A query has a group of threads, and
// a thread 16 bytes of channels. First a thread of a group is a sample: softmax, location, cells and shares are
// computed once and put into shared memory. Then a thread is a vector of channels, and reads these.
//
// The kernels are functions of a Block, which tells a thread its place and has barriers and atomic additions:
// DeviceBlock on the GPU, a stand-in in tests/ops/native, where the same code runs on the host.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../arithmetic.h"
#include "numbers.h"

// Code of a Block: on the GPU, or in the stand-in.
#if defined(__CUDACC__)
#define SPARSE_DETR_DEVICE __device__ __forceinline__
#define SPARSE_DETR_PRAGMA(text) _Pragma(#text)
#define SPARSE_DETR_UNROLL(count) SPARSE_DETR_PRAGMA(unroll count)
#else
#define SPARSE_DETR_DEVICE inline
#define SPARSE_DETR_UNROLL(count)
#endif

namespace sparse_detr {

constexpr int kMaxLevels = 16;           // the levels travel among the kernel's arguments
constexpr int kThreads = 128;            // of a block
constexpr int kMaxGroup = 32;            // threads of a query
constexpr int kVectorBytes = 16;         // that a thread reads at once
constexpr int kSharedBytes = 48 * 1024;  // of a block, on every GPU and without asking

struct Level {
  int32_t height, width, first_token;
};

// Sizes of one call; all its tensors are contiguous. `derive` fills what follows from the others.
struct Problem {
  int64_t batch;
  int32_t tokens, heads, channels, queries, num_levels, num_points;
  int32_t row_length;     // M * D
  int64_t image_length;   // N * M * D
  int32_t reference_dim;  // 2 or 4 in the fused form, 0 in the plain one
  double half_share;      // 0.5 / P: of a box, what an offset of 1 is
  Level levels[kMaxLevels];

  void derive() {
    row_length = heads * channels;
    image_length = static_cast<int64_t>(tokens) * row_length;
    half_share = 0.5 / num_points;
  }

  SPARSE_DETR_HD int32_t samples() const { return num_levels * num_points; }  // of one query and head
};

template <class T>
struct ForwardTensors {
  using Real = RealOf<T>;
  const T* value;            // (B, N, M, D)
  const Real* points;        // (B, Q, M, L, P, 2): locations, or offsets in the fused form
  const Real* weights;       // (B, Q, M, L, P): attention, or logits in the fused form
  const Real* references;    // (B, Q, L, 2|4), or null
  const bool* padding_mask;  // (B, N), or null
  T* output;                 // (B, Q, M, D); not used by the backward pass
};

// Neighbouring numbers that are read at once.
template <class T, int kSize>
struct alignas(sizeof(T) * kSize < kVectorBytes ? sizeof(T) * kSize : kVectorBytes) Pack {
  T x[kSize];
};

template <int kSize, class T>
SPARSE_DETR_HD Pack<std::remove_const_t<T>, kSize> load_pack(T* from) {
  return *reinterpret_cast<const Pack<std::remove_const_t<T>, kSize>*>(from);
}
template <int kSize, class T>
SPARSE_DETR_HD void store_pack(T* to, const Pack<T, kSize>& pack) {
  *reinterpret_cast<Pack<T, kSize>*>(to) = pack;
}

// ------------------------------------------------------------------------------------------------ division of the work

// How a launch is cut.
struct Division {
  int32_t group;              // threads of a query
  int32_t queries_per_block;  // all of one head
  int32_t query_blocks;       // of one head
  int32_t bytes_per_query;    // of shared memory
  int64_t blocks;

  int32_t threads() const { return group * queries_per_block; }
  int32_t shared_bytes() const { return bytes_per_query * queries_per_block; }
};

// Numbers that a thread reads at once. Rows of another length are read one by one.
template <class T>
int vector_size(const Problem& problem) {
  constexpr int vector = kVectorBytes / sizeof(T);
  return problem.channels % vector == 0 ? vector : 1;
}

// `queries_per_block` is 0 if the samples of one query do not fit into shared memory.
inline Division divide(const Problem& problem, int vector, int64_t (*bytes_per_query)(const Problem&, int32_t group)) {
  Division division{};
  const int vectors = (problem.channels + vector - 1) / vector;
  division.group = vectors < kMaxGroup ? vectors : kMaxGroup;
  const int64_t bytes = bytes_per_query(problem, division.group), most = kSharedBytes / bytes;
  const int64_t wanted = kThreads / division.group;
  division.queries_per_block = static_cast<int32_t>(most < wanted ? most : wanted);
  if (division.queries_per_block == 0) return division;
  division.bytes_per_query = static_cast<int32_t>(bytes);
  division.query_blocks = static_cast<int32_t>(
      (problem.queries + static_cast<int64_t>(division.queries_per_block) - 1) / division.queries_per_block);
  division.blocks = problem.batch * division.query_blocks * problem.heads;
  return division;
}

// What a thread works on.
struct Place {
  int32_t slot, lane;  // of the query in the block, of the thread in its group
  int32_t head;
  int64_t image;
  int64_t query;  // counted over the batch
  int64_t row;    // query * M + head
  bool exists;    // false past the last query
};

template <class Block>
SPARSE_DETR_DEVICE Place place_of(const Block& block, const Problem& problem, const Division& division) {
  Place place;
  place.slot = block.thread() / division.group;
  place.lane = block.thread() % division.group;
  const uint32_t index = block.index(), heads = problem.heads, query_blocks = division.query_blocks;
  place.head = index % heads;
  place.image = index / heads / query_blocks;
  // In 64 bits: the last block may reach past what 32 hold.
  const int64_t query = static_cast<int64_t>(index / heads % query_blocks) * division.queries_per_block + place.slot;
  place.exists = query < problem.queries;
  place.query = place.image * problem.queries + query;
  place.row = place.query * problem.heads + place.head;
  return place;
}

// Every thread of a group brings a number and gets all of them combined, always in the same order. `scratch` has room
// for one number of each.
template <class Block, class Real, class Combine>
SPARSE_DETR_DEVICE Real combine_group(const Block& block, const Place& place, int32_t group, Real* scratch, Real mine,
                                  Combine combine) {
  scratch[place.lane] = mine;
  block.barrier();
  Real result = scratch[0];
  for (int lane = 1; lane < group; ++lane) result = combine(result, scratch[lane]);
  return result;
}

struct Larger {
  template <class Real>
  SPARSE_DETR_HD Real operator()(Real a, Real b) const {
    return b > a ? b : a;
  }
};
struct Plus {
  template <class Real>
  SPARSE_DETR_HD Real operator()(Real a, Real b) const {
    return a + b;
  }
};

// -------------------------------------------------------------------------------------------------- samples of a query

// In shared memory, for every sample of a query.
template <class Real>
struct Samples {
  Pack<int32_t, kCorners>* cells;  // token of every corner, -1 where nothing is read: outside of the level, padded
  Pack<Real, 4>* numbers;          // forward: weight * bilinear share of every corner; backward: BackwardNumber
  Real* scratch;                   // two numbers for every thread of the group

  static constexpr int kBytes = sizeof(Pack<Real, 4>) + sizeof(Pack<int32_t, kCorners>);
};

// The numbers of a sample in the backward pass. Once its dot products are known, the gradients by the pixel coordinates
// take the place of its distances from the corner.
enum BackwardNumber { kRight = 0, kDown = 1, kWeight = 2, kGradWeight = 3, kSlopeX = kRight, kSlopeY = kDown };

// The number of bytes up to a multiple of a vector's, so that what follows is aligned.
SPARSE_DETR_HD int64_t whole_vectors(int64_t bytes) { return (bytes + kVectorBytes - 1) / kVectorBytes * kVectorBytes; }

// Pixel coordinates of a sample.
template <class Real>
SPARSE_DETR_DEVICE Pack<Real, 2> pixel_of_sample(const Problem& problem, const Real* points, const Real* references,
                                             const Place& place, int32_t sample, int32_t level) {
  const Real width = static_cast<Real>(problem.levels[level].width);
  const Real height = static_cast<Real>(problem.levels[level].height);
  const Pack<Real, 2> point = load_pack<2>(points + 2 * (place.row * problem.samples() + sample));
  if (problem.reference_dim == 0) {
    return {pixel_of_location(point.x[0], width, Real(-0.5)), pixel_of_location(point.x[1], height, Real(-0.5))};
  }
  const Real* reference = references + (place.query * problem.num_levels + level) * problem.reference_dim;
  const Pack<Real, 2> centre = load_pack<2>(reference);
  if (problem.reference_dim == 2) {
    return {pixel_around_point(centre.x[0], point.x[0], width), pixel_around_point(centre.x[1], point.x[1], height)};
  }
  const Pack<Real, 2> extent = load_pack<2>(reference + 2);
  const Real half_share = static_cast<Real>(problem.half_share);
  return {pixel_around_box(centre.x[0], extent.x[0], point.x[0], width, half_share),
          pixel_around_box(centre.x[1], extent.x[1], point.x[1], height, half_share)};
}

// One over the sum of the softmax's exponentials, which it leaves in numbers[sample].x[kWeight] for the same thread.
template <class Block, class Real>
SPARSE_DETR_DEVICE Real softmax_scale(const Block& block, const Problem& problem, const Division& division,
                                  const Place& place, const Real* logits, const Samples<Real>& samples) {
  Real mine = -INFINITY;
  if (place.exists) {
    for (int s = place.lane; s < problem.samples(); s += division.group) mine = Larger()(mine, logits[s]);
  }
  const Real largest = combine_group(block, place, division.group, samples.scratch, mine, Larger());
  Real sum = 0;
  if (place.exists) {
    for (int s = place.lane; s < problem.samples(); s += division.group) {
      const Real exponential = std::exp(logits[s] - largest);
      samples.numbers[s].x[kWeight] = exponential;
      sum += exponential;
    }
  }
  return Real(1) / combine_group(block, place, division.group, samples.scratch + division.group, sum, Plus());
}

// Fills `samples`, and waits until all are there.
template <bool kBackward, class T, class Block>
SPARSE_DETR_DEVICE void locate(const Block& block, const Problem& problem, const Division& division, const Place& place,
                           const ForwardTensors<T>& tensors, const Samples<RealOf<T>>& samples) {
  using Real = RealOf<T>;
  const Real* weights = tensors.weights + place.row * problem.samples();
  const bool fused = problem.reference_dim != 0;
  const Real scale = fused ? softmax_scale(block, problem, division, place, weights, samples) : Real(1);
  if (place.exists) {
    for (int s = place.lane; s < problem.samples(); s += division.group) {
      const int level = s / problem.num_points;
      const Level& shape = problem.levels[level];
      const Pack<Real, 2> pixel = pixel_of_sample(problem, tensors.points, tensors.references, place, s, level);
      const auto print = footprint(pixel.x[0], pixel.x[1], static_cast<Real>(shape.width),
                                   static_cast<Real>(shape.height));
      const Real weight = fused ? samples.numbers[s].x[kWeight] * scale : weights[s];
      Real share[kCorners];
      shares(print.right, print.down, weight, share);
      Pack<int32_t, kCorners> cells;
      Pack<Real, 4> numbers{{print.right, print.down, weight, Real(0)}};
      SPARSE_DETR_UNROLL(4)
      for (int corner = 0; corner < kCorners; ++corner) {
        const int32_t row = print.row + corner / 2, column = print.column + corner % 2;
        const int32_t cell = shape.first_token + row * shape.width + column;
        const bool read = print.inside[corner] && !(tensors.padding_mask != nullptr &&
                                                    tensors.padding_mask[place.image * problem.tokens + cell]);
        cells.x[corner] = read ? cell : -1;
        if (!kBackward) numbers.x[corner] = read ? share[corner] : Real(0);
      }
      samples.cells[s] = cells;
      samples.numbers[s] = numbers;
    }
  }
  block.barrier();
}

// Rows of (B, N, M, D) at a thread's channels: `first` is the image's first token.
template <class T>
struct Rows {
  T* first;
  uint32_t row_bytes;  // from token to token

  SPARSE_DETR_DEVICE T* at(int32_t cell) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    const uint64_t row = static_cast<uint32_t>(cell);  // so that this is one multiply-add of 32 x 32 + 64 bits
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + row * row_bytes);
  }
};

template <class T>
SPARSE_DETR_DEVICE Rows<T> rows_of(T* tensor, const Problem& problem, const Place& place, int32_t channel) {
  return {tensor + place.image * problem.image_length + place.head * problem.channels + channel,
          static_cast<uint32_t>(problem.row_length * sizeof(T))};
}

// What the corners hold; zero where nothing is read.
template <int kVector, class T>
SPARSE_DETR_DEVICE void load_corners(const Rows<const T>& from, const Pack<int32_t, kCorners> cells,
                                     Pack<T, kVector> (&rows)[kCorners]) {
  SPARSE_DETR_UNROLL(4)
  for (int corner = 0; corner < kCorners; ++corner) {
    rows[corner] = Pack<T, kVector>{};
    if (cells.x[corner] >= 0) {
      rows[corner] = load_pack<kVector>(from.at(cells.x[corner]));
    }
  }
}

}  // namespace sparse_detr
