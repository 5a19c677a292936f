// The GPU kernels. Tests compile this very file for the host and run its threads in turn (tests/ops/emulator.h), so it
// uses few of CUDA's own functions: barriers, exchanges within a warp, atomic sums.
//
// A block takes one head of one image and a run of neighbouring queries, whose samples overlap and so stay in the L1
// cache. A tile is as many queries as the block has groups; a group of threads takes a query, each thread 16 bytes of
// its channels. What is the same for all channels (where a point lies, how much its four cells count) is computed once
// per point by all threads together and kept in shared memory.
#pragma once

#include <cmath>

#include "numbers.cuh"

namespace codetr {
namespace cuda {

constexpr int threads = 256;
constexpr int most_levels = 64;

struct Geometry {
  int64_t batch, tokens, queries;
  int heads, depth, levels, per_level, points;  // points = levels * per_level, of one query and head
  int rows[most_levels], columns[most_levels], start[most_levels];
};

struct Inputs {
  const float *locations;  // (batch, queries, heads, points, 2)
  const float *weights;    // (batch, queries, heads, points)
};

// How the threads of a block share the work. Depth 0 stands for any multiple of four: 32 channels at a time.
template <typename S, int Depth>
struct Layout {
  static constexpr int per_thread = Depth == 0 ? 4 : 16 / sizeof(S);
  static constexpr int lanes = Depth == 0 ? 8 : Depth / per_thread;
  static constexpr int groups = threads / lanes;     // queries of a tile
  static constexpr int at_once = lanes * per_thread;  // channels
  static constexpr int capacity = 768;                // points in shared memory
  static_assert(lanes >= 2 && lanes <= 32 && (lanes & (lanes - 1)) == 0);
};

// Points of a query that are taken at once: as few rounds as the room allows, all of about one length.
template <typename L>
__host__ __device__ __forceinline__ int points_at_once(int points) {
  const int most = L::capacity / L::groups, rounds = (points + most - 1) / most;
  return rounds > 1 ? (points + rounds - 1) / rounds : points;
}

// One point: the share of its right and its lower cells, its upper left cell, which of the four cells are inside.
struct Place {
  float right, down;
  int row, column;
  bool inside;
};

__device__ __forceinline__ Place place(float x, float y, int rows, int columns) {
  const float across = fmaf(x, static_cast<float>(columns), -0.5f), along = fmaf(y, static_cast<float>(rows), -0.5f);
  Place p;
  p.inside = across >= -1.0f && across < static_cast<float>(columns) && along >= -1.0f && along < static_cast<float>(rows);
  p.column = p.inside ? static_cast<int>(floorf(across)) : 0;
  p.row = p.inside ? static_cast<int>(floorf(along)) : 0;
  p.right = p.inside ? across - static_cast<float>(p.column) : across - across;  // outside: 0, NaN if not finite
  p.down = p.inside ? along - static_cast<float>(p.row) : along - along;
  return p;
}

// The four cells of a point, upper left, upper right, lower left, lower right: elements from the image's first number
// of this head, -1 outside the level; and their weights, attention included.
struct alignas(16) Cells {
  int offset[4];
};
struct alignas(16) Shares {
  float weight[4];
};

__device__ __forceinline__ void locate(const Geometry &g, const Inputs &in, int64_t point, int level, Cells &cells,
                                       Shares &shares) {
  const Pack<float, 2> at = load<2>(in.locations + 2 * point);
  const float attention = in.weights[point];
  const int rows = g.rows[level], columns = g.columns[level], step = g.heads * g.depth;
  const Place p = place(at.number[0], at.number[1], rows, columns);
  const bool left = p.inside && p.column >= 0, over = p.inside && p.column + 1 < columns;
  const bool upper = p.row >= 0, lower = p.row + 1 < rows;
  const int first = (g.start[level] + p.row * columns + p.column) * step, below = first + columns * step;
  cells.offset[0] = left && upper ? first : -1;
  cells.offset[1] = over && upper ? first + step : -1;
  cells.offset[2] = left && lower ? below : -1;
  cells.offset[3] = over && lower ? below + step : -1;
  const float hx = 1 - p.right, hy = attention * (1 - p.down), my = attention * p.down;
  shares.weight[0] = hy * hx;
  shares.weight[1] = hy * p.right;
  shares.weight[2] = my * hx;
  shares.weight[3] = my * p.right;
}

// The gradients of a point's location and weight from the inner products of the output's gradient with its four cells.
__device__ __forceinline__ void point_gradient(const Geometry &g, const Inputs &in, int64_t point, int level,
                                               const float *dot, float *grad_locations, float *grad_weights) {
  const Pack<float, 2> at = load<2>(in.locations + 2 * point);
  const float attention = in.weights[point];
  const Place p = place(at.number[0], at.number[1], g.rows[level], g.columns[level]);
  const float lx = p.right, ly = p.down, hx = 1 - lx, hy = 1 - ly;
  grad_weights[point] = hy * (hx * dot[0] + lx * dot[1]) + ly * (hx * dot[2] + lx * dot[3]);
  Pack<float, 2> grad;
  grad.number[0] = attention * static_cast<float>(g.columns[level]) * (hy * (dot[1] - dot[0]) + ly * (dot[3] - dot[2]));
  grad.number[1] = attention * static_cast<float>(g.rows[level]) * (hx * (dot[2] - dot[0]) + lx * (dot[3] - dot[1]));
  store(grad_locations + 2 * point, grad);
}

// Calls work(entry, point, level) for each point of a round, entries shared out among the block's threads.
template <typename Work>
__device__ __forceinline__ void for_points(const Geometry &g, int64_t image, int head, int64_t first_query, int groups,
                                           int first_point, int count, const Work &work) {
  for (int entry = threadIdx.x; entry < groups * count; entry += threads) {
    const int64_t query = first_query + entry / count;
    const int point = first_point + entry % count;
    if (query < g.queries)
      work(entry, ((image * g.queries + query) * g.heads + head) * g.points + point, point / g.per_level);
  }
}

// ---- forward -------------------------------------------------------------------------------------------------------

template <typename S, int Depth>
__global__ void __launch_bounds__(threads, 4)
    forward_kernel(Geometry g, Inputs in, const S *__restrict__ value, S *__restrict__ output, int tiles) {
  using L = Layout<S, Depth>;
  __shared__ Cells cells[L::capacity];
  __shared__ Shares shares[L::capacity];
  const int head = blockIdx.y, group = threadIdx.x / L::lanes, lane = threadIdx.x % L::lanes;
  const int64_t row = int64_t{g.heads} * g.depth;
  const int together = points_at_once<L>(g.points);
  for (int64_t image = blockIdx.z; image < g.batch; image += gridDim.z) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int64_t first_query = (int64_t{blockIdx.x} * tiles + tile) * L::groups, query = first_query + group;
      for (int channels = 0; channels < g.depth; channels += L::at_once) {
        const int channel = channels + lane * L::per_thread;
        const bool active = query < g.queries && (Depth != 0 || channel < g.depth);
        const S *const from = value + image * g.tokens * row + head * g.depth + channel;
        float sum[L::per_thread] = {};
        for (int first = 0; first < g.points; first += together) {
          const int count = min(together, g.points - first);
          __syncthreads();  // the round before has been read
          for_points(g, image, head, first_query, L::groups, first, count, [&](int entry, int64_t point, int level) {
            locate(g, in, point, level, cells[entry], shares[entry]);
          });
          __syncthreads();
          if (!active) continue;
#pragma unroll 2
          for (int i = group * count; i < (group + 1) * count; ++i) {
            const Cells cell = cells[i];
            const Shares share = shares[i];
            Pack<S, L::per_thread> corner[4] = {};
#pragma unroll
            for (int k = 0; k < 4; ++k)
              if (cell.offset[k] >= 0) corner[k] = load<L::per_thread>(from + cell.offset[k]);
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
              for (int c = 0; c < L::per_thread; ++c) sum[c] += share.weight[k] * widen(corner[k].number[c]);
          }
        }
        if (!active) continue;
        Pack<S, L::per_thread> result;
#pragma unroll
        for (int c = 0; c < L::per_thread; ++c) narrow(sum[c], result.number[c]);
        store(output + (image * g.queries + query) * row + head * g.depth + channel, result);
      }
    }
  }
}

