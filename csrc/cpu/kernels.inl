// The CPU kernels, compiled once for every instruction set: the including file defines CODETR_SET (a name) and
// CODETR_VECTOR_BYTES, and is compiled with that set's flags. Nothing of the C++ library is used here: an inline
// function of it, compiled for a newer processor, could be the copy that the linker keeps for all.

#include "problem.h"

namespace codetr {
namespace {

template <typename T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};

template <typename V, typename T>
inline V load(const T *p) {
  return *reinterpret_cast<const V *>(p);
}

template <typename V, typename T>
inline void store(T *p, V v) {
  *reinterpret_cast<V *>(p) = v;
}

// Where the four cells around each point lie and how much each counts. A cell outside its level is written as -1 and
// read as zeros: its weight may still be NaN, as in the formula, when a coordinate is not finite.
template <typename T>
struct Samples {
  int64_t count;
  int32_t *offset;  // (4, count): upper left, upper right, lower left, lower right, in elements of one image's value
  T *weight;        // (4, count), attention weight included in the forward pass
  T *right, *down;  // (count): the share of the right and of the lower cells
  T *memory;

  Samples(int64_t n, int64_t extra) : count(n) {
    memory = new T[6 * n + extra];
    offset = new int32_t[4 * n];
    weight = memory;
    right = memory + 4 * n;
    down = memory + 5 * n;
  }
  ~Samples() {
    delete[] memory;
    delete[] offset;
  }
  Samples(const Samples &) = delete;
  Samples &operator=(const Samples &) = delete;
  T *extra() { return memory + 6 * count; }
};

// Points [0, count) of the heads from `first_head` on.
template <typename T>
inline void locate(const Problem<T> &p, const T *__restrict locations, const T *__restrict weights, int64_t first_head,
                   Samples<T> &samples) {
  const int64_t n = samples.count, skip = first_head * p.points;
  const T *__restrict width = p.width + skip, *__restrict height = p.height + skip;
  const int32_t *__restrict columns = p.columns + skip, *__restrict rows = p.rows + skip,
                            *__restrict start = p.start + skip;
  int32_t *__restrict o00 = samples.offset, *__restrict o01 = o00 + n, *__restrict o10 = o01 + n,
                      *__restrict o11 = o10 + n;
  T *__restrict w00 = samples.weight, *__restrict w01 = w00 + n, *__restrict w10 = w01 + n, *__restrict w11 = w10 + n;
  T *__restrict right = samples.right, *__restrict down = samples.down;
  const int32_t step = static_cast<int32_t>(p.heads * p.depth);
  for (int64_t i = 0; i < n; ++i) {
    const T x = locations[2 * i] * width[i] - T(0.5), y = locations[2 * i + 1] * height[i] - T(0.5);
    const bool inside = (x >= T(-1)) & (x < width[i]) & (y >= T(-1)) & (y < height[i]);
    const T xs = inside ? x : T(0), ys = inside ? y : T(0);
    int32_t column = static_cast<int32_t>(xs), row = static_cast<int32_t>(ys);
    column -= static_cast<T>(column) > xs;  // towards minus infinity
    row -= static_cast<T>(row) > ys;
    const T lx = inside ? xs - static_cast<T>(column) : x - x;  // outside: 0, or NaN when x is not finite
    const T ly = inside ? ys - static_cast<T>(row) : y - y;
    const bool left = inside & (column >= 0), over = inside & (column + 1 < columns[i]);
    const bool upper = row >= 0, lower = row + 1 < rows[i];
    const int32_t cell = (start[i] + row * columns[i] + column) * step;
    const int32_t below = cell + columns[i] * step;
    o00[i] = (left & upper) ? cell : -1;
    o01[i] = (over & upper) ? cell + step : -1;
    o10[i] = (left & lower) ? below : -1;
    o11[i] = (over & lower) ? below + step : -1;
    const T a = weights[i];
    w00[i] = a * ((1 - ly) * (1 - lx));
    w01[i] = a * ((1 - ly) * lx);
    w10[i] = a * (ly * (1 - lx));
    w11[i] = a * (ly * lx);
    right[i] = lx;
    down[i] = ly;
  }
}

// ---- forward -------------------------------------------------------------------------------------------------------

template <typename T, int Bytes, int Count>
void forward_fixed(const Problem<T> &p, int64_t begin, int64_t end) {
  using V = typename VectorOf<T, Bytes>::type;
  constexpr int lanes = Bytes / sizeof(T);
  const T zeros[lanes * Count] = {};
  const int64_t n = p.heads * p.points, channels = p.heads * p.depth;
  Samples<T> samples(n, 0);
  const int32_t *offset = samples.offset;
  const T *weight = samples.weight;
  for (int64_t row = begin; row < end; ++row) {
    locate(p, p.locations + row * n * 2, p.weights + row * n, 0, samples);
    const T *image = p.value + row / p.queries * p.tokens * channels;
    for (int64_t head = 0; head < p.heads; ++head) {
      const T *base = image + head * p.depth;
      V sum[Count] = {};
      for (int64_t i = head * p.points; i < (head + 1) * p.points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const int32_t at = offset[corner * n + i];
          const T *cell = at < 0 ? zeros : base + at;
          const T w = weight[corner * n + i];
          for (int k = 0; k < Count; ++k) sum[k] += w * load<V>(cell + k * lanes);
        }
      }
      T *out = p.output + row * channels + head * p.depth;
      for (int k = 0; k < Count; ++k) store<V>(out + k * lanes, sum[k]);
    }
  }
}

