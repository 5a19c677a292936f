// The CPU kernels, compiled once for every instruction set: the including file defines CODETR_SET (a name) and
// CODETR_VECTOR_BYTES, and is compiled with that set's flags. Nothing of the C++ library is used here: an inline
// function of it, compiled for a newer processor, could be the copy that the linker keeps for all.

#include "problem.h"

namespace codetr {
namespace {

template <typename T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
};

template <typename V, typename T>
inline V load(const T *p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));  // one unaligned load
  return v;
}

template <typename V, typename T>
inline void store(T *p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// The vector V of numbers that are stored as S.
template <typename V, typename S>
inline V widen(const S *p) {
  if constexpr (sizeof(S) == 2) {
    typedef uint16_t Bits __attribute__((vector_size(sizeof(V) / 2)));
    typedef uint32_t Wide __attribute__((vector_size(sizeof(V))));
    const Wide bits = __builtin_convertvector(load<Bits>(&p->bits), Wide);
    if constexpr (__is_same(S, BFloat16)) {
      return reinterpret_cast<V>(bits << 16);
    } else {
      // Exponent and fraction move up 13 bits; the difference of the exponents' biases is a factor, which also makes
      // the smallest numbers right. What was infinite or no number is so again.
      const Wide body = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
      const Wide scaled = reinterpret_cast<Wide>(reinterpret_cast<V>(body) * 0x1p112f);
      const Wide special = reinterpret_cast<Wide>(body >= 0x0f800000u) & 0x7f800000u;
      return reinterpret_cast<V>(scaled | special | sign);
    }
  } else {
    return load<V>(p);
  }
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
inline auto choose(V a, V b, Lanes<J...>) {
  return __builtin_shufflevector(a, b, Choice::from(J)...);
}
template <typename Choice, int N, typename V>
inline auto choose(V a, V b) {
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

template <typename V>
struct Rows {
  V row[4];
};

// a0 b0 c0 d0 a1 b1 ..
template <int N, typename V>
inline Rows<V> interleave(V a, V b, V c, V d) {
  const V ac = choose<Zip<N, 0>, N>(a, c), bd = choose<Zip<N, 0>, N>(b, d);
  const V ac2 = choose<Zip<N, 1>, N>(a, c), bd2 = choose<Zip<N, 1>, N>(b, d);
  return {choose<Zip<N, 0>, N>(ac, bd), choose<Zip<N, 1>, N>(ac, bd), choose<Zip<N, 0>, N>(ac2, bd2),
          choose<Zip<N, 1>, N>(ac2, bd2)};
}

// Where the four cells around each point lie and how much each counts, in the order upper left, upper right, lower
// left, lower right. A cell outside its level is redirected to a row of zeros (for its gradient: to a row that nobody
// reads), which costs less than a branch that goes either way near borders. Its weight may still be NaN, as in the
// formula, when a coordinate is not finite. Addresses are of the part's first head; the next lie `depth` elements on.
template <typename T, typename S>
struct Samples {
  static constexpr int lanes = CODETR_VECTOR_BYTES / sizeof(T);
  int64_t count, padded, channels;
  uint64_t image = 0, grad_image = 0;  // where the image's value and gradient begin
  uint64_t *cell, *grad_cell;          // (count, 4)
  T *weight;                           // (count, 4), attention weight included
  T *right, *down;                     // (count): the share of the right and of the lower cells
  T *zeros, *discarded;                // (channels), the former read as S
  T *memory;

  Samples(int64_t n, int64_t channels, int64_t extra)
      : count(n), padded((n + lanes - 1) / lanes * lanes), channels(channels) {
    memory = new T[6 * padded + 2 * channels + extra];
    cell = new uint64_t[8 * padded];
    grad_cell = cell + 4 * padded;
    weight = memory;
    right = weight + 4 * padded;
    down = right + padded;
    zeros = down + padded;
    discarded = zeros + channels;
    for (int64_t c = 0; c < 2 * channels; ++c) zeros[c] = 0;
  }
  ~Samples() {
    delete[] memory;
    delete[] cell;
  }
  Samples(const Samples &) = delete;
  Samples &operator=(const Samples &) = delete;
  T *extra() { return discarded + channels; }
};

template <typename T>
inline uint64_t address(const T *p) {
  return reinterpret_cast<uint64_t>(p);
}

template <typename T>
inline T *at(uint64_t address) {
  return reinterpret_cast<T *>(address);
}

using Addresses = typename VectorOf<uint64_t, CODETR_VECTOR_BYTES>::type;
using Offsets = typename VectorOf<int64_t, CODETR_VECTOR_BYTES>::type;

// From offsets in elements, negative for cells outside, to addresses.
template <bool Backward, typename T, typename S>
inline void store_addresses(Samples<T, S> &samples, int64_t i, Offsets offset) {
  const Offsets outside = offset < 0;
  const Addresses elements = reinterpret_cast<Addresses>(offset), none = {};
  const Addresses inside = samples.image + elements * sizeof(S);
  store<Addresses>(samples.cell + i, outside ? none + address(samples.zeros) : inside);
  if constexpr (Backward) {
    const Addresses inside_grad = samples.grad_image + elements * sizeof(T);
    store<Addresses>(samples.grad_cell + i, outside ? none + address(samples.discarded) : inside_grad);
  }
}

template <bool Backward, typename T, typename S, typename W>
inline void store_cells(Samples<T, S> &samples, int64_t i, W offsets) {
  constexpr int N = Samples<T, S>::lanes;
  if constexpr (sizeof(T) == 8) {
    store_addresses<Backward>(samples, i, offsets);
  } else {  // to 64 bits: each beside its sign
    const W sign = offsets >> 31;
    store_addresses<Backward>(samples, i, reinterpret_cast<Offsets>(choose<Zip<N, 0>, N>(offsets, sign)));
    store_addresses<Backward>(samples, i + N / 2, reinterpret_cast<Offsets>(choose<Zip<N, 1>, N>(offsets, sign)));
  }
}

// One vector of points, beginning with the i-th of the part.
template <bool Backward, typename T, typename S>
inline void locate_block(const Problem<T> &p, const Part<T> &part, const T *locations, const T *weights, int64_t i,
                         Samples<T, S> &samples) {
  constexpr int N = Samples<T, S>::lanes;
  using I = typename IntegerOf<T>::type;
  using V = typename VectorOf<T, CODETR_VECTOR_BYTES>::type;
  using W = typename VectorOf<I, CODETR_VECTOR_BYTES>::type;
  const int64_t j = part.first_point + i;
  const V width = load<V>(p.width + j), height = load<V>(p.height + j);
  const W columns = load<W>(p.columns + j), rows = load<W>(p.rows + j), start = load<W>(p.start + j);
  const I step = static_cast<I>(part.step);
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
  // All bits set is negative.
  const W c00 = cell | ~(left & upper), c01 = (cell + step) | ~(over & upper);
  const W c10 = below | ~(left & lower), c11 = (below + step) | ~(over & lower);
  const Rows<W> cells = interleave<N>(c00, c01, c10, c11);
  for (int k = 0; k < 4; ++k) store_cells<Backward>(samples, 4 * i + k * N, cells.row[k]);
  const V a = load<V>(weights), hx = 1 - lx, hy = a * (1 - ly), my = a * ly;
  const Rows<V> shares = interleave<N>(hy * hx, hy * lx, my * hx, my * lx);
  for (int k = 0; k < 4; ++k) store<V>(samples.weight + 4 * i + k * N, shares.row[k]);
  store<V>(samples.right + i, lx);
  store<V>(samples.down + i, ly);
}

// How many queries ahead memory is asked for: with one head at a time, the processor does not guess where it goes on.
constexpr int64_t ahead = 8;

template <typename T>
inline void prefetch(const T *p, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + i);
}

// The points of the part of one query.
template <bool Backward, typename T, typename S>
inline void locate(const Problem<T> &p, const Part<T> &part, const T *locations, const T *weights,
                   Samples<T, S> &samples) {
  constexpr int N = Samples<T, S>::lanes;
  int64_t i = 0;
  for (; i + N <= samples.count; i += N) locate_block<Backward>(p, part, locations + 2 * i, weights + i, i, samples);
  if (i == samples.count) return;
  if (i > 0) {  // the last ones together with some that are done already
    i = samples.count - N;
    return locate_block<Backward>(p, part, locations + 2 * i, weights + i, i, samples);
  }
  T rest[2 * N] = {}, rest_weights[N] = {};
  for (int64_t j = i; j < samples.count; ++j) {
    rest[2 * (j - i)] = locations[2 * j];
    rest[2 * (j - i) + 1] = locations[2 * j + 1];
    rest_weights[j - i] = weights[j];
  }
  locate_block<Backward>(p, part, rest, rest_weights, i, samples);
}

// Walks through the queries of a part and finds their points.
template <typename T, typename S, bool Backward>
struct Walk {
  const Problem<T> &p;
  const Part<T> &part;
  const int64_t heads, points;  // of the part
  Samples<T, S> samples;

  Walk(const Problem<T> &p, const Part<T> &part, int64_t extra = 0)
      : p(p), part(part), heads(part.last_head - part.first_head), points(part.last_point - part.first_point),
        samples(heads * points, heads * p.depth, extra) {
    samples.image = address(part.value);
    if constexpr (Backward) samples.grad_image = address(part.grad_value);
  }

  // The index of the query's first point among all points of the problem.
  int64_t to(int64_t query) {
    const int64_t all = p.heads * p.points;
    const int64_t first = (part.image * p.queries + query) * all + part.first_head * p.points + part.first_point;
    const int64_t count = samples.count;
    prefetch(p.locations + 2 * (first + ahead * all), 2 * count);
    prefetch(p.weights + first + ahead * all, count);
    if constexpr (Backward) prefetch(part.grad_output + (query - part.first_query + ahead) * part.row, heads * p.depth);
    locate<Backward>(p, part, p.locations + 2 * first, p.weights + first, samples);
    return first;
  }
};

// ---- forward -------------------------------------------------------------------------------------------------------

template <typename T, int Depth>
struct Widest {
  static constexpr int bytes = Depth * sizeof(T) < CODETR_VECTOR_BYTES ? Depth * sizeof(T) : CODETR_VECTOR_BYTES;
  static constexpr int lanes = bytes / sizeof(T), count = Depth / lanes;
  using V = typename VectorOf<T, bytes>::type;
};

template <typename T, typename S, int Depth>
void forward_fixed(const Problem<T> &p, const Part<T> &part) {
  using V = typename Widest<T, Depth>::V;
  constexpr int lanes = Widest<T, Depth>::lanes, count = Widest<T, Depth>::count;
  constexpr int sets = count >= 8 ? 1 : count >= 4 ? 2 : 4;  // of sums that do not wait for each other; 16 registers
  Walk<T, S, false> walk(p, part);
  for (int64_t query = part.first_query; query < part.last_query; ++query) {
    walk.to(query);
    const uint64_t *cell = walk.samples.cell;
    const T *weight = walk.samples.weight;
    T *out = part.output + (query - part.first_query) * part.row;
    uint64_t shift = 0;
    for (int64_t head = 0; head < walk.heads; ++head, shift += Depth * sizeof(S), out += Depth) {
      V sum[sets][count] = {};
      for (int64_t i = 0; i < walk.points; ++i, cell += 4, weight += 4) {
        for (int corner = 0; corner < 4; ++corner) {
          const S *from = at<S>(cell[corner] + shift);
          for (int k = 0; k < count; ++k) sum[corner % sets][k] += weight[corner] * widen<V>(from + k * lanes);
        }
      }
      for (int k = 0; k < count; ++k) {
        V total = sum[0][k];
        for (int j = 1; j < sets; ++j) total += sum[j][k];
        store<V>(out + k * lanes, total);
      }
    }
  }
}

template <typename T>
void forward_any(const Problem<T> &p, const Part<T> &part) {
  Walk<T, T, false> walk(p, part);
  for (int64_t query = part.first_query; query < part.last_query; ++query) {
    walk.to(query);
    for (int64_t head = 0; head < walk.heads; ++head) {
      T *__restrict out = part.output + (query - part.first_query) * part.row + head * p.depth;
      for (int64_t d = 0; d < p.depth; ++d) out[d] = 0;
      for (int64_t i = 4 * head * walk.points; i < 4 * (head + 1) * walk.points; ++i) {
        const T *from = at<T>(walk.samples.cell[i]) + head * p.depth;
        const T w = walk.samples.weight[i];
        for (int64_t d = 0; d < p.depth; ++d) out[d] += w * from[d];
      }
    }
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// dots (count, 4): per point, the inner products of the output's gradient with its four cells.
template <typename T, typename S>
inline void point_gradients(const Walk<T, S, true> &walk, const T *__restrict dots, int64_t first) {
  const Problem<T> &p = walk.p;
  const T *__restrict width = p.width + walk.part.first_point, *__restrict height = p.height + walk.part.first_point;
  const T *__restrict right = walk.samples.right, *__restrict down = walk.samples.down;
  const T *__restrict weights = p.weights + first;
  T *__restrict grad_locations = p.grad_locations + 2 * first, *__restrict grad_weights = p.grad_weights + first;
  for (int64_t i = 0; i < walk.samples.count; ++i) {
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

template <typename T, typename S, int Depth>
void backward_fixed(const Problem<T> &p, const Part<T> &part) {
  using V = typename Widest<T, Depth>::V;
  constexpr int lanes = Widest<T, Depth>::lanes, count = Widest<T, Depth>::count;
  const int64_t corners = 4 * (part.last_head - part.first_head) * (part.last_point - part.first_point);
  const int64_t padded = (corners + lanes - 1) / lanes * lanes;
  Walk<T, S, true> walk(p, part, padded);
  T *dots = walk.samples.extra();
  T *partials = new T[padded * lanes]();  // what is past the last corner stays zero
  for (int64_t query = part.first_query; query < part.last_query; ++query) {
    const int64_t first = walk.to(query);
    const uint64_t *cell = walk.samples.cell, *grad_cell = walk.samples.grad_cell;
    const T *weight = walk.samples.weight, *above = part.grad_output + (query - part.first_query) * part.row;
    T *partial = partials;
    for (int64_t head = 0; head < walk.heads; ++head, above += Depth) {
      const uint64_t shift = head * Depth * sizeof(S), grad_shift = head * Depth * sizeof(T);
      V g[count];
      for (int k = 0; k < count; ++k) g[k] = load<V>(above + k * lanes);
      for (int64_t i = 0; i < 4 * walk.points; ++i, partial += lanes) {
        const S *from = at<S>(*cell++ + shift);
        T *to = at<T>(*grad_cell++ + grad_shift);
        const T w = *weight++;
        V sum = g[0] * widen<V>(from);
        store<V>(to, load<V>(to) + w * g[0]);
        for (int k = 1; k < count; ++k) {
          sum += g[k] * widen<V>(from + k * lanes);
          store<V>(to + k * lanes, load<V>(to + k * lanes) + w * g[k]);
        }
        store<V>(partial, sum);
      }
    }
    for (int64_t i = 0; i < padded; i += lanes) {
      V block[lanes];
      for (int j = 0; j < lanes; ++j) block[j] = load<V>(partials + (i + j) * lanes);
      store<V>(dots + i, sums<V, lanes>(block));
    }
    point_gradients(walk, dots, first);
  }
  delete[] partials;
}

template <typename T>
void backward_any(const Problem<T> &p, const Part<T> &part) {
  const int64_t corners = 4 * (part.last_head - part.first_head) * (part.last_point - part.first_point);
  Walk<T, T, true> walk(p, part, corners);
  T *dots = walk.samples.extra();
  for (int64_t query = part.first_query; query < part.last_query; ++query) {
    const int64_t first = walk.to(query);
    for (int64_t head = 0; head < walk.heads; ++head) {
      const T *__restrict above = part.grad_output + (query - part.first_query) * part.row + head * p.depth;
      for (int64_t i = 4 * head * walk.points; i < 4 * (head + 1) * walk.points; ++i) {
        const T *__restrict from = at<T>(walk.samples.cell[i]) + head * p.depth;
        T *__restrict to = at<T>(walk.samples.grad_cell[i]) + head * p.depth;
        const T w = walk.samples.weight[i];
        T dot = 0;
        for (int64_t d = 0; d < p.depth; ++d) {
          dot += above[d] * from[d];
          to[d] += w * above[d];
        }
        dots[i] = dot;
      }
    }
    point_gradients(walk, dots, first);
  }
}

// ---- choice by depth -----------------------------------------------------------------------------------------------

// 16-bit values come with these three depths only.
template <typename T, typename S>
void forward(const Problem<T> &p, const Part<T> &part) {
  if (p.depth == 16) return forward_fixed<T, S, 16>(p, part);
  if (p.depth == 32) return forward_fixed<T, S, 32>(p, part);
  if (p.depth == 64) return forward_fixed<T, S, 64>(p, part);
  if constexpr (sizeof(S) == sizeof(T)) forward_any<T>(p, part);
}

template <typename T, typename S>
void backward(const Problem<T> &p, const Part<T> &part) {
  if (p.depth == 16) return backward_fixed<T, S, 16>(p, part);
  if (p.depth == 32) return backward_fixed<T, S, 32>(p, part);
  if (p.depth == 64) return backward_fixed<T, S, 64>(p, part);
  if constexpr (sizeof(S) == sizeof(T)) backward_any<T>(p, part);
}

}  // namespace

#define CODETR_STRING_(x) #x
#define CODETR_STRING(x) CODETR_STRING_(x)
extern const InstructionSet CODETR_SET;
const InstructionSet CODETR_SET = {
    CODETR_STRING(CODETR_SET),
    {forward<float, float>, backward<float, float>},
    {forward<float, BFloat16>, backward<float, BFloat16>},
    {forward<float, Half>, backward<float, Half>},
    {forward_any<double>, backward_any<double>},  // for checks of gradients, not for speed
};

}  // namespace codetr