// ---- backward ------------------------------------------------------------------------------------------------------

// Sums of four numbers over the 2, 4, 8, 16 or 32 threads of a group. Each exchange also halves what a thread goes on
// with. Afterwards thread `lane` holds the sum number 2 * (lane & 1) + (lane >> 1 & 1) in part[0]; with two threads,
// the sums number 2 * lane and 2 * lane + 1 in part[0] and part[1].
template <int Lanes>
__device__ __forceinline__ void sum_over_group(float (&part)[4], int lane) {
  const bool odd = lane & 1;
  const float give0 = odd ? part[0] : part[2], give1 = odd ? part[1] : part[3];
  part[0] = (odd ? part[2] : part[0]) + __shfl_xor_sync(0xffffffffu, give0, 1);
  part[1] = (odd ? part[3] : part[1]) + __shfl_xor_sync(0xffffffffu, give1, 1);
  if constexpr (Lanes > 2) {
    const bool second = lane & 2;
    const float give = second ? part[0] : part[1];
    part[0] = (second ? part[1] : part[0]) + __shfl_xor_sync(0xffffffffu, give, 2);
#pragma unroll
    for (int apart = 4; apart < Lanes; apart *= 2) part[0] += __shfl_xor_sync(0xffffffffu, part[0], apart);
  }
}

