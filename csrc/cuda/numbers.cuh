// Values as the GPU stores and computes them: 16 or 8 bytes at a time, widened to float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace codetr {
namespace cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

__device__ __forceinline__ float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ float widen(BFloat16 x) { return from_bits(uint32_t{x.bits} << 16); }

__device__ __forceinline__ float widen(Half x) {
#ifdef __CUDA_ARCH__
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#else
  const uint32_t body = (x.bits & 0x7fffu) << 13, special = body >= 0x0f800000u ? 0x7f800000u : 0;
  return from_bits(bits_of(from_bits(body) * 0x1p112f) | special | (x.bits & 0x8000u) << 16);
#endif
}

__device__ __forceinline__ void narrow(float x, float &to) { to = x; }

__device__ __forceinline__ void narrow(float x, BFloat16 &to) {  // to nearest, ties to even
  const uint32_t bits = bits_of(x);
  to.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

__device__ __forceinline__ void narrow(float x, Half &to) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x));
#else
  // Adding and subtracting a power of two leaves as many fraction bits as a half has at that size.
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000u;
  const float size = from_bits(bits & 0x7fffffffu);
  if (!(size < 65520.0f)) {
    to.bits = static_cast<uint16_t>(sign | (size != size ? 0x7e00u : 0x7c00u));
    return;
  }
  const uint32_t exponent = size < 0x1p-14f ? 113u : bits_of(size) >> 23;
  const volatile float sum = size + from_bits((exponent + 13) << 23);
  const float rounded = sum - from_bits((exponent + 13) << 23);
  to.bits = static_cast<uint16_t>(sign | bits_of(rounded * 0x1p-112f) >> 13);
#endif
}

// `Count` neighbouring numbers, moved by one instruction where they take 8 or 16 bytes.
template <typename S, int Count>
struct alignas(sizeof(S) * Count) Pack {
  S number[Count];
};

template <int Count, typename S>
__device__ __forceinline__ Pack<S, Count> load(const S *p) {
  return *reinterpret_cast<const Pack<S, Count> *>(p);
}

template <typename S, int Count>
__device__ __forceinline__ void store(S *p, const Pack<S, Count> &numbers) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(numbers) == 16) {  // an assignment would become one instruction per number
    uint4 bits;
    memcpy(&bits, &numbers, sizeof(bits));
    *reinterpret_cast<uint4 *>(p) = bits;
    return;
  }
#endif
  *reinterpret_cast<Pack<S, Count> *>(p) = numbers;
}

// Adds four numbers to a gradient that other threads add to as well.
__device__ __forceinline__ void add_four(float *to, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

}  // namespace cuda
}  // namespace codetr
