// Threads that run one function together, with barriers and shared ranges of work inside it.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace trim {

inline void spin_pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");  // takes about as long as the pause of x86; "yield" takes no time
#endif
}

class ThreadPool {
 public:
  explicit ThreadPool(int threads) : size_(threads < 1 ? 1 : threads) {
    for (int i = 1; i < size_; ++i) workers_.emplace_back([this, i] { work(i); });
  }

  ~ThreadPool() {
    function_ = nullptr;
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  int size() const { return size_; }

  // Run `function(thread)` on every thread. The caller is thread 0.
  void run(const std::function<void(int)>& function) {
    function_ = &function;
    next_.store(0);
    generation_.fetch_add(1);
    generation_.notify_all();
    function(0);
    barrier();
  }

  // Wait for all threads. The ranges of the next `share` start from 0.
  void barrier() {
    if (size_ == 1) {
      next_.store(0, std::memory_order_relaxed);
      return;
    }
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    // The host may have fewer free cores than there are threads: spin briefly, then yield.
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < 4000)
        spin_pause();
      else
        std::this_thread::yield();
    }
  }

  // Call `body(begin, end)` with ranges of at most `grain`, until all threads together have taken
  // 0..count.
  template <class Body>
  void share(int64_t count, int64_t grain, const Body& body) {
    if (grain < 1) grain = 1;
    for (;;) {
      const int64_t begin = next_.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      body(begin, begin + grain < count ? begin + grain : count);
    }
  }

  // Return a grain that gives each thread about four ranges.
  int64_t grain(int64_t count) const { return (count + 4 * size_ - 1) / (4 * size_); }

 private:
  void work(int index) {
    uint32_t seen = 0;
    for (;;) {
      generation_.wait(seen);
      seen = generation_.load();
      if (!function_) return;
      (*function_)(index);
      barrier();
    }
  }

  const int size_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* function_ = nullptr;
  std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace trim
