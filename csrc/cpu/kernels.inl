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

// Lanes of two vectors, chosen by a function of the result's lane.
template <int... J>
struct Lanes {};
template <int N, int... J>
struct FirstLanes : FirstLanes<N - 1, N - 1, J...> {};
template <int... J>
struct FirstLanes<0, J...> {
  using type = Lanes<J...>;
};
template <typename Choice, typename V, int... J>
inline V choose(V a, V b, Lanes<J...>) {
  return __builtin_shufflevector(a, b, Choice::from(J)...);
}
template <typename Choice, int N, typename V>
inline V choose(V a, V b) {
  return choose<Choice>(a, b, typename FirstLanes<N>::type{});
}

template <int Offset>
struct EverySecond {
  static constexpr int from(int j) { return 2 * j + Offset; }
};

// a0 b0 a1 b1 .. of the lower or the upper halves
template <int N, int Half>
struct Zip {
  static constexpr int from(int j) { return j / 2 + j % 2 * N + Half * (N / 2); }
};

template <int N, typename V, typename T>
inline void store_interleaved(T *to, V a, V b, V c, V d) {
  const V ac = choose<Zip<N, 0>, N>(a, c), bd = choose<Zip<N, 0>, N>(b, d);
  const V ac2 = choose<Zip<N, 1>, N>(a, c), bd2 = choose<Zip<N, 1>, N>(b, d);
  store<V>(to, choose<Zip<N, 0>, N>(ac, bd));
  store<V>(to + N, choose<Zip<N, 1>, N>(ac, bd));
  store<V>(to + 2 * N, choose<Zip<N, 0>, N>(ac2, bd2));
  store<V>(to + 3 * N, choose<Zip<N, 1>, N>(ac2, bd2));
}

// Where the four cells around each point lie and how much each counts, in the order upper left, upper right, lower
// left, lower right. A cell outside its level has a negative offset and is read as zeros: its weight may still be NaN,
// as in the formula, when a coordinate is not finite.
template <typename T>
struct Samples {
  using I = typename IntegerOf<T>::type;
  static constexpr int lanes = CODETR_VECTOR_BYTES / sizeof(T);
  int64_t count, padded;
  I *offset;        // (count, 4), in elements of one image's value
  T *weight;        // (count, 4), attention weight included
  T *right, *down;  // (count): the share of the right and of the lower cells
  T *memory;

  Samples(int64_t n, int64_t extra) : count(n), padded((n + lanes - 1) / lanes * lanes) {
    memory = new T[6 * padded + extra];
    offset = new I[4 * padded];
    weight = memory;
    right = memory + 4 * padded;
    down = right + padded;
  }
  ~Samples() {
    delete[] memory;
    delete[] offset;
  }
  Samples(const Samples &) = delete;
  Samples &operator=(const Samples &) = delete;
  T *extra() { return memory + 6 * padded; }
};

