// Half-precision numbers and aligned memory. In an unnamed namespace: every instruction set compiles its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <new>

#include "../arithmetic.h"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace sparse_detr {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float to_real(float x) { return x; }
inline double to_real(double x) { return x; }
inline float to_real(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float to_real(Float16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = x.bits & 0x7fff;
  if (magnitude < 0x0400) {  // zero or subnormal: a multiple of 2^-24
    return bit_cast<float>(sign | bit_cast<uint32_t>(static_cast<float>(magnitude) * 0x1p-24f));
  }
  const uint32_t rebias = magnitude < 0x7c00 ? 127 - 15 : 255 - 31;  // the latter for infinity and NaN
  return bit_cast<float>(sign | ((magnitude << 13) + (rebias << 23)));
#endif
}

// To the nearest, ties to even.
template <class T>
T from_real(RealOf<T> x);
template <>
inline float from_real<float>(float x) {
  return x;
}
template <>
inline double from_real<double>(double x) {
  return x;
}
template <>
inline BFloat16 from_real<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(x != x ? 0x7fc0 : rounded)};
}
template <>
inline Float16 from_real<Float16>(float x) {
#if defined(__F16C__)
  return {static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT))};
#else
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // rounds to 65536 or more: infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // subnormal: adding 0.5 rounds to a multiple of 2^-24
    half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude + 0xfff + ((magnitude >> 13) & 1) - ((127u - 15) << 23)) >> 13;
  }
  return {static_cast<uint16_t>(((bits >> 16) & 0x8000) | half)};
#endif
}

// `count` numbers from storage, and back. Compilers make vectors of these loops, but not for float16.
template <class T>
inline void read_row(const T* from, int64_t count, RealOf<T>* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_real(from[i]);
}
template <class T>
inline void write_row(const RealOf<T>* from, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from_real<T>(from[i]);
}
#if defined(__F16C__)
template <>
inline void read_row<Float16>(const Float16* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
  for (; i < count; ++i) to[i] = to_real(from[i]);
}
template <>
inline void write_row<Float16>(const float* from, int64_t count, Float16* to) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
  for (; i < count; ++i) to[i] = from_real<Float16>(from[i]);
}
#endif

// Uninitialised memory that starts on a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(static_cast<T*>(::operator new(bytes(size), kAlignment))) {}
  ~Buffer() { ::operator delete(data_, kAlignment); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  static std::size_t bytes(int64_t size) {
    constexpr int64_t most = std::numeric_limits<int64_t>::max() / static_cast<int64_t>(sizeof(T));
    if (size < 0 || size > most) throw std::bad_alloc();
    return static_cast<std::size_t>(size) * sizeof(T);
  }

  static constexpr std::align_val_t kAlignment{64};
  T* data_;
};

}  // namespace
}  // namespace sparse_detr