template <typename T>
void forward_any(const Problem<T> &p, int64_t begin, int64_t end) {
  const int64_t n = p.heads * p.points, channels = p.heads * p.depth;
  Samples<T> samples(n, p.depth);
  T *zeros = samples.extra();
  for (int64_t d = 0; d < p.depth; ++d) zeros[d] = 0;
  for (int64_t row = begin; row < end; ++row) {
    locate(p, p.locations + row * n * 2, p.weights + row * n, 0, samples);
    const T *image = p.value + row / p.queries * p.tokens * channels;
    for (int64_t head = 0; head < p.heads; ++head) {
      const T *base = image + head * p.depth;
      T *__restrict out = p.output + row * channels + head * p.depth;
      for (int64_t d = 0; d < p.depth; ++d) out[d] = 0;
      for (int64_t i = head * p.points; i < (head + 1) * p.points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const int32_t at = samples.offset[corner * n + i];
          const T *cell = at < 0 ? zeros : base + at;
          const T w = samples.weight[corner * n + i];
          for (int64_t d = 0; d < p.depth; ++d) out[d] += w * cell[d];
        }
      }
    }
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// dots (count, 4): per point, the inner products of the output's gradient with its four cells.
template <typename T>
inline void point_gradients(const Problem<T> &p, const Samples<T> &samples, const T *__restrict dots,
                            const T *__restrict weights, int64_t first_head, T *__restrict grad_locations,
                            T *__restrict grad_weights) {
  const T *__restrict width = p.width + first_head * p.points, *__restrict height = p.height + first_head * p.points;
  const T *__restrict right = samples.right, *__restrict down = samples.down;
  for (int64_t i = 0; i < samples.count; ++i) {
    const T d00 = dots[4 * i], d01 = dots[4 * i + 1], d10 = dots[4 * i + 2], d11 = dots[4 * i + 3];
    const T lx = right[i], ly = down[i], hx = 1 - lx, hy = 1 - ly;
    grad_weights[i] = hy * (hx * d00 + lx * d01) + ly * (hx * d10 + lx * d11);
    grad_locations[2 * i] = weights[i] * width[i] * (hy * (d01 - d00) + ly * (d11 - d10));
    grad_locations[2 * i + 1] = weights[i] * height[i] * (hx * (d10 - d00) + lx * (d11 - d01));
  }
}

// Halve two vectors of partial sums: runs of 2 * Run lanes become runs of Run lanes, those of `a` first.
template <typename V, int Lanes, int Run>
inline V fold(V a, V b) {
  V low, high;
  for (int j = 0; j < Lanes / 2; ++j) {
    const int from = j / Run * 2 * Run + j % Run;
    low[j] = a[from];
    high[j] = a[from + Run];
    low[j + Lanes / 2] = b[from];
    high[j + Lanes / 2] = b[from + Run];
  }
  return low + high;
}

// The sums of the lanes of `Lanes` vectors, as one vector. `partial` is overwritten.
template <typename V, int Lanes, int Run = Lanes / 2>
inline V sums(V *partial) {
  for (int j = 0; j < Run; ++j) partial[j] = fold<V, Lanes, Run>(partial[2 * j], partial[2 * j + 1]);
  if constexpr (Run > 1) {
    return sums<V, Lanes, Run / 2>(partial);
  } else {
    return partial[0];
  }
}

template <typename T, int Bytes, int Count>
void backward_fixed(const Problem<T> &p, int64_t image, int64_t first, int64_t last) {
  using V = typename VectorOf<T, Bytes>::type;
  constexpr int lanes = Bytes / sizeof(T);
  const T zeros[lanes * Count] = {};
  T discarded[lanes * Count];  // gradients of cells outside
  const int64_t all = p.heads * p.points, channels = p.heads * p.depth, n = (last - first) * p.points;
  const int64_t padded = (4 * n + lanes - 1) / lanes * lanes;
  Samples<T> samples(n, padded);
  T *dots = samples.extra();
  T *partial = new T[padded * lanes]();  // what is past 4 n stays zero
  const int32_t *offset = samples.offset;
  const T *weight = samples.weight;
  const T *value = p.value + image * p.tokens * channels;
  T *grad_value = p.grad_value + image * p.tokens * channels;
  for (int64_t row = image * p.queries; row < (image + 1) * p.queries; ++row) {
    const int64_t skip = row * all + first * p.points;
    locate(p, p.locations + 2 * skip, p.weights + skip, first, samples);
    for (int k = 0; k < lanes * Count; ++k) discarded[k] = 0;
    for (int64_t head = first; head < last; ++head) {
      const T *base = value + head * p.depth;
      T *grad_base = grad_value + head * p.depth;
      const T *above = p.grad_output + row * channels + head * p.depth;
      V g[Count];
      for (int k = 0; k < Count; ++k) g[k] = load<V>(above + k * lanes);
      for (int64_t i = (head - first) * p.points; i < (head - first + 1) * p.points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const int32_t at = offset[corner * n + i];
          const T *cell = at < 0 ? zeros : base + at;
          T *to = at < 0 ? discarded : grad_base + at;
          const T w = weight[corner * n + i];
          V sum = g[0] * load<V>(cell);
          store<V>(to, load<V>(to) + w * g[0]);
          for (int k = 1; k < Count; ++k) {
            sum += g[k] * load<V>(cell + k * lanes);
            store<V>(to + k * lanes, load<V>(to + k * lanes) + w * g[k]);
          }
          store<V>(partial + (4 * i + corner) * lanes, sum);
        }
      }
    }
    for (int64_t i = 0; i < padded; i += lanes) {
      V block[lanes];
      for (int j = 0; j < lanes; ++j) block[j] = load<V>(partial + (i + j) * lanes);
      store<V>(dots + i, sums<V, lanes>(block));
    }
    point_gradients(p, samples, dots, p.weights + skip, first, p.grad_locations + 2 * skip, p.grad_weights + skip);
  }
  delete[] partial;
}