// One vector of points, beginning with the i-th.
template <typename T>
inline void locate_block(const Problem<T> &p, const T *locations, const T *weights, int64_t i, Samples<T> &samples) {
  constexpr int N = Samples<T>::lanes;
  using I = typename Samples<T>::I;
  using V = typename VectorOf<T, CODETR_VECTOR_BYTES>::type;
  using W = typename VectorOf<I, CODETR_VECTOR_BYTES>::type;
  const V width = load<V>(p.width + i), height = load<V>(p.height + i);
  const W columns = load<W>(p.columns + i), rows = load<W>(p.rows + i), start = load<W>(p.start + i);
  const I step = static_cast<I>(p.heads * p.depth);
  const V first = load<V>(locations), second = load<V>(locations + N);
  const V x = choose<EverySecond<0>, N>(first, second) * width - T(0.5);
  const V y = choose<EverySecond<1>, N>(first, second) * height - T(0.5);
  const W inside = (x >= T(-1)) & (x < width) & (y >= T(-1)) & (y < height);
  const V zero = {}, xs = inside ? x : zero, ys = inside ? y : zero;
  W column = __builtin_convertvector(xs, W), row = __builtin_convertvector(ys, W);
  column += __builtin_convertvector(column, V) > xs;  // a true comparison is -1: towards minus infinity
  row += __builtin_convertvector(row, V) > ys;
  const V lx = inside ? xs - __builtin_convertvector(column, V) : x - x;  // outside: 0, NaN when x is not finite
  const V ly = inside ? ys - __builtin_convertvector(row, V) : y - y;
  const W left = inside & (column >= 0), over = inside & (column + 1 < columns);
  const W upper = row >= 0, lower = row + 1 < rows;
  const W cell = (start + row * columns + column) * step, below = cell + columns * step;
  // All bits set is negative; no offset needs the sign bit.
  store_interleaved<N>(samples.offset + 4 * i, cell | ~(left & upper), (cell + step) | ~(over & upper),
                       below | ~(left & lower), (below + step) | ~(over & lower));
  const V a = load<V>(weights), hx = 1 - lx, hy = a * (1 - ly), my = a * ly;
  store_interleaved<N>(samples.weight + 4 * i, hy * hx, hy * lx, my * hx, my * lx);
  store<V>(samples.right + i, lx);
  store<V>(samples.down + i, ly);
}

// The points of consecutive heads of one query.
template <typename T>
inline void locate(const Problem<T> &p, const T *locations, const T *weights, Samples<T> &samples) {
  constexpr int N = Samples<T>::lanes;
  int64_t i = 0;
  for (; i + N <= samples.count; i += N) locate_block(p, locations + 2 * i, weights + i, i, samples);
  if (i == samples.count) return;
  T rest[2 * N] = {}, rest_weights[N] = {};
  for (int64_t j = i; j < samples.count; ++j) {
    rest[2 * (j - i)] = locations[2 * j];
    rest[2 * (j - i) + 1] = locations[2 * j + 1];
    rest_weights[j - i] = weights[j];
  }
  locate_block(p, rest, rest_weights, i, samples);
}

// ---- forward -------------------------------------------------------------------------------------------------------

