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

// Values as they are stored: T itself, or a 16-bit type that is widened to T on the way.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// One query samples `heads * points` places, where points = levels * points per level. The arrays `width` .. `start`
// hold one entry for each of them (a level's constants, repeated), so that coordinates are computed in one plain loop.
template <typename T>
struct Problem {
  int64_t batch, tokens, queries, heads, depth, points;
  const T *width, *height;                 // of the point's level, in cells
  const typename IntegerOf<T>::type *columns, *rows, *start;  // as integers, and the index of the level's first cell
  const T *locations;                      // (batch, queries, heads, points, 2)
  const T *weights;                        // (batch, queries, heads, points)
  T *grad_locations, *grad_weights;
};

// What one call of a kernel does: some heads of some queries of one image; with one head, perhaps some points only.
// Each pointer stands at the first of those heads: of cell 0 (value and its gradient, `step` elements from cell to
// cell), of the first query (output and its gradient, `row` elements from query to query).
template <typename T>
struct Part {
  int64_t image, first_head, last_head, first_query, last_query, first_point, last_point;
  const void *value;
  T *grad_value;
  int64_t step;
  T *output;
  const T *grad_output;
  int64_t row;
};

// The kernels of one instruction set for one type of values. Many threads may call them at once, for parts that do not
// overlap.
template <typename T>
struct Kernels {
  void (*forward)(const Problem<T> &, const Part<T> &);
  // Adds to `grad_value`, which other calls must not touch, and overwrites the gradients of locations and weights.
  void (*backward)(const Problem<T> &, const Part<T> &);
};

struct InstructionSet {
  const char *name;
  Kernels<float> single, brain, half;
  Kernels<double> twice;
};

extern const InstructionSet generic;
#if defined(__x86_64__)
extern const InstructionSet avx2;
extern const InstructionSet avx512;
#endif

}  // namespace codetr
