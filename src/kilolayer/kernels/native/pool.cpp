// PyTorch's CPU memory from a pool that never holds more than was once in use at the same time.
//
// A training step frees and asks for the same few sizes again and again. malloc splits a large free block for a
// smaller one and then has no large one left; here a block only serves requests of its own size. Where none of the
// size is free and the pool would grow beyond its past peak, free blocks of other sizes go back to the system first.
// Small blocks are cut from slabs, and keep their size for ever.
#include <c10/core/Allocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

constexpr size_t SMALLEST = 1 << 10, LARGE = 256 << 10, PAGE = 4 << 10, HUGE_PAGE = 2 << 20, SLAB = 4 << 20;

size_t rounded(size_t size) {
  const size_t unit = size < LARGE ? 256 : PAGE;
  return (size + unit - 1) / unit * unit;
}

void* from_system(size_t size) {
  void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) return nullptr;
  if (size >= HUGE_PAGE) madvise(block, size, MADV_HUGEPAGE);
  return block;
}

class Pool {
 public:
  void* take(size_t size) {
    const std::lock_guard<std::mutex> held(guard_);
    auto& free = free_[size];
    void* block = nullptr;
    if (!free.empty()) {
      block = free.back();
      free.pop_back();
      if (size >= LARGE) idle_ -= size;
    } else if (size < LARGE) {
      block = carve(size);
    } else {
      shrink(most_ > used_ + size ? most_ - used_ - size : 0);
      block = from_system(size);
    }
    if (!block) return nullptr;
    if (size >= LARGE) most_ = std::max(most_, used_ += size);
    sizes_.emplace(block, size);
    return block;
  }

  bool give(void* block) {  // false: it is none of ours
    const std::lock_guard<std::mutex> held(guard_);
    const auto found = sizes_.find(block);
    if (found == sizes_.end()) return false;
    const size_t size = found->second;
    sizes_.erase(found);
    free_[size].push_back(block);
    if (size >= LARGE) used_ -= size, idle_ += size;
    return true;
  }

  size_t most() {
    const std::lock_guard<std::mutex> held(guard_);
    return most_;
  }

  void forget() {  // the peak begins anew, and what is free goes back
    const std::lock_guard<std::mutex> held(guard_);
    shrink(0);
    most_ = used_;
  }

 private:
  void* carve(size_t size) {  // small blocks lie side by side in slabs, and stay
    if (left_ < size) {
      void* slab = from_system(SLAB);
      if (!slab) return nullptr;
      next_ = static_cast<char*>(slab);
      left_ = SLAB;
    }
    void* block = next_;
    next_ += size;
    left_ -= size;
    return block;
  }

  void shrink(size_t allowed) {
    for (auto each = free_.rbegin(); each != free_.rend() && each->first >= LARGE; ++each)
      while (idle_ > allowed && !each->second.empty()) {
        munmap(each->second.back(), each->first);
        each->second.pop_back();
        idle_ -= each->first;
      }
  }

  std::mutex guard_;
  std::unordered_map<void*, size_t> sizes_;
  std::map<size_t, std::vector<void*>> free_;
  size_t used_ = 0, idle_ = 0, most_ = 0;  // of large blocks
  char* next_ = nullptr;
  size_t left_ = 0;
};

Pool& pool = *new Pool;  // never destroyed: tensors may outlive everything

void release(void* block) {
  if (block && !pool.give(block)) c10::free_cpu(block);
}

struct Pooled final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* block = nullptr;
    if (size >= SMALLEST) {
      block = pool.take(rounded(size));
      if (!block) {
        pool.forget();
        block = pool.take(rounded(size));
      }
      TORCH_CHECK(block, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", size, " bytes");
    } else if (size) {
      block = c10::alloc_cpu(size);
    }
    return {block, block, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }
};

}  // namespace

extern "C" {
void kilolayer_pool_use() { c10::SetAllocator(c10::DeviceType::CPU, new Pooled); }
size_t kilolayer_pool_most() { return pool.most(); }
void kilolayer_pool_forget() { pool.forget(); }
}