// Where gradients of values are summed. `AnyOrder`: float32, added as threads come by, so the last bits differ from run
// to run.
struct AnyOrder {
  float *sum;

  __device__ __forceinline__ void prepare() {}

  template <int Count>
  __device__ __forceinline__ void add(int64_t at, float weight, const float (&g)[Count]) const {
#pragma unroll
    for (int c = 0; c < Count; c += 4)
      add_four(sum + at + c, weight * g[c], weight * g[c + 1], weight * g[c + 2], weight * g[c + 3]);
  }
};

// The largest magnitudes of the finite numbers among the output's gradients and the weights, as bits.
struct Largest {
  uint32_t gradient, weight;
};

// The power of two by which numbers are multiplied before they are rounded to integers, such that `terms` of them, none
// larger than the product of the largest, stay below 2^62.
__host__ __device__ __forceinline__ int fixed_point_shift(Largest largest, int64_t terms) {
  int bits = 0;
  while (int64_t{1} << bits < terms) ++bits;
  const int gradient = static_cast<int>(largest.gradient >> 23) - 126, weight = static_cast<int>(largest.weight >> 23) - 126;
  const int shift = 61 - bits - gradient - weight;
  return shift > 126 ? 126 : shift < -126 ? -126 : shift;
}

// `SameEveryTime`: integers, whose sum does not depend on the order. They resolve 2^-40 of the largest term or better.
// What is not finite is added to `special`, where any order gives the same.
struct SameEveryTime {
  unsigned long long *sum;
  float *special;
  const Largest *largest;
  int64_t terms;
  float scale;

  __device__ __forceinline__ void prepare() {
    scale = from_bits(static_cast<uint32_t>(127 + fixed_point_shift(*largest, terms)) << 23);
  }

  template <int Count>
  __device__ __forceinline__ void add(int64_t at, float weight, const float (&g)[Count]) const {
#pragma unroll
    for (int c = 0; c < Count; ++c) {
      const float term = weight * g[c];
      if (term - term == 0) {
        atomicAdd(sum + at + c, static_cast<unsigned long long>(static_cast<long long>(rintf(term * scale))));
      } else {
        atomicAdd(special + at + c, term);
      }
    }
  }
};

