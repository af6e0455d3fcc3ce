// A memory pool for PyTorch's CPU tensors that never holds more than was in use at the same time.
//
// A training step frees and requests the same few sizes over and over. malloc splits a large free block for a smaller request
// and then lacks a large one; here a block serves only requests of its own size. If no block of the size is free and the pool
// would grow beyond its peak use, free blocks of other sizes are first returned to the system. Small blocks are cut from slabs
// and keep their size.
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

size_t round_size(size_t size) {
  const size_t unit = size < LARGE ? 256 : PAGE;
  return (size + unit - 1) / unit * unit;
}

void* map_block(size_t size) {
  void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) return nullptr;
  if (size >= HUGE_PAGE) madvise(block, size, MADV_HUGEPAGE);
  return block;
}

class Pool {
 public:
  void* take(size_t size) {
    const std::lock_guard<std::mutex> lock(guard_);
    auto& free = free_[size];
    void* block = nullptr;
    if (!free.empty()) {
      block = free.back();
      free.pop_back();
      if (size >= LARGE) free_bytes_ -= size;
    } else if (size < LARGE) {
      block = carve(size);
    } else {
      shrink(peak_ > used_ + size ? peak_ - used_ - size : 0);
      block = map_block(size);
    }
    if (!block) return nullptr;
    if (size >= LARGE) peak_ = std::max(peak_, used_ += size);
    sizes_.emplace(block, size);
    return block;
  }

  bool release_block(void* block) {  // false: the block does not belong to the pool
    const std::lock_guard<std::mutex> lock(guard_);
    const auto entry = sizes_.find(block);
    if (entry == sizes_.end()) return false;
    const size_t size = entry->second;
    sizes_.erase(entry);
    free_[size].push_back(block);
    if (size >= LARGE) used_ -= size, free_bytes_ += size;
    return true;
  }

  size_t peak() {
    const std::lock_guard<std::mutex> lock(guard_);
    return peak_;
  }

  void forget() {  // resets the peak and returns free blocks to the system
    const std::lock_guard<std::mutex> lock(guard_);
    shrink(0);
    peak_ = used_;
  }

 private:
  void* carve(size_t size) {  // small blocks lie side by side in slabs and are never returned
    if (slab_bytes_ < size) {
      void* slab = map_block(SLAB);
      if (!slab) return nullptr;
      next_ = static_cast<char*>(slab);
      slab_bytes_ = SLAB;
    }
    void* block = next_;
    next_ += size;
    slab_bytes_ -= size;
    return block;
  }

  void shrink(size_t allowed) {
    for (auto bucket = free_.rbegin(); bucket != free_.rend() && bucket->first >= LARGE; ++bucket)
      while (free_bytes_ > allowed && !bucket->second.empty()) {
        munmap(bucket->second.back(), bucket->first);
        bucket->second.pop_back();
        free_bytes_ -= bucket->first;
      }
  }

  std::mutex guard_;
  std::unordered_map<void*, size_t> sizes_;
  std::map<size_t, std::vector<void*>> free_;
  size_t used_ = 0, free_bytes_ = 0, peak_ = 0;  // of large blocks, in bytes
  char* next_ = nullptr;
  size_t slab_bytes_ = 0;
};

Pool& pool = *new Pool;  // never destroyed: tensors may outlive static objects

void release(void* block) {
  if (block && !pool.release_block(block)) c10::free_cpu(block);
}

struct Pooled final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* block = nullptr;
    if (size >= SMALLEST) {
      block = pool.take(round_size(size));
      if (!block) {
        pool.forget();
        block = pool.take(round_size(size));
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
size_t kilolayer_pool_peak() { return pool.peak(); }
void kilolayer_pool_forget() { pool.forget(); }
}