template <typename T>
void backward_any(const Problem<T> &p, int64_t image, int64_t first, int64_t last) {
  const int64_t all = p.heads * p.points, channels = p.heads * p.depth, n = (last - first) * p.points;
  Samples<T> samples(n, 4 * n + p.depth);
  T *dots = samples.extra(), *zeros = dots + 4 * n;
  for (int64_t d = 0; d < p.depth; ++d) zeros[d] = 0;
  const T *value = p.value + image * p.tokens * channels;
  T *grad_value = p.grad_value + image * p.tokens * channels;
  for (int64_t row = image * p.queries; row < (image + 1) * p.queries; ++row) {
    const int64_t skip = row * all + first * p.points;
    locate(p, p.locations + 2 * skip, p.weights + skip, first, samples);
    for (int64_t head = first; head < last; ++head) {
      const T *__restrict above = p.grad_output + row * channels + head * p.depth;
      for (int64_t i = (head - first) * p.points; i < (head - first + 1) * p.points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const int32_t at = samples.offset[corner * n + i];
          const T *cell = at < 0 ? zeros : value + head * p.depth + at;
          T dot = 0;
          for (int64_t d = 0; d < p.depth; ++d) dot += above[d] * cell[d];
          dots[4 * i + corner] = dot;
          if (at < 0) continue;
          T *__restrict to = grad_value + head * p.depth + at;
          const T w = samples.weight[corner * n + i];
          for (int64_t d = 0; d < p.depth; ++d) to[d] += w * above[d];
        }
      }
    }
    point_gradients(p, samples, dots, p.weights + skip, first, p.grad_locations + 2 * skip, p.grad_weights + skip);
  }
}

// ---- choice by depth -----------------------------------------------------------------------------------------------

template <typename T, int Bytes, bool Backward, typename... Range>
void by_depth(const Problem<T> &p, Range... range) {
  const int64_t bytes = p.depth * static_cast<int64_t>(sizeof(T));
  if constexpr (Bytes > 16) {
    if (bytes % Bytes != 0) return by_depth<T, Bytes / 2, Backward>(p, range...);
  }
  if constexpr (Backward) {
    if (bytes == Bytes) return backward_fixed<T, Bytes, 1>(p, range...);
    if (bytes == 2 * Bytes) return backward_fixed<T, Bytes, 2>(p, range...);
    if (bytes == 4 * Bytes) return backward_fixed<T, Bytes, 4>(p, range...);
    backward_any(p, range...);
  } else {
    if (bytes == Bytes) return forward_fixed<T, Bytes, 1>(p, range...);
    if (bytes == 2 * Bytes) return forward_fixed<T, Bytes, 2>(p, range...);
    if (bytes == 4 * Bytes) return forward_fixed<T, Bytes, 4>(p, range...);
    forward_any(p, range...);
  }
}

template <typename T>
constexpr Kernels<T> kernels() {
  return {by_depth<T, CODETR_VECTOR_BYTES, false, int64_t, int64_t>,
          by_depth<T, CODETR_VECTOR_BYTES, true, int64_t, int64_t, int64_t>};
}

}  // namespace

#define CODETR_STRING_(x) #x
#define CODETR_STRING(x) CODETR_STRING_(x)
extern const InstructionSet CODETR_SET;
const InstructionSet CODETR_SET = {CODETR_STRING(CODETR_SET), kernels<float>(), kernels<double>()};

}  // namespace codetr
