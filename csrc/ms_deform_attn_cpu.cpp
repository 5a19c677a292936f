// The operator on CPU tensors: checks, choice of instruction set, threads.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <tuple>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/problem.h"

#ifndef CODETR_BUILD
#define CODETR_BUILD "unknown"
#endif

// Found again in the file by whoever asks whether it was built from the present sources.
extern "C" __attribute__((visibility("default"), used)) const char codetr_ops_build[] =
    "codetr-ops-build:" CODETR_BUILD;

namespace codetr {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const InstructionSet &instruction_set() {
  static const InstructionSet &chosen = []() -> const InstructionSet & {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const char *limit = std::getenv("CODETR_OPS_ISA");  // for tests: generic or avx2 on a newer processor
    const bool up_to_generic = limit != nullptr && std::strcmp(limit, "generic") == 0;
    const bool up_to_avx2 = up_to_generic || (limit != nullptr && std::strcmp(limit, "avx2") == 0);
    if (!up_to_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
      return avx512;
    if (!up_to_generic && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2;
#endif
    return generic;
  }();
  return chosen;
}

template <typename T>
const Kernels<T> &kernels() {
  if constexpr (std::is_same_v<T, float>) {
    return instruction_set().single;
  } else {
    return instruction_set().twice;
  }
}

Tensor dense(const Tensor &t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// The level constants of one query's sampling points.
template <typename T>
struct Geometry {
  using I = typename IntegerOf<T>::type;
  int64_t stride;  // from one array to the next
  std::vector<T> sizes;
  std::vector<I> integers;

  Geometry(const std::vector<int64_t> &shapes, int64_t heads, int64_t points) {
    const int64_t levels = static_cast<int64_t>(shapes.size()) / 2, count = heads * levels * points;
    stride = count + most_lanes;
    sizes.resize(2 * stride);
    integers.resize(3 * stride);
    int64_t i = 0;
    for (int64_t head = 0; head < heads; ++head) {
      int64_t start = 0;
      for (int64_t level = 0; level < levels; ++level) {
        const int64_t rows = shapes[2 * level], columns = shapes[2 * level + 1];
        for (int64_t point = 0; point < points; ++point, ++i) {
          sizes[i] = static_cast<T>(columns);
          sizes[stride + i] = static_cast<T>(rows);
          integers[i] = static_cast<I>(columns);
          integers[stride + i] = static_cast<I>(rows);
          integers[2 * stride + i] = static_cast<I>(start);
        }
        start += rows * columns;
      }
    }
  }
};

void check(const Tensor &value, const std::vector<int64_t> &shapes, const Tensor &locations, const Tensor &weights) {
  STD_TORCH_CHECK(value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5,
                  "ms_deform_attn: expected value (B,S,heads,D), locations (B,Q,heads,levels,points,2) and weights "
                  "(B,Q,heads,levels,points)");
  STD_TORCH_CHECK(value.is_cpu() && locations.is_cpu() && weights.is_cpu(),
                  "ms_deform_attn: not all tensors are on the CPU");
  STD_TORCH_CHECK(value.scalar_type() == ScalarType::Float || value.scalar_type() == ScalarType::Double,
                  "ms_deform_attn: the compiled CPU operator takes float32 and float64");
  STD_TORCH_CHECK(locations.scalar_type() == value.scalar_type() && weights.scalar_type() == value.scalar_type(),
                  "ms_deform_attn: value, locations and weights are of different types");
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

template <typename T>
Problem<T> problem(const Geometry<T> &geometry, const Tensor &value, const Tensor &locations, const Tensor &weights) {
  Problem<T> p{};
  p.batch = value.size(0);
  p.tokens = value.size(1);
  p.heads = value.size(2);
  p.depth = value.size(3);
  p.queries = locations.size(1);
  p.points = locations.size(3) * locations.size(4);
  p.width = geometry.sizes.data();
  p.height = p.width + geometry.stride;
  p.columns = geometry.integers.data();
  p.rows = p.columns + geometry.stride;
  p.start = p.rows + geometry.stride;
  p.value = static_cast<const T *>(value.data_ptr());
  p.locations = static_cast<const T *>(locations.data_ptr());
  p.weights = static_cast<const T *>(weights.data_ptr());
  return p;
}

constexpr size_t huge = size_t{1} << 21;

// A hint for the whole huge pages inside a block of memory.
void use_huge_pages([[maybe_unused]] void *data, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const uintptr_t start = (reinterpret_cast<uintptr_t>(data) + huge - 1) / huge * huge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / huge * huge;
  if (start < end) madvise(reinterpret_cast<void *>(start), end - start, MADV_HUGEPAGE);
#endif
}

// Memory that is not initialised, in huge pages where the system has them: samples jump across many small ones.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : bytes_((count * sizeof(T) + huge - 1) / huge * huge), data_(std::aligned_alloc(huge, bytes_)) {
    if (data_ == nullptr) throw std::bad_alloc();
    use_huge_pages(data_, bytes_);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  T *data() const { return static_cast<T *>(data_); }

 private:
  size_t bytes_;
  void *data_;
};

// One head's channels of every cell, cells one after the other; and back.
template <typename T>
void pack(const T *from, T *to, int64_t cells, int64_t channels, int64_t depth) {
  for (int64_t i = 0; i < cells; ++i) std::memcpy(to + i * depth, from + i * channels, depth * sizeof(T));
}

template <typename T>
void unpack(const T *from, T *to, int64_t cells, int64_t channels, int64_t depth) {
  for (int64_t i = 0; i < cells; ++i) std::memcpy(to + i * channels, from + i * depth, depth * sizeof(T));
}

// Whether to go head by head, over a copy in which the head's channels lie together. Neighbouring queries sample
// neighbouring cells: without other heads' channels between them, those stay in the cache. Small images stay there
// anyway, and for few queries the copy costs more than it saves.
template <typename T>
bool worth_packing(const Problem<T> &p) {
  return p.tokens * p.heads * p.depth * sizeof(T) > 512 * 1024 && 4 * p.queries > p.tokens;
}

template <typename Work>
void in_parallel(int64_t count, int64_t grain, const Work &work) {
  if (torch::stable::get_num_threads() == 1) return work(0, count);
  torch::stable::parallel_for(0, count, grain, work);
}

template <typename T>
void run_forward(const Tensor &value, const std::vector<int64_t> &shapes, const Tensor &locations, const Tensor &weights,
                 Tensor &output) {
  const Geometry<T> geometry(shapes, value.size(2), locations.size(4));
  Problem<T> p = problem(geometry, value, locations, weights);
  p.output = static_cast<T *>(output.data_ptr());
  const auto kernel = kernels<T>().forward;
  const int64_t channels = p.heads * p.depth;
  // At least 20,000 samples a thread: fewer cost more than they save.
  if (!worth_packing(p)) {
    return in_parallel(p.batch * p.queries, 1 + 20000 / (1 + p.heads * p.points), [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t image = begin / p.queries, first = begin % p.queries;
        const int64_t last = std::min(p.queries, first + end - begin);
        kernel(p, {image, 0, p.heads, first, last, p.value + image * p.tokens * channels, nullptr, channels});
        begin += last - first;
      }
    });
  }
  const Buffer<T> packed(p.tokens * p.depth);
  for (int64_t image = 0; image < p.batch; ++image) {
    for (int64_t head = 0; head < p.heads; ++head) {
      const T *from = p.value + image * p.tokens * channels + head * p.depth;
      in_parallel(p.tokens, 1000, [&](int64_t begin, int64_t end) {
        pack(from + begin * channels, packed.data() + begin * p.depth, end - begin, channels, p.depth);
      });
      in_parallel(p.queries, 1 + 20000 / (1 + p.points), [&](int64_t begin, int64_t end) {
        kernel(p, {image, head, head + 1, begin, end, packed.data(), nullptr, p.depth});
      });
    }
  }
}

// One task is an image and a run of its heads: nobody else writes to those channels of the value's gradient, and its
// sums run in the order of the queries, so the result does not depend on the number of threads.
template <typename T>
void run_backward(const Tensor &grad_output, const Tensor &value, const std::vector<int64_t> &shapes,
                  const Tensor &locations, const Tensor &weights, Tensor &grad_value, Tensor &grad_locations,
                  Tensor &grad_weights) {
  const Geometry<T> geometry(shapes, value.size(2), locations.size(4));
  Problem<T> p = problem(geometry, value, locations, weights);
  p.grad_output = static_cast<const T *>(grad_output.data_ptr());
  p.grad_locations = static_cast<T *>(grad_locations.data_ptr());
  p.grad_weights = static_cast<T *>(grad_weights.data_ptr());
  T *const gradient = static_cast<T *>(grad_value.data_ptr());
  const auto kernel = kernels<T>().backward;
  const int64_t channels = p.heads * p.depth, threads = torch::stable::get_num_threads();
  if (!worth_packing(p)) {
    use_huge_pages(gradient, grad_value.numel() * sizeof(T));
    const int64_t runs = p.batch % threads == 0 ? 1 : std::min(p.heads, threads);
    return in_parallel(p.batch * runs, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / runs, run = task % runs, first = run * p.heads / runs;
        const int64_t last = (run + 1) * p.heads / runs, start = image * p.tokens * channels + first * p.depth;
        for (int64_t i = 0; i < p.tokens; ++i)
          std::memset(gradient + start + i * channels, 0, (last - first) * p.depth * sizeof(T));
        kernel(p, {image, first, last, 0, p.queries, p.value + start, gradient + start, channels});
      }
    });
  }
  in_parallel(p.batch * p.heads, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> packed(p.tokens * p.depth), sums(p.tokens * p.depth);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / p.heads, head = task % p.heads, start = image * p.tokens * channels + head * p.depth;
      pack(p.value + start, packed.data(), p.tokens, channels, p.depth);
      std::memset(sums.data(), 0, p.tokens * p.depth * sizeof(T));
      kernel(p, {image, head, head + 1, 0, p.queries, packed.data(), sums.data(), p.depth});
      unpack(sums.data(), gradient + start, p.tokens, channels, p.depth);
    }
  });
}

