// The operator on CUDA tensors: checks, memory, the current stream. Needs no CUDA header; the kernels are in cuda/.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "arguments.h"
#include "cuda/launch.h"

#ifndef CODETR_BUILD
#define CODETR_BUILD "unknown"
#endif

// Found again in the file by whoever asks what it was built from, and for which processors.
extern "C" __attribute__((visibility("default"), used)) const char codetr_ops_build[] =
    "codetr-ops-build:" CODETR_BUILD;

namespace codetr {
namespace {

// Contiguous, and begun where 16 bytes can be read at once, which a view may not be.
Tensor aligned(const Tensor &t) {
  const Tensor d = dense(t);
  return reinterpret_cast<uintptr_t>(d.data_ptr()) % 16 == 0 ? d : torch::stable::clone(d);
}

void succeed(const char *error) { STD_TORCH_CHECK(error == nullptr, "ms_deform_attn: CUDA: ", error); }

// A call's arguments, ready for the kernels, on the value's device as long as this lives.
struct Prepared {
  torch::stable::accelerator::DeviceGuard guard;
  Tensor value, locations, weights;
  std::vector<int64_t> shapes;

  Prepared(const Tensor &v, std::vector<int64_t> sizes, const Tensor &l, const Tensor &w)
      : guard(v.get_device_index()), value(aligned(v)), locations(aligned(l)), weights(aligned(w)),
        shapes(std::move(sizes)) {
    check(v, shapes, l, w);
    STD_TORCH_CHECK(l.is_cuda() && w.is_cuda() && l.get_device_index() == v.get_device_index() &&
                        w.get_device_index() == v.get_device_index(),
                    "ms_deform_attn: not all tensors are on the value's device");
    STD_TORCH_CHECK(v.scalar_type() != ScalarType::Double,
                    "ms_deform_attn: the CUDA operator takes float32, bfloat16 and float16 values");
    STD_TORCH_CHECK(v.size(3) % 4 == 0, "ms_deform_attn: on CUDA a head's channels must be a multiple of 4, got ",
                    v.size(3));
    STD_TORCH_CHECK(l.size(3) <= 64, "ms_deform_attn: on CUDA at most 64 levels, got ", l.size(3));
  }

  cuda::Call call() const {
    void *stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(value.get_device_index(), &stream));
    const ScalarType type = value.scalar_type();
    return {type == ScalarType::BFloat16 ? cuda::Type::bfloat16
            : type == ScalarType::Half   ? cuda::Type::float16
                                         : cuda::Type::float32,
            value.size(0), value.size(1), locations.size(1), value.size(2), value.size(3), locations.size(3),
            locations.size(4), shapes.data(), value.data_ptr(), static_cast<const float *>(locations.data_ptr()),
            static_cast<const float *>(weights.data_ptr()), stream};
  }
};

using Forward = const char *(*)(const cuda::Call &, void *);
using Backward = const char *(*)(const cuda::Call &, const cuda::Gradients &);

Tensor run_forward(Forward kernel, const Prepared &p, int64_t queries) {
  const int64_t sizes[] = {p.value.size(0), queries, p.value.size(2) * p.value.size(3)};
  Tensor output = torch::stable::new_empty(p.value, IntHeaderOnlyArrayRef(sizes, 3));
  if (output.numel() == 0) return output;
  if (p.locations.numel() == 0) return torch::stable::zero_(output);
  succeed(kernel(p.call(), output.data_ptr()));
  return output;
}

std::tuple<Tensor, Tensor, Tensor> run_backward(Backward kernel, const Prepared &p, const Tensor &grad_output,
                                                bool deterministic) {
  check_gradient(grad_output, p.value, p.locations);
  STD_TORCH_CHECK(grad_output.is_cuda() && grad_output.get_device_index() == p.value.get_device_index(),
                  "ms_deform_attn: not all tensors are on the value's device");
  const Tensor g = aligned(grad_output);
  const ScalarType type = p.value.scalar_type();
  Tensor grad_value = torch::stable::new_zeros(p.value, p.value.sizes(), ScalarType::Float);
  Tensor grad_locations = torch::stable::new_empty(p.locations, p.locations.sizes());
  Tensor grad_weights = torch::stable::new_empty(p.weights, p.weights.sizes());
  if (g.numel() == 0 || p.locations.numel() == 0) {
    torch::stable::zero_(grad_locations);
    torch::stable::zero_(grad_weights);
  } else {
    cuda::Gradients to{g.data_ptr(), static_cast<float *>(grad_value.data_ptr()),
                       static_cast<float *>(grad_locations.data_ptr()), static_cast<float *>(grad_weights.data_ptr()),
                       nullptr, nullptr};
    const int64_t two[] = {2}, none[] = {0};
    const Tensor fixed = torch::stable::new_zeros(
        p.value, deterministic ? p.value.sizes() : IntHeaderOnlyArrayRef(none, 1), ScalarType::Long);
    const Tensor largest = torch::stable::new_zeros(p.value, IntHeaderOnlyArrayRef(two, 1), ScalarType::Int);
    if (deterministic) {
      to.fixed = static_cast<unsigned long long *>(fixed.data_ptr());
      to.largest = static_cast<uint32_t *>(largest.data_ptr());
    }
    succeed(kernel(p.call(), to));
  }
  return {is_narrow(type) ? torch::stable::to(grad_value, type) : grad_value, grad_locations, grad_weights};
}

Tensor forward(const Tensor &value, std::vector<int64_t> shapes, const Tensor &locations, const Tensor &weights) {
  return run_forward(cuda::forward, Prepared(value, std::move(shapes), locations, weights), locations.size(1));
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor &grad_output, const Tensor &value, std::vector<int64_t> shapes,
                                            const Tensor &locations, const Tensor &weights, bool deterministic) {
  return run_backward(cuda::backward, Prepared(value, std::move(shapes), locations, weights), grad_output,
                      deterministic);
}

void check_baseline(const Tensor &value) {
  STD_TORCH_CHECK(value.scalar_type() == ScalarType::Float && value.size(3) <= 1024,
                  "ms_deform_attn_baseline: takes float32 values with at most 1024 channels a head");
}

Tensor baseline(const Tensor &value, std::vector<int64_t> shapes, const Tensor &locations, const Tensor &weights) {
  check_baseline(value);
  return run_forward(cuda::baseline_forward, Prepared(value, std::move(shapes), locations, weights), locations.size(1));
}

std::tuple<Tensor, Tensor, Tensor> baseline_backward(const Tensor &grad_output, const Tensor &value,
                                                     std::vector<int64_t> shapes, const Tensor &locations,
                                                     const Tensor &weights) {
  check_baseline(value);
  return run_backward(cuda::baseline_backward, Prepared(value, std::move(shapes), locations, weights), grad_output,
                      false);
}

}  // namespace
}  // namespace codetr

STABLE_TORCH_LIBRARY_FRAGMENT(codetr_lab, m) {
  m.def(
      "ms_deform_attn_baseline(Tensor value, int[] spatial_shapes, Tensor sampling_locations, Tensor "
      "attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_baseline_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, Tensor "
      "sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(codetr_lab, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&codetr::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&codetr::backward));
  m.impl("ms_deform_attn_baseline", TORCH_BOX(&codetr::baseline));
  m.impl("ms_deform_attn_baseline_backward", TORCH_BOX(&codetr::baseline_backward));
}
