// The operator on CPU tensors: checks, choice of instruction set, threads.

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <tuple>
#include <type_traits>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "arguments.h"
#include "cpu/problem.h"

#ifndef CODETR_BUILD
#define CODETR_BUILD "unknown"
#endif

// Found again in the file by whoever asks whether it was built from the present sources.
extern "C" __attribute__((visibility("default"), used)) const char codetr_ops_build[] =
    "codetr-ops-build:" CODETR_BUILD;

namespace codetr {
namespace {

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

// Values of 16 bits are widened; everything else is computed as stored.
template <typename S>
using Compute = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <typename S>
const Kernels<Compute<S>> &kernels() {
  const InstructionSet &set = instruction_set();
  if constexpr (std::is_same_v<S, double>) {
    return set.twice;
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    return set.brain;
  } else if constexpr (std::is_same_v<S, Half>) {
    return set.half;
  } else {
    return set.single;
  }
}

// Calls `work` with a value of the C++ type that stands for `type`.
template <typename Work>
void by_type(ScalarType type, const Work &work) {
  if (type == ScalarType::Double) return work(double{});
  if (type == ScalarType::BFloat16) return work(BFloat16{});
  if (type == ScalarType::Half) return work(Half{});
  work(float{});
}

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

void check_on_cpu(const Tensor &value, const std::vector<int64_t> &shapes, const Tensor &locations,
                  const Tensor &weights) {
  check(value, shapes, locations, weights);
  STD_TORCH_CHECK(value.is_cpu() && locations.is_cpu() && weights.is_cpu(),
                  "ms_deform_attn: not all tensors are on the CPU");
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
    if (data_ == nullptr && bytes_ > 0) throw std::bad_alloc();
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

// The stored number that is nearest to a computed one, and the other way; c10's types know how.
template <typename To, typename From>
To convert(From from) {
  if constexpr (std::is_same_v<To, From>) {
    return from;
  } else if constexpr (std::is_same_v<From, BFloat16>) {
    return c10::BFloat16(from.bits, c10::BFloat16::from_bits());
  } else if constexpr (std::is_same_v<From, Half>) {
    return c10::Half(from.bits, c10::Half::from_bits());
  } else if constexpr (std::is_same_v<To, BFloat16>) {
    return {c10::BFloat16(from).x};
  } else {
    return {c10::Half(from).x};
  }
}

// One head's channels of every cell, cells one after the other; and back.
template <typename From, typename To>
void pack(const From *from, To *to, int64_t cells, int64_t channels, int64_t depth) {
  for (int64_t i = 0; i < cells; ++i)
    for (int64_t d = 0; d < depth; ++d) to[i * depth + d] = convert<To>(from[i * channels + d]);
}

template <typename From, typename To>
void unpack(const From *from, To *to, int64_t cells, int64_t channels, int64_t depth) {
  for (int64_t i = 0; i < cells; ++i)
    for (int64_t d = 0; d < depth; ++d) to[i * channels + d] = convert<To>(from[i * depth + d]);
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

// At least 20,000 samples a thread: fewer cost more than they save.
int64_t queries_per_thread(int64_t samples_per_query) { return 1 + 20000 / (1 + samples_per_query); }

template <typename S, typename T = Compute<S>>
void run_forward(const Tensor &value, const std::vector<int64_t> &shapes, const Tensor &locations,
                 const Tensor &weights, Tensor &output) {
  const Geometry<T> geometry(shapes, value.size(2), locations.size(4));
  const Problem<T> p = problem<T>(geometry, value, locations, weights);
  const int64_t channels = p.heads * p.depth;
  const S *const from = static_cast<const S *>(value.data_ptr());
  T *const out = static_cast<T *>(output.data_ptr());
  if (!worth_packing(p)) {
    return in_parallel(p.batch * p.queries, queries_per_thread(p.heads * p.points), [&](int64_t begin, int64_t end) {
      while (begin < end) {
        const int64_t image = begin / p.queries, first = begin % p.queries;
        const int64_t last = std::min(p.queries, first + end - begin);
        const S *const start = from + image * p.tokens * channels;
        kernels<S>().forward(p, {image, 0, p.heads, first, last, 0, p.points, start, nullptr, channels,
                                 out + begin * channels, nullptr, channels});
        begin += last - first;
      }
    });
  }
  const Buffer<T> packed(p.tokens * p.depth);
  for (int64_t image = 0; image < p.batch; ++image) {
    for (int64_t head = 0; head < p.heads; ++head) {
      const S *const start = from + image * p.tokens * channels + head * p.depth;
      in_parallel(p.tokens, 1000, [&](int64_t begin, int64_t end) {
        pack(start + begin * channels, packed.data() + begin * p.depth, end - begin, channels, p.depth);
      });
      in_parallel(p.queries, queries_per_thread(p.points), [&](int64_t begin, int64_t end) {
        T *const first = out + (image * p.queries + begin) * channels + head * p.depth;
        kernels<T>().forward(p, {image, head, head + 1, begin, end, 0, p.points, packed.data(), nullptr, p.depth,
                                 first, nullptr, channels});
      });
    }
  }
}

// Cells of the largest level.
int64_t largest(const std::vector<int64_t> &shapes) {
  int64_t most = 0;
  for (size_t i = 0; i + 1 < shapes.size(); i += 2) most = std::max(most, shapes[i] * shapes[i + 1]);
  return most;
}

// One task is an image, a run of its heads and, where there are more threads than heads, a level: nobody else writes
// to those channels of those cells of the value's gradient, and its sums run in the order of the queries, so the result
// does not depend on the number of threads.
template <typename S, typename T = Compute<S>>
void run_backward(const Tensor &grad_output, const Tensor &value, const std::vector<int64_t> &shapes,
                  const Tensor &locations, const Tensor &weights, Tensor &grad_value, Tensor &grad_locations,
                  Tensor &grad_weights) {
  const Geometry<T> geometry(shapes, value.size(2), locations.size(4));
  Problem<T> p = problem<T>(geometry, value, locations, weights);
  p.grad_locations = static_cast<T *>(grad_locations.data_ptr());
  p.grad_weights = static_cast<T *>(grad_weights.data_ptr());
  const S *const from = static_cast<const S *>(value.data_ptr());
  const T *const above = static_cast<const T *>(grad_output.data_ptr());
  T *const gradient = static_cast<T *>(grad_value.data_ptr());
  use_huge_pages(gradient, grad_value.numel() * sizeof(T));
  const bool packing = worth_packing(p);
  const int64_t channels = p.heads * p.depth, threads = torch::stable::get_num_threads();
  const int64_t levels = locations.size(3), points = locations.size(4);
  const int64_t parts = p.batch * p.heads < threads ? levels : 1;
  const int64_t runs = packing || parts > 1 ? p.heads : p.batch % threads == 0 ? 1 : std::min(p.heads, threads);
  const int64_t room = packing ? (parts == 1 ? p.tokens : largest(shapes)) * p.depth : 0;
  in_parallel(p.batch * runs * parts, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> packed(room), sums(room);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / (runs * parts), run = task / parts % runs, level = task % parts;
      const int64_t first = run * p.heads / runs, depth = ((run + 1) * p.heads / runs - first) * p.depth;
      const bool whole = parts == 1;
      const int64_t cell = whole ? 0 : p.start[level * points];
      const int64_t cells = whole ? p.tokens : shapes[2 * level] * shapes[2 * level + 1];
      const int64_t start = image * p.tokens * channels + first * p.depth;
      Part<T> part{};
      part.image = image;
      part.first_head = first;
      part.last_head = first + depth / p.depth;
      part.last_query = p.queries;
      part.first_point = level * points;
      part.last_point = whole ? p.points : (level + 1) * points;
      part.grad_output = above + image * p.queries * channels + first * p.depth;
      part.row = channels;
      if (!packing) {
        T *const to = gradient + start;
        for (int64_t i = cell; i < cell + cells; ++i) std::memset(to + i * channels, 0, depth * sizeof(T));
        part.value = from + start;
        part.grad_value = to;
        part.step = channels;
        kernels<S>().backward(p, part);
        continue;
      }
      pack(from + start + cell * channels, packed.data(), cells, channels, depth);
      std::memset(sums.data(), 0, cells * depth * sizeof(T));
      part.value = packed.data() - cell * depth;  // where the image's first cell would lie
      part.grad_value = sums.data() - cell * depth;
      part.step = depth;
      kernels<T>().backward(p, part);
      unpack(sums.data(), gradient + start + cell * channels, cells, channels, depth);
    }
  });
}

// Whether there are kernels that read 16-bit values of this depth as they are.
bool reads_narrow(int64_t depth) { return depth == 16 || depth == 32 || depth == 64; }

// The value as the kernels take it.
Tensor readable(const Tensor &value) {
  if (is_narrow(value.scalar_type()) && !reads_narrow(value.size(3)))
    return dense(torch::stable::to(value, ScalarType::Float));
  return dense(value);
}

Tensor forward(const Tensor &value, std::vector<int64_t> shapes, const Tensor &locations, const Tensor &weights) {
  check_on_cpu(value, shapes, locations, weights);
  const int64_t sizes[] = {value.size(0), locations.size(1), value.size(2) * value.size(3)};
  const ScalarType type = value.scalar_type();
  const Tensor v = readable(value), l = dense(locations), w = dense(weights);
  Tensor output = torch::stable::new_empty(v, IntHeaderOnlyArrayRef(sizes, 3), computed_as(type));
  if (output.numel() > 0)
    by_type(v.scalar_type(), [&](auto stored) { run_forward<decltype(stored)>(v, shapes, l, w, output); });
  return is_narrow(type) ? torch::stable::to(output, type) : output;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor &grad_output, const Tensor &value, std::vector<int64_t> shapes,
                                            const Tensor &locations, const Tensor &weights, bool /*always is*/) {
  check_on_cpu(value, shapes, locations, weights);
  check_gradient(grad_output, value, locations);
  STD_TORCH_CHECK(grad_output.is_cpu(), "ms_deform_attn: not all tensors are on the CPU");
  const ScalarType type = value.scalar_type();
  const Tensor g = dense(is_narrow(type) ? torch::stable::to(grad_output, ScalarType::Float) : grad_output);
  const Tensor v = readable(value), l = dense(locations), w = dense(weights);
  Tensor grad_value = torch::stable::new_empty(v, v.sizes(), computed_as(type));
  Tensor grad_locations = torch::stable::new_empty(l, l.sizes());
  Tensor grad_weights = torch::stable::new_empty(w, w.sizes());
  if (g.numel() == 0) {
    torch::stable::zero_(grad_value);
    torch::stable::zero_(grad_locations);
    torch::stable::zero_(grad_weights);
  } else {
    by_type(v.scalar_type(), [&](auto stored) {
      run_backward<decltype(stored)>(g, v, shapes, l, w, grad_value, grad_locations, grad_weights);
    });
  }
  if (is_narrow(type)) grad_value = torch::stable::to(grad_value, type);
  return {grad_value, grad_locations, grad_weights};
}

}  // namespace
}  // namespace codetr

// For people who ask what runs: generic, avx2 or avx512.
extern "C" __attribute__((visibility("default"), used)) const char *codetr_ops_instruction_set() {
  return codetr::instruction_set().name;
}

STABLE_TORCH_LIBRARY(codetr_lab, m) {
  m.def(
      "ms_deform_attn(Tensor value, int[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights) "
      "-> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_output, Tensor value, int[] spatial_shapes, Tensor sampling_locations, "
      "Tensor attention_weights, bool deterministic=False) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(codetr_lab, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&codetr::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&codetr::backward));
}