Tensor forward(const Tensor &value, std::vector<int64_t> shapes, const Tensor &locations, const Tensor &weights) {
  check(value, shapes, locations, weights);
  const int64_t sizes[] = {value.size(0), locations.size(1), value.size(2) * value.size(3)};
  const Tensor v = dense(value), l = dense(locations), w = dense(weights);
  Tensor output = torch::stable::new_empty(v, IntHeaderOnlyArrayRef(sizes, 3));
  if (output.numel() == 0) return output;
  if (v.scalar_type() == ScalarType::Float) {
    run_forward<float>(v, shapes, l, w, output);
  } else {
    run_forward<double>(v, shapes, l, w, output);
  }
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor &grad_output, const Tensor &value, std::vector<int64_t> shapes,
                                            const Tensor &locations, const Tensor &weights) {
  check(value, shapes, locations, weights);
  STD_TORCH_CHECK(grad_output.is_cpu() && grad_output.scalar_type() == value.scalar_type() && grad_output.dim() == 3 &&
                      grad_output.size(0) == value.size(0) && grad_output.size(1) == locations.size(1) &&
                      grad_output.size(2) == value.size(2) * value.size(3),
                  "ms_deform_attn: the output's gradient does not fit");
  const Tensor g = dense(grad_output), v = dense(value), l = dense(locations), w = dense(weights);
  Tensor grad_value = torch::stable::new_empty(v, v.sizes());
  Tensor grad_locations = torch::stable::new_empty(l, l.sizes());
  Tensor grad_weights = torch::stable::new_empty(w, w.sizes());
  if (g.numel() == 0) {
    torch::stable::zero_(grad_value);
    torch::stable::zero_(grad_locations);
    torch::stable::zero_(grad_weights);
  } else if (v.scalar_type() == ScalarType::Float) {
    run_backward<float>(g, v, shapes, l, w, grad_value, grad_locations, grad_weights);
  } else {
    run_backward<double>(g, v, shapes, l, w, grad_value, grad_locations, grad_weights);
  }
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace
}  // namespace codetr

STABLE_TORCH_LIBRARY(codetr_lab, m) {
  m.def(
      "ms_deform_attn(Tensor value, int[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) "
      "-> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(codetr_lab, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&codetr::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&codetr::backward));
}
