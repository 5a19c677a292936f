// What a kernel is asked to do: sizes, the sampling points of one query, and raw pointers into contiguous tensors.
#pragma once

#include <cstdint>

namespace codetr {

template <typename T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};

// The most lanes that a vector has: arrays of constants are padded by as many entries.
constexpr int64_t most_lanes = 16;

// One query samples `heads * points` places, where points = levels * points per level. The arrays `width` .. `start`
// hold one entry for each of them (a level's constants, repeated), so that coordinates are computed in one plain loop.
template <typename T>
struct Problem {
  int64_t batch, tokens, queries, heads, depth, points;
  const T *width, *height;                 // of the point's level, in cells
  const typename IntegerOf<T>::type *columns, *rows, *start;  // as integers, and the index of the level's first cell
  const T *value;                          // (batch, tokens, heads, depth)
  const T *locations;                      // (batch, queries, heads, points, 2)
  const T *weights;                        // (batch, queries, heads, points)
  T *output;                               // (batch, queries, heads, depth)
  const T *grad_output;                    // like output
  T *grad_value, *grad_locations, *grad_weights;
};

// The kernels of one instruction set. Both may be called by many threads at once, with disjoint ranges.
template <typename T>
struct Kernels {
  // Rows [begin, end) of the batch * queries rows.
  void (*forward)(const Problem<T> &, int64_t begin, int64_t end);
  // All queries of one image, heads [first, last). `grad_value` must be zero there. Its sums run in the order of the
  // queries, however the work is cut, so the result does not depend on the number of threads.
  void (*backward)(const Problem<T> &, int64_t image, int64_t first, int64_t last);
};

struct InstructionSet {
  const char *name;
  Kernels<float> single;
  Kernels<double> twice;
};

extern const InstructionSet generic;
#if defined(__x86_64__)
extern const InstructionSet avx2;
extern const InstructionSet avx512;
#endif

}  // namespace codetr
