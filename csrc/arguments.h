// What the operator on any device asks of its arguments.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace codetr {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_narrow(ScalarType type) { return type == ScalarType::BFloat16 || type == ScalarType::Half; }

// The type that values of `type` are computed in.
inline ScalarType computed_as(ScalarType type) { return is_narrow(type) ? ScalarType::Float : type; }

inline Tensor dense(const Tensor &t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// Everything that does not depend on the device. The caller has made sure that all tensors are where it wants them.
inline void check(const Tensor &value, const std::vector<int64_t> &shapes, const Tensor &locations,
                  const Tensor &weights) {
  STD_TORCH_CHECK(value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5,
                  "ms_deform_attn: expected value (B,S,heads,D), locations (B,Q,heads,levels,points,2) and weights "
                  "(B,Q,heads,levels,points)");
  const ScalarType type = value.scalar_type(), computed = computed_as(type);
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || is_narrow(type),
                  "ms_deform_attn: the compiled operator takes float32, float64, bfloat16 and float16 values");
  STD_TORCH_CHECK(locations.scalar_type() == computed && weights.scalar_type() == computed,
                  "ms_deform_attn: locations and weights must be float64 for float64 values, else float32");
  STD_TORCH_CHECK(locations.size(5) == 2 && locations.size(0) == value.size(0) && locations.size(2) == value.size(2) &&
                      2 * locations.size(3) == static_cast<int64_t>(shapes.size()),
                  "ms_deform_attn: locations do not fit value and spatial_shapes");
  for (int64_t d = 0; d < 5; ++d)
    STD_TORCH_CHECK(weights.size(d) == locations.size(d), "ms_deform_attn: weights do not fit locations");
  int64_t tokens = 0;
  for (size_t i = 0; i + 1 < shapes.size(); i += 2) {
    STD_TORCH_CHECK(shapes[i] >= 0 && shapes[i + 1] >= 0, "ms_deform_attn: spatial_shapes holds a negative size");
    tokens += shapes[i] * shapes[i + 1];
  }
  STD_TORCH_CHECK(tokens == value.size(1), "ms_deform_attn: value holds ", value.size(1),
                  " tokens, spatial_shapes describes ", tokens);
  STD_TORCH_CHECK(value.size(1) * value.size(2) * value.size(3) < std::numeric_limits<int32_t>::max(),
                  "ms_deform_attn: an image's value has 2^31 elements or more");
}

inline void check_gradient(const Tensor &grad_output, const Tensor &value, const Tensor &locations) {
  STD_TORCH_CHECK(grad_output.scalar_type() == value.scalar_type() && grad_output.dim() == 3 &&
                      grad_output.size(0) == value.size(0) && grad_output.size(1) == locations.size(1) &&
                      grad_output.size(2) == value.size(2) * value.size(3),
                  "ms_deform_attn: the output's gradient does not fit");
}

}  // namespace codetr
