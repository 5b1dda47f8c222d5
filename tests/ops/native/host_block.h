// Runs a block of GPU threads on the host, one after the other: a thread runs up to its next barrier, then the next one
// does. Shared memory holds NaN at first and has an end that is watched.
//
// In a correct kernel the order of threads between two barriers does not matter; `Order` changes it.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cuda/samples.h"

namespace sparse_detr {

enum class Order { kForward, kReverse };

class HostThreads {
 public:
  HostThreads(int threads, Order order) : order_(order), contexts_(threads), done_(threads), stacks_(threads) {
    for (auto& stack : stacks_) stack = std::make_unique<char[]>(kStackBytes);
  }

  // Runs body(thread) for all threads. `wait` is their barrier.
  void run(const std::function<void(int)>& body) {
    const int threads = static_cast<int>(contexts_.size());
    body_ = &body;
    for (int i = 0; i < threads; ++i) {
      done_[i] = false;
      getcontext(&contexts_[i]);
      contexts_[i].uc_stack.ss_sp = stacks_[i].get();
      contexts_[i].uc_stack.ss_size = kStackBytes;
      contexts_[i].uc_link = &scheduler_;
      makecontext(&contexts_[i], reinterpret_cast<void (*)()>(&HostThreads::enter), 2, low(this), high(this));
    }
    for (int running = threads; running > 0;) {
      int finished = 0;
      for (int k = 0; k < threads; ++k) {
        current_ = order_ == Order::kForward ? k : threads - 1 - k;
        if (done_[current_]) continue;
        swapcontext(&scheduler_, &contexts_[current_]);
        finished += done_[current_];
      }
      running -= finished;
      if (error_) std::rethrow_exception(error_);
      if (finished != 0 && running != 0) throw std::runtime_error("some threads end where others wait at a barrier");
    }
  }

  void wait() { swapcontext(&contexts_[current_], &scheduler_); }

 private:
  static constexpr std::size_t kStackBytes = 64 * 1024;

  static unsigned low(HostThreads* p) { return static_cast<unsigned>(reinterpret_cast<uintptr_t>(p)); }
  static unsigned high(HostThreads* p) { return static_cast<unsigned>(reinterpret_cast<uintptr_t>(p) >> 32); }
  static void enter(unsigned low, unsigned high) {
    auto* self = reinterpret_cast<HostThreads*>(static_cast<uintptr_t>(high) << 32 | low);
    const int thread = self->current_;
    try {
      (*self->body_)(thread);
    } catch (...) {
      self->error_ = std::current_exception();
    }
    self->done_[thread] = true;
  }

  Order order_;
  int current_ = 0;
  std::exception_ptr error_;
  const std::function<void(int)>* body_ = nullptr;
  ucontext_t scheduler_;
  std::vector<ucontext_t> contexts_;
  std::vector<char> done_;
  std::vector<std::unique_ptr<char[]>> stacks_;
};

// What DeviceBlock is on the GPU. kVectorAtomics as from sm_90 on.
template <bool kVectorAtomics>
class HostBlock {
 public:
  HostBlock(HostThreads* threads, char* shared, int thread, uint32_t index)
      : threads_(threads), shared_(shared), thread_(thread), index_(index) {}

  int32_t thread() const { return thread_; }
  uint32_t index() const { return index_; }
  char* shared() const { return shared_; }
  void barrier() const { threads_->wait(); }

  template <class Sum>
  static constexpr int atomic_size() {
    return kVectorAtomics && sizeof(Sum) == sizeof(float) ? 4 : 1;
  }
  template <class Sum, int kSize>
  void add(Sum* to, const Pack<Sum, kSize>& x) const {
    static_assert(kSize == 1 || kSize == atomic_size<Sum>());
    if (reinterpret_cast<uintptr_t>(to) % (kSize * sizeof(Sum)) != 0) throw std::runtime_error("misaligned addition");
    for (int i = 0; i < kSize; ++i) to[i] += x.x[i];
  }
  template <class Real>
  void raise(Real* to, Real x) const {
    if (x > *to || x != x) *to = x;  // NaN stays
  }

 private:
  HostThreads* threads_;
  char* shared_;
  int thread_;
  uint32_t index_;
};

// Launches `blocks` blocks of `kernel(block)`. In reverse, the last block comes first.
template <bool kVectorAtomics, class Kernel>
void launch_on_host(int64_t blocks, int threads, int64_t shared_bytes, Order order, Kernel kernel) {
  constexpr int64_t kWatched = 256;
  HostThreads runner(threads, order);
  std::vector<Pack<double, 2>> memory((shared_bytes + kWatched) / 16 + 1);
  char* shared = reinterpret_cast<char*>(memory.data());
  for (int64_t k = 0; k < blocks; ++k) {
    const auto index = static_cast<uint32_t>(order == Order::kForward ? k : blocks - 1 - k);
    std::memset(shared, 0xff, shared_bytes + kWatched);
    runner.run([&](int thread) { kernel(HostBlock<kVectorAtomics>(&runner, shared, thread, index)); });
    for (int64_t i = 0; i < kWatched; ++i) {
      if (shared[shared_bytes + i] != '\xff') throw std::runtime_error("shared memory is written past its end");
    }
  }
}

}  // namespace sparse_detr
