// The GPU kernels of csrc/cuda, run on the host thread by thread, for Python's ctypes.

#include "emulator.h"

#include "baseline.cuh"
#include "kernels.cuh"

using namespace codetr::cuda;

namespace {

Geometry geometry(const int64_t *sizes, const int64_t *shapes) {
  Geometry g{};
  g.batch = sizes[0];
  g.tokens = sizes[1];
  g.queries = sizes[2];
  g.heads = static_cast<int>(sizes[3]);
  g.depth = static_cast<int>(sizes[4]);
  g.levels = static_cast<int>(sizes[5]);
  g.per_level = static_cast<int>(sizes[6]);
  g.points = g.levels * g.per_level;
  int start = 0;
  for (int level = 0; level < g.levels; ++level) {
    g.rows[level] = static_cast<int>(shapes[2 * level]);
    g.columns[level] = static_cast<int>(shapes[2 * level + 1]);
    g.start[level] = start;
    start += g.rows[level] * g.columns[level];
  }
  return g;
}

dim3 grid(const Geometry &g, int groups, int tiles) {
  const unsigned each = groups * tiles;
  return {static_cast<unsigned>((g.queries + each - 1) / each), static_cast<unsigned>(g.heads), 1};
}

template <typename S, int Depth>
struct Emulated {
  static void forward(const Geometry &g, const Inputs &in, const void *value, void *output, int tiles, unsigned seed) {
    emulator::launch(grid(g, Layout<S, Depth>::groups, tiles), threads, seed, [&] {
      forward_kernel<S, Depth>(g, in, static_cast<const S *>(value), static_cast<S *>(output), tiles);
    });
  }

  template <typename Sums>
  static void backward(const Geometry &g, const Inputs &in, const void *value, const void *above, Sums sums,
                       float *grad_locations, float *grad_weights, int tiles, unsigned seed) {
    emulator::launch(grid(g, Layout<S, Depth>::groups, tiles), threads, seed, [&] {
      backward_kernel<S, Depth, Sums>(g, in, static_cast<const S *>(value), static_cast<const S *>(above), sums,
                                      grad_locations, grad_weights, tiles);
    });
  }
};

// Calls `work` with the kernels that would be chosen on a GPU.
template <typename S, typename Work>
void by_depth(int depth, const Work &work) {
  if (depth == 16) return work(Emulated<S, 16>{});
  if (depth == 32) return work(Emulated<S, 32>{});
  if (depth == 64) return work(Emulated<S, 64>{});
  work(Emulated<S, 0>{});
}

template <typename Work>
void by_type(int type, int depth, const Work &work) {
  if (type == 1) return by_depth<BFloat16>(depth, work);
  if (type == 2) return by_depth<Half>(depth, work);
  by_depth<float>(depth, work);
}

}  // namespace

extern "C" {

// type: 0 float32, 1 bfloat16, 2 float16. sizes: batch, tokens, queries, heads, depth, levels, points of each level.
void forward(int type, const int64_t *sizes, const int64_t *shapes, const void *value, const float *locations,
             const float *weights, void *output, int tiles, unsigned seed) {
  const Geometry g = geometry(sizes, shapes);
  by_type(type, g.depth, [&](auto kernels) {
    kernels.forward(g, {locations, weights}, value, output, tiles, seed);
  });
}

// fixed: null, or as many zeros as there are values, for sums that are the same every time.
void backward(int type, const int64_t *sizes, const int64_t *shapes, const void *value, const float *locations,
              const float *weights, const void *above, float *grad_value, float *grad_locations, float *grad_weights,
              unsigned long long *fixed, int tiles, unsigned seed) {
  const Geometry g = geometry(sizes, shapes);
  const Inputs in{locations, weights};
  if (fixed == nullptr) {
    by_type(type, g.depth, [&](auto kernels) {
      kernels.backward(g, in, value, above, AnyOrder{grad_value}, grad_locations, grad_weights, tiles, seed);
    });
    return;
  }
  Largest largest{};
  const int64_t samplers = g.batch * g.queries * g.heads;
  SameEveryTime sums{fixed, grad_value, &largest, g.queries * g.points, 0};
  by_type(type, 0, [&](auto kernels) {
    using S = std::conditional_t<std::is_same_v<decltype(kernels), Emulated<float, 0>>, float,
                                 std::conditional_t<std::is_same_v<decltype(kernels), Emulated<Half, 0>>, Half, BFloat16>>;
    emulator::launch({2}, threads, seed, [&] {
      largest_kernel<S>(static_cast<const S *>(above), samplers * g.depth, &largest.gradient);
    });
    emulator::launch({2}, threads, seed, [&] { largest_kernel<float>(weights, samplers * g.points, &largest.weight); });
    kernels.backward(g, in, value, above, sums, grad_locations, grad_weights, tiles, seed);
  });
  emulator::launch({2}, threads, seed, [&] { from_fixed_kernel(sums, g.batch * g.tokens * g.heads * g.depth); });
}

void baseline(const int64_t *sizes, const int64_t *shapes, const float *value, const float *locations,
              const float *weights, const float *above, float *output, float *grad_value, float *grad_locations,
              float *grad_weights, unsigned seed) {
  const Geometry g = geometry(sizes, shapes);
  const Inputs in{locations, weights};
  emulator::launch({3}, 64, seed, [&] { baseline_forward_kernel(g, in, value, output); });
  emulator::launch({static_cast<unsigned>(g.batch * g.queries * g.heads)}, g.depth, seed, [&] {
    baseline_backward_kernel(g, in, value, above, grad_value, grad_locations, grad_weights);
  });
}

// How 16-bit numbers are read and written.
void convert(int type, const uint16_t *from, float *wide, uint16_t *back, int count) {
  for (int i = 0; i < count; ++i) {
    if (type == 1) {
      BFloat16 number;
      wide[i] = widen(BFloat16{from[i]});
      narrow(wide[i] * 1.0009f, number);
      back[i] = number.bits;
    } else {
      Half number;
      wide[i] = widen(Half{from[i]});
      narrow(wide[i] * 1.0009f, number);
      back[i] = number.bits;
    }
  }
}
}
