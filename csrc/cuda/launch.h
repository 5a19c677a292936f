// What ms_deform_attn_cuda.cpp, which knows torch, asks of kernels.cu, which does not.
#pragma once

#include <cstdint>

namespace codetr {
namespace cuda {

enum class Type { float32, bfloat16, float16 };

// Sizes, and device pointers to contiguous tensors that begin at multiples of 16 bytes. Shapes: see kernels.cuh.
struct Call {
  Type type;  // of value, output and grad_output; all else is float32
  int64_t batch, tokens, queries, heads, depth, levels, per_level;
  const int64_t *shapes;  // host: height and width of every level
  const void *value;
  const float *locations, *weights;
  void *stream;
};

struct Gradients {
  const void *output;
  float *value;  // zero at first
  float *locations, *weights;
  unsigned long long *fixed;  // as many as values and zero at first, for sums that are the same every time; or null
  uint32_t *largest;          // two zeros, along with `fixed`
};

// All return what went wrong, or null. Most levels: see kernels.cuh.
const char *forward(const Call &call, void *output);
const char *backward(const Call &call, const Gradients &gradients);
const char *baseline_forward(const Call &call, void *output);
const char *baseline_backward(const Call &call, const Gradients &gradients);

}  // namespace cuda
}  // namespace codetr