template <typename S, int Depth, typename Sums>
__global__ void __launch_bounds__(threads)
    backward_kernel(Geometry g, Inputs in, const S *__restrict__ value, const S *__restrict__ grad_output, Sums sums,
                    float *__restrict__ grad_locations, float *__restrict__ grad_weights, int tiles) {
  using L = Layout<S, Depth>;
  __shared__ Cells cells[L::capacity];
  __shared__ Shares shares[L::capacity];
  __shared__ float dots[4 * L::capacity];
  const int head = blockIdx.y, group = threadIdx.x / L::lanes, lane = threadIdx.x % L::lanes;
  const int64_t row = int64_t{g.heads} * g.depth;
  const int together = points_at_once<L>(g.points);
  sums.prepare();
  for (int64_t image = blockIdx.z; image < g.batch; image += gridDim.z) {
    for (int tile = 0; tile < tiles; ++tile) {
      const int64_t first_query = (int64_t{blockIdx.x} * tiles + tile) * L::groups, query = first_query + group;
      for (int first = 0; first < g.points; first += together) {
        const int count = min(together, g.points - first);
        __syncthreads();  // the round before has been read
        for_points(g, image, head, first_query, L::groups, first, count, [&](int entry, int64_t point, int level) {
          locate(g, in, point, level, cells[entry], shares[entry]);
        });
        __syncthreads();
        for (int channels = 0; channels < g.depth; channels += L::at_once) {
          const int channel = channels + lane * L::per_thread;
          const bool active = query < g.queries && (Depth != 0 || channel < g.depth);
          const int64_t at = image * g.tokens * row + head * g.depth + channel;
          float above[L::per_thread] = {};
          if (active) {
            const auto loaded =
                load<L::per_thread>(grad_output + (image * g.queries + query) * row + head * g.depth + channel);
#pragma unroll
            for (int c = 0; c < L::per_thread; ++c) above[c] = widen(loaded.number[c]);
          }
          for (int i = group * count; i < (group + 1) * count; ++i) {  // all threads of a warp: they exchange sums
            float part[4] = {};
            if (active) {
              const Cells cell = cells[i];
              const Shares share = shares[i];
              Pack<S, L::per_thread> corner[4] = {};
#pragma unroll
              for (int k = 0; k < 4; ++k)
                if (cell.offset[k] >= 0) corner[k] = load<L::per_thread>(value + at + cell.offset[k]);
#pragma unroll
              for (int k = 0; k < 4; ++k) {
#pragma unroll
                for (int c = 0; c < L::per_thread; ++c) part[k] += above[c] * widen(corner[k].number[c]);
                if (cell.offset[k] >= 0) sums.add(at + cell.offset[k], share.weight[k], above);
              }
            }
            sum_over_group<L::lanes>(part, lane);
            if (lane < 4) {
              constexpr int held = L::lanes == 2 ? 2 : 1;
#pragma unroll
              for (int k = 0; k < held; ++k) {
                float &dot = dots[4 * i + (held == 2 ? 2 * lane + k : 2 * (lane & 1) + (lane >> 1 & 1))];
                dot = channels == 0 ? part[k] : dot + part[k];
              }
            }
          }
        }
        __syncthreads();
        for_points(g, image, head, first_query, L::groups, first, count, [&](int entry, int64_t point, int level) {
          point_gradient(g, in, point, level, dots + 4 * entry, grad_locations, grad_weights);
        });
      }
    }
  }
}

// ---- for sums that are the same every time -------------------------------------------------------------------------

template <typename S>
__global__ void largest_kernel(const S *__restrict__ numbers, int64_t count, uint32_t *largest) {
  uint32_t own = 0;
  for (int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x; i < count; i += int64_t{gridDim.x} * threads) {
    const uint32_t bits = bits_of(widen(numbers[i])) & 0x7fffffffu;
    if (bits < 0x7f800000u && bits > own) own = bits;
  }
  for (int apart = 16; apart > 0; apart /= 2) own = max(own, __shfl_xor_sync(0xffffffffu, own, apart));
  if (threadIdx.x % 32 == 0) atomicMax(largest, own);
}

// `special` becomes the gradient.
static __global__ void from_fixed_kernel(SameEveryTime sums, int64_t count) {
  const double scale = ldexp(1.0, -fixed_point_shift(*sums.largest, sums.terms));
  for (int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x; i < count; i += int64_t{gridDim.x} * threads)
    sums.special[i] += static_cast<float>(static_cast<double>(static_cast<long long>(sums.sum[i])) * scale);
}

}  // namespace cuda
}  // namespace codetr