template <typename T, int Bytes, int Count>
void forward_fixed(const Problem<T> &p, int64_t begin, int64_t end) {
  using V = typename VectorOf<T, Bytes>::type;
  constexpr int lanes = Bytes / sizeof(T);
  const T zeros[lanes * Count] = {};
  const int64_t n = p.heads * p.points, channels = p.heads * p.depth;
  Samples<T> samples(n, 0);
  const auto *offset = samples.offset;
  const T *weight = samples.weight;
  for (int64_t row = begin; row < end; ++row) {
    locate(p, p.locations + row * n * 2, p.weights + row * n, samples);
    const T *image = p.value + row / p.queries * p.tokens * channels;
    for (int64_t head = 0; head < p.heads; ++head) {
      const T *base = image + head * p.depth;
      V sum[4][Count] = {};  // one per corner: additions that do not wait for each other
      for (int64_t i = 4 * head * p.points; i < 4 * (head + 1) * p.points; i += 4) {
        for (int corner = 0; corner < 4; ++corner) {
          const int64_t at = offset[i + corner];
          const T *cell = at < 0 ? zeros : base + at;
          const T w = weight[i + corner];
          for (int k = 0; k < Count; ++k) sum[corner][k] += w * load<V>(cell + k * lanes);
        }
      }
      T *out = p.output + row * channels + head * p.depth;
      for (int k = 0; k < Count; ++k)
        store<V>(out + k * lanes, (sum[0][k] + sum[1][k]) + (sum[2][k] + sum[3][k]));
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
    locate(p, p.locations + row * n * 2, p.weights + row * n, samples);
    const T *image = p.value + row / p.queries * p.tokens * channels;
    for (int64_t head = 0; head < p.heads; ++head) {
      const T *base = image + head * p.depth;
      T *__restrict out = p.output + row * channels + head * p.depth;
      for (int64_t d = 0; d < p.depth; ++d) out[d] = 0;
      for (int64_t i = head * p.points; i < (head + 1) * p.points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const int64_t at = samples.offset[4 * i + corner];
          const T *cell = at < 0 ? zeros : base + at;
          const T w = samples.weight[4 * i + corner];
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
                            const T *__restrict weights, T *__restrict grad_locations, T *__restrict grad_weights) {
  const T *__restrict width = p.width, *__restrict height = p.height;
  const T *__restrict right = samples.right, *__restrict down = samples.down;
  for (int64_t i = 0; i < samples.count; ++i) {
    const T d00 = dots[4 * i], d01 = dots[4 * i + 1], d10 = dots[4 * i + 2], d11 = dots[4 * i + 3];
    const T lx = right[i], ly = down[i], hx = 1 - lx, hy = 1 - ly;
    grad_weights[i] = hy * (hx * d00 + lx * d01) + ly * (hx * d10 + lx * d11);
    grad_locations[2 * i] = weights[i] * width[i] * (hy * (d01 - d00) + ly * (d11 - d10));
    grad_locations[2 * i + 1] = weights[i] * height[i] * (hx * (d10 - d00) + lx * (d11 - d01));
  }
}

// Runs of 2 * Run lanes, those of the second vector after those of the first, to their halves.
template <int N, int Run, int Half>
struct HalfRuns {
  static constexpr int from(int j) { return j / Run * 2 * Run + j % Run + Half * Run; }
};

// The sums of the lanes of N vectors, as one vector. `partial` is overwritten.
template <typename V, int N, int Run = N / 2>
inline V sums(V *partial) {
  for (int j = 0; j < Run; ++j) {
    const V a = partial[2 * j], b = partial[2 * j + 1];
    partial[j] = choose<HalfRuns<N, Run, 0>, N>(a, b) + choose<HalfRuns<N, Run, 1>, N>(a, b);
  }
  if constexpr (Run > 1) {
    return sums<V, N, Run / 2>(partial);
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
  const auto *offset = samples.offset;
  const T *weight = samples.weight;
  const T *value = p.value + image * p.tokens * channels;
  T *grad_value = p.grad_value + image * p.tokens * channels;
  for (int64_t row = image * p.queries; row < (image + 1) * p.queries; ++row) {
    const int64_t skip = row * all + first * p.points;
    locate(p, p.locations + 2 * skip, p.weights + skip, samples);
    for (int k = 0; k < lanes * Count; ++k) discarded[k] = 0;
    for (int64_t head = first; head < last; ++head) {
      const T *base = value + head * p.depth;
      T *grad_base = grad_value + head * p.depth;
      const T *above = p.grad_output + row * channels + head * p.depth;
      V g[Count];
      for (int k = 0; k < Count; ++k) g[k] = load<V>(above + k * lanes);
      for (int64_t i = (head - first) * p.points; i < (head - first + 1) * p.points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const int64_t at = offset[4 * i + corner];
          const T *cell = at < 0 ? zeros : base + at;
          T *to = at < 0 ? discarded : grad_base + at;
          const T w = weight[4 * i + corner];
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
    point_gradients(p, samples, dots, p.weights + skip, p.grad_locations + 2 * skip, p.grad_weights + skip);
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
    locate(p, p.locations + 2 * skip, p.weights + skip, samples);
    for (int64_t head = first; head < last; ++head) {
      const T *__restrict above = p.grad_output + row * channels + head * p.depth;
      for (int64_t i = (head - first) * p.points; i < (head - first + 1) * p.points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const int64_t at = samples.offset[4 * i + corner];
          const T *cell = at < 0 ? zeros : value + head * p.depth + at;
          T dot = 0;
          for (int64_t d = 0; d < p.depth; ++d) dot += above[d] * cell[d];
          dots[4 * i + corner] = dot;
          if (at < 0) continue;
          T *__restrict to = grad_value + head * p.depth + at;
          const T w = samples.weight[4 * i + corner];
          for (int64_t d = 0; d < p.depth; ++d) to[d] += w * above[d];
        }
      }
    }
    point_gradients(p, samples, dots, p.weights + skip, p.grad_locations + 2 * skip, p.grad_weights + skip);
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
