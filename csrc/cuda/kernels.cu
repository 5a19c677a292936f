// Launches the kernels. Nothing of torch is used here, so it compiles fast and fits every version.

#include <algorithm>

#include "baseline.cuh"
#include "kernels.cuh"
#include "launch.h"

namespace codetr {
namespace cuda {
namespace {

Geometry geometry(const Call &call) {
  Geometry g{};
  g.batch = call.batch;
  g.tokens = call.tokens;
  g.queries = call.queries;
  g.heads = static_cast<int>(call.heads);
  g.depth = static_cast<int>(call.depth);
  g.levels = static_cast<int>(call.levels);
  g.per_level = static_cast<int>(call.per_level);
  g.points = g.levels * g.per_level;
  int start = 0;
  for (int level = 0; level < g.levels; ++level) {
    g.rows[level] = static_cast<int>(call.shapes[2 * level]);
    g.columns[level] = static_cast<int>(call.shapes[2 * level + 1]);
    g.start[level] = start;
    start += g.rows[level] * g.columns[level];
  }
  return g;
}

cudaStream_t stream(const Call &call) { return static_cast<cudaStream_t>(call.stream); }

int processors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
}

const char *outcome() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Several tiles to a block, for the cache's sake, as long as every processor has its fill of blocks.
struct Grid {
  dim3 blocks;
  int tiles;
};

Grid grid(const Geometry &g, int groups) {
  const int64_t all = (g.queries + groups - 1) / groups, images = std::min<int64_t>(g.batch, 65535);
  const int64_t fill = int64_t{processors()} * 2048 / threads * 4;
  const int64_t tiles = std::clamp<int64_t>(all * g.heads * images / fill, 1, 4);
  return {dim3(static_cast<unsigned>((all + tiles - 1) / tiles), g.heads, static_cast<unsigned>(images)),
          static_cast<int>(tiles)};
}

template <typename S, int Depth>
void run_forward(const Call &call, const Geometry &g, void *output) {
  const Grid at = grid(g, Layout<S, Depth>::groups);
  forward_kernel<S, Depth><<<at.blocks, threads, 0, stream(call)>>>(
      g, Inputs{call.locations, call.weights}, static_cast<const S *>(call.value), static_cast<S *>(output), at.tiles);
}

template <typename S, int Depth, typename Sums>
void run_backward(const Call &call, const Geometry &g, const Gradients &to, const Sums &sums) {
  const Grid at = grid(g, Layout<S, Depth>::groups);
  backward_kernel<S, Depth, Sums><<<at.blocks, threads, 0, stream(call)>>>(
      g, Inputs{call.locations, call.weights}, static_cast<const S *>(call.value), static_cast<const S *>(to.output),
      sums, to.locations, to.weights, at.tiles);
}

template <typename S>
void largest(const Call &call, const S *numbers, int64_t count, uint32_t *to) {
  largest_kernel<S><<<processors() * 8, threads, 0, stream(call)>>>(numbers, count, to);
}

// Calls `work` with a number of the type in which values are stored.
template <typename Work>
void by_type(Type type, const Work &work) {
  if (type == Type::bfloat16) return work(BFloat16{});
  if (type == Type::float16) return work(Half{});
  work(float{});
}

}  // namespace

const char *forward(const Call &call, void *output) {
  const Geometry g = geometry(call);
  by_type(call.type, [&](auto stored) {
    using S = decltype(stored);
    if (g.depth == 16) return run_forward<S, 16>(call, g, output);
    if (g.depth == 32) return run_forward<S, 32>(call, g, output);
    if (g.depth == 64) return run_forward<S, 64>(call, g, output);
    run_forward<S, 0>(call, g, output);
  });
  return outcome();
}

const char *backward(const Call &call, const Gradients &to) {
  const Geometry g = geometry(call);
  by_type(call.type, [&](auto stored) {
    using S = decltype(stored);
    if (to.fixed != nullptr) {
      const int64_t samplers = g.batch * g.queries * g.heads, values = g.batch * g.tokens * g.heads * g.depth;
      const SameEveryTime sums{to.fixed, to.value, reinterpret_cast<const Largest *>(to.largest),
                               g.queries * g.points, 0};
      largest(call, static_cast<const S *>(to.output), samplers * g.depth, to.largest);
      largest(call, call.weights, samplers * g.points, to.largest + 1);
      run_backward<S, 0>(call, g, to, sums);
      from_fixed_kernel<<<processors() * 8, threads, 0, stream(call)>>>(sums, values);
      return;
    }
    const AnyOrder sums{to.value};
    if (g.depth == 16) return run_backward<S, 16>(call, g, to, sums);
    if (g.depth == 32) return run_backward<S, 32>(call, g, to, sums);
    if (g.depth == 64) return run_backward<S, 64>(call, g, to, sums);
    run_backward<S, 0>(call, g, to, sums);
  });
  return outcome();
}

const char *baseline_forward(const Call &call, void *output) {
  const Geometry g = geometry(call);
  const int64_t count = g.batch * g.queries * g.heads * g.depth;
  baseline_forward_kernel<<<static_cast<unsigned>((count + 1023) / 1024), 1024, 0, stream(call)>>>(
      g, Inputs{call.locations, call.weights}, static_cast<const float *>(call.value), static_cast<float *>(output));
  return outcome();
}

const char *baseline_backward(const Call &call, const Gradients &to) {
  const Geometry g = geometry(call);
  baseline_backward_kernel<<<static_cast<unsigned>(g.batch * g.queries * g.heads), g.depth, 0, stream(call)>>>(
      g, Inputs{call.locations, call.weights}, static_cast<const float *>(call.value),
      static_cast<const float *>(to.output), to.value, to.locations, to.weights);
  return outcome();
}

}  // namespace cuda
}  // namespace codetr
