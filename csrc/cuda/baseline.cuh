// The yardstick of the benchmarks: deformable attention the way its first CUDA implementation did it. One thread per
// channel of a query's head; each finds all points anew and reads one number at a time. Never used otherwise.
#pragma once

#include "kernels.cuh"

namespace codetr {
namespace cuda {

static __global__ void baseline_forward_kernel(Geometry g, Inputs in, const float *value, float *output) {
  const int64_t count = g.batch * g.queries * g.heads * g.depth;
  const int row = g.heads * g.depth;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t sampler = i / g.depth, image = i / (g.queries * row);
    const float *const from = value + image * g.tokens * row + i % row;
    float sum = 0;
    for (int point = 0; point < g.points; ++point) {
      const int64_t at = sampler * g.points + point;
      const int level = point / g.per_level, rows = g.rows[level], columns = g.columns[level];
      const Place p = place(in.locations[2 * at], in.locations[2 * at + 1], rows, columns);
      if (!p.inside) continue;
      const float *const cell = from + int64_t{g.start[level] + p.row * columns + p.column} * row;
      const int64_t below = int64_t{columns} * row;
      const float hx = 1 - p.right, hy = 1 - p.down;
      float sample = 0;
      if (p.row >= 0 && p.column >= 0) sample += hy * hx * cell[0];
      if (p.row >= 0 && p.column + 1 < columns) sample += hy * p.right * cell[row];
      if (p.row + 1 < rows && p.column >= 0) sample += p.down * hx * cell[below];
      if (p.row + 1 < rows && p.column + 1 < columns) sample += p.down * p.right * cell[below + row];
      sum += in.weights[at] * sample;
    }
    output[i] = sum;
  }
}

// A block per query and head, a thread per channel; the first thread sums what all have found out about a point.
static __global__ void baseline_backward_kernel(Geometry g, Inputs in, const float *value, const float *grad_output,
                                                float *grad_value, float *grad_locations, float *grad_weights) {
  __shared__ float shared[3 * 1024];
  const int row = g.heads * g.depth, channel = threadIdx.x;
  const int64_t sampler = blockIdx.x, image = sampler / (g.queries * g.heads);
  const int64_t start = image * g.tokens * row + sampler % g.heads * g.depth + channel;
  const float above = grad_output[sampler * g.depth + channel];
  for (int point = 0; point < g.points; ++point) {
    const int64_t at = sampler * g.points + point;
    const int level = point / g.per_level, rows = g.rows[level], columns = g.columns[level];
    const Place p = place(in.locations[2 * at], in.locations[2 * at + 1], rows, columns);
    const float attention = in.weights[at], hx = 1 - p.right, hy = 1 - p.down;
    float dot[4] = {};
    if (p.inside) {
      const float share[4] = {hy * hx, hy * p.right, p.down * hx, p.down * p.right};
      for (int k = 0; k < 4; ++k) {
        const int r = p.row + k / 2, c = p.column + k % 2;
        if (r < 0 || r >= rows || c < 0 || c >= columns) continue;
        const int64_t cell = start + int64_t{g.start[level] + r * columns + c} * row;
        dot[k] = above * value[cell];
        atomicAdd(grad_value + cell, attention * share[k] * above);
      }
    }
    float *const own = shared + 3 * channel;
    own[0] = hy * (hx * dot[0] + p.right * dot[1]) + p.down * (hx * dot[2] + p.right * dot[3]);
    own[1] = attention * static_cast<float>(columns) * (hy * (dot[1] - dot[0]) + p.down * (dot[3] - dot[2]));
    own[2] = attention * static_cast<float>(rows) * (hx * (dot[2] - dot[0]) + p.right * (dot[3] - dot[1]));
    __syncthreads();
    if (channel == 0) {
      float total[3] = {};
      for (int i = 0; i < 3 * g.depth; ++i) total[i % 3] += shared[i];
      grad_weights[at] = total[0];
      grad_locations[2 * at] = total[1];
      grad_locations[2 * at + 1] = total[2];
    }
    __syncthreads();
  }
}

}  // namespace cuda
}  // namespace codetr
