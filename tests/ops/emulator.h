// A stand-in for a GPU: what the kernels use of CUDA, so that their source compiles for the host. The threads of a
// block are fibers, run one at a time in an order that is drawn anew after each barrier; the blocks run one by one. A
// missing barrier, a wrong index or a wrong exchange between threads shows here as it would on a GPU; speed does not.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

static dim3 threadIdx, blockIdx, gridDim, blockDim;

using std::max;
using std::min;

namespace emulator {

constexpr size_t stack_bytes = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false, waiting = false;
  int place = 0;         // where it waits: 1 for the block's barrier, 2 for its warp's exchange
  uint64_t given = 0;    // what it gave to the exchange
};

static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static unsigned current;
static std::function<void()> body;

inline void entry() {
  body();
  fibers[current].done = true;
  swapcontext(&fibers[current].context, &scheduler);
}

inline void wait(int place) {
  Fiber &own = fibers[current];
  own.waiting = true;
  own.place = place;
  const dim3 thread = threadIdx;
  swapcontext(&own.context, &scheduler);
  threadIdx = thread;
}

[[noreturn]] inline void fail(const char *what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

// Lets those go on who wait at a place where all others of the block, or of the warp, wait as well or are done.
inline void release() {
  const auto let_go = [](size_t first, size_t last, int place) {
    bool any = false;
    for (size_t i = first; i < last; ++i) {
      if (!fibers[i].done && !(fibers[i].waiting && fibers[i].place == place)) return;
      any = any || !fibers[i].done;
    }
    for (size_t i = first; any && i < last; ++i) fibers[i].waiting = false;
  };
  for (size_t warp = 0; warp < fibers.size(); warp += 32) let_go(warp, std::min(warp + 32, fibers.size()), 2);
  let_go(0, fibers.size(), 1);
}

// Runs every thread of every block.
inline void launch(dim3 grid, unsigned threads, unsigned seed, std::function<void()> kernel) {
  std::mt19937 random(seed);
  body = std::move(kernel);
  gridDim = grid;
  blockDim = {threads, 1, 1};
  std::vector<unsigned> order(threads);
  for (unsigned i = 0; i < threads; ++i) order[i] = i;
  fibers.assign(threads, {});
  for (Fiber &fiber : fibers) fiber.stack.resize(stack_bytes);
  for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
      for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        for (Fiber &fiber : fibers) {
          fiber.done = fiber.waiting = false;
          getcontext(&fiber.context);
          fiber.context.uc_stack.ss_sp = fiber.stack.data();
          fiber.context.uc_stack.ss_size = stack_bytes;
          fiber.context.uc_link = nullptr;
          makecontext(&fiber.context, entry, 0);
        }
        for (bool all_done = false; !all_done;) {
          bool ran = false;
          std::shuffle(order.begin(), order.end(), random);
          for (unsigned i : order) {
            if (fibers[i].done || fibers[i].waiting) continue;
            current = i;
            threadIdx = {i, 0, 0};
            swapcontext(&scheduler, &fibers[i].context);
            ran = true;
          }
          if (!ran) fail("threads wait for each other at different places");
          release();
          all_done = std::all_of(fibers.begin(), fibers.end(), [](const Fiber &fiber) { return fiber.done; });
        }
      }
    }
  }
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(1); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int apart) {
  using emulator::fibers;
  const unsigned own = emulator::current, partner = own / 32 * 32 + ((own % 32) ^ apart);
  std::memcpy(&fibers[own].given, &value, sizeof(T));
  emulator::wait(2);
  T other;
  std::memcpy(&other, &fibers[partner].given, sizeof(T));
  emulator::wait(2);  // before anybody gives something new
  return other;
}

template <typename T>
T atomicAdd(T *to, T value) {
  const T before = *to;
  *to += value;
  return before;
}

template <typename T>
T atomicMax(T *to, T value) {
  const T before = *to;
  *to = std::max(before, value);
  return before;
}
